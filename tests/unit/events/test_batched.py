import pytest

from ehr_ray.events.batched import batched


@pytest.mark.parametrize(("count", "sizes"), [(0, []), (3, [3]), (7, [3, 3, 1])])
def test_items_come_in_lists_of_a_size(count, sizes):
    parts = list(batched(iter(range(count)), 3))
    assert [len(part) for part in parts] == sizes
    assert [item for part in parts for item in part] == list(range(count))
