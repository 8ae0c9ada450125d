import pytest

from ehr_ray.events.label_tasks import canonical_task


@pytest.mark.parametrize("name", ["a-b", "a/b", "/a/b/", "a-b/"])
def test_a_task_may_be_written_as_its_folders(name):
    assert canonical_task(name) == "a-b"
