import numpy as np
import pyarrow as pa
import pytest

from ehr_ray.events.row_batches import (
    checksum_of,
    columns_of,
    from_bytes,
    known_of,
    to_batch,
    to_bytes,
)

ROWS = [
    {
        "subject_id": np.int64(number),
        "name": np.str_(f"patient {number}"),
        "value": np.arange(size, dtype=np.float32),
        "seen": np.arange(2 * size).reshape(size, 2) % 3 == 0,
    }
    for number, size in enumerate((3, 0, 2))
]


def test_rows_come_back_from_bytes_with_their_types_and_shapes():
    again = from_bytes(to_bytes(ROWS))
    assert len(again) == len(ROWS)
    for found, row in zip(again, ROWS, strict=True):
        assert list(found) == list(row)
        assert str(found["name"]) == row["name"]
        for name in ("subject_id", "value", "seen"):
            assert (found[name].dtype, found[name].shape) == (row[name].dtype, row[name].shape)
            np.testing.assert_array_equal(found[name], row[name])


def test_an_array_of_a_row_is_a_view_of_its_batch():
    batch = to_batch(ROWS)
    value = columns_of(batch)["value"].get(0)
    assert np.shares_memory(value, batch.column("value").values.to_numpy())
    with pytest.raises(ValueError, match="read-only"):
        value[0] = 1.0


@pytest.mark.parametrize("name", ["subject_id", "name", "value", "seen"])
def test_a_checksum_is_of_all_values(name):
    batch = to_batch(ROWS)
    assert checksum_of(to_batch(ROWS)) == checksum_of(batch)
    other = {**ROWS[0], name: ROWS[2][name]}
    assert checksum_of(to_batch([other, *ROWS[1:]])) != checksum_of(batch)


def test_a_checksum_is_of_where_rows_end_too():
    """The same numbers, divided among two rows otherwise."""
    one, other = (to_batch([{"x": part} for part in np.split(np.arange(4), [at])]) for at in (1, 2))
    assert checksum_of(one) != checksum_of(other)


def test_a_batch_is_known_by_scalars_and_sizes():
    known = known_of(to_batch(ROWS))
    assert isinstance(known, pa.Table)
    assert known.to_pydict() == {
        "subject_id": [0, 1, 2],
        "name": ["patient 0", "patient 1", "patient 2"],
        "#value": [3, 0, 2],
        "#seen": [6, 0, 4],
    }
