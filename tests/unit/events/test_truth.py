import numpy as np
import pyarrow as pa
import pytest

from ehr_ray.errors import InputError
from ehr_ray.events.truth import read_truth, truth_of

NAN = float("nan")


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        (pa.array([True, False, None]), [1, 0, -1]),
        (pa.array([1, 0, 2, None]), [1, 0, -2, -1]),
        (pa.array([1.0, 0.0, NAN, 0.5, None]), [1, 0, -1, -2, -1]),
        (pa.array(["True", " FALSE", "1", "0", "1.0", ""]), [1, 0, 1, 0, 1, -1]),
        (pa.array(["None", "nan", "NULL", "yes", "t"]), [-1, -1, -1, -2, -2]),
        (pa.array(["true", None, "false"]).dictionary_encode(), [1, -1, 0]),
        (pa.array([], pa.bool_()), []),
        (pa.nulls(2), [-1, -1]),
    ],
)
def test_truth_is_what_cells_say_and_nothing_else(cells, expected):
    assert truth_of(cells).tolist() == expected
    assert truth_of(pa.chunked_array([cells])).tolist() == expected


def test_another_value_is_refused_by_file_row_column_and_value():
    message = r"x\.parquet: row 7, column died: 3 is no truth value \(and 1 more cells\)"
    with pytest.raises(InputError, match=message):
        read_truth(pa.array([1, 3, 4]), "x.parquet", "died", np.array([6, 7, 8]))
