import numpy as np
import pyarrow as pa
import pytest

from ehr_ray.errors import InputError
from ehr_ray.sources.parsing.cells import timestamps
from ehr_ray.sources.parsing.quarantine import Rejects
from ehr_ray.sources.parsing.rows import clean_rows


def clean(ids, time, code, value):
    rejects = Rejects()
    blank = np.array([i is None for i in ids])
    numbers = np.array([i or 0 for i in ids], np.int64)
    events, kept = clean_rows(
        (numbers, blank),
        pa.chunked_array([time]),
        pa.chunked_array([code]),
        None if value is None else pa.chunked_array([value]),
        read_time=timestamps,
        place=lambda i: ("f", i + 1),
        rejects=rejects,
    )
    return events, kept.tolist(), [(r["line"], r["reason"]) for r in rejects.table().to_pylist()]


def test_a_row_is_refused_once_for_its_first_fault():
    events, kept, rejected = clean([None, 2, 3], ["x", "x", ""], ["", "A", "B"], ["y", "y", "1"])
    assert kept == [False, False, True]
    assert rejected == [(1, "subject id is blank"), (2, "time 'x' is not a time")]
    assert events["code"].to_pylist() == ["B"]


def test_a_table_without_values_has_events_without_values():
    events, _, rejected = clean([1], [""], ["A"], None)
    assert events["numeric_value"].to_pylist() == [None]
    assert rejected == []


def test_a_column_of_the_wrong_type_is_an_error_of_the_file():
    with pytest.raises(InputError, match="column code holds list"):
        clean([1], [""], [["A"]], None)
