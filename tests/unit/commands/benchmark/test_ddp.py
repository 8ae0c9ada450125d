from ehr_ray.commands.benchmark.ddp import WAYS, ddp_speed


def test_each_way_to_be_two_ranks_is_timed_on_the_same_work(synthetic_cohort, tmp_path):
    found = ddp_speed(synthetic_cohort, tmp_path, steps=1, rounds=1)
    assert [*found] == [
        f"{name}, {what}" for name in WAYS for what in ("ms per step", "CPU ms per step")
    ]
    assert all(value > 0 for value in found.values())
