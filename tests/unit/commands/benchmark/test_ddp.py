import pytest

from ehr_ray.commands.benchmark.ddp import WAYS, ddp_speed
from ehr_ray.errors import RunError


def test_each_way_to_be_two_ranks_is_timed_on_the_same_work(synthetic_cohort, tmp_path):
    found = ddp_speed(synthetic_cohort, tmp_path, steps=1, rounds=1)
    assert [*found] == [
        f"{name}, {what}" for name in WAYS for what in ("ms per step", "CPU ms per step")
    ]
    assert all(value > 0 for value in found.values())


def test_ranks_that_do_not_end_are_ended_and_told(synthetic_cohort, tmp_path):
    with pytest.raises(RunError, match=r"--only ddp: its two ranks did not end in 0\.5 s"):
        ddp_speed(synthetic_cohort, tmp_path, seconds=0.5)
    assert not (tmp_path / "ddp.json").exists()
