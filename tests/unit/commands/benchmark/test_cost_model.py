"""The arithmetic of large clusters; it needs none."""

import pytest

from ehr_ray.commands.benchmark.cost_model import (
    Cluster,
    ExpandCosts,
    TrainCosts,
    epoch_seconds,
    expand_seconds,
    first_to_saturate,
    step_seconds,
    table,
)

EXPAND = ExpandCosts(patient_seconds=0.001, task_seconds=0.01, patient_bytes=50_000)
TRAIN = TrainCosts(sample_seconds=0.002, step_seconds=0.01, parameters=5_000_000)


def test_expand_scales_with_nodes_until_the_driver_hands_out_too_few_tasks():
    cluster = Cluster()
    found = [expand_seconds(EXPAND, cluster, n, 10_000_000) for n in (1, 2, 10, 1000)]
    assert found[0]["total"] / found[1]["total"] == pytest.approx(2, rel=0.01)
    assert first_to_saturate(found[0]) == "cores"
    assert first_to_saturate(found[-1]) == "driver"
    shards = 10_000_000 // 1000  # fewer than cores: each is a task of its own
    each = cluster.driver_task + cluster.driver_job
    assert found[-1]["total"] == pytest.approx(shards * each)


def test_a_task_of_several_shards_spares_the_driver():
    cluster = Cluster()
    found = [expand_seconds(EXPAND, cluster, nodes, 100_000_000)["driver"] for nodes in (1, 10)]
    tasks = [(time - 100_000 * cluster.driver_job) / cluster.driver_task for time in found]
    assert 100_000 / 64 < tasks[0] < tasks[1] < 100_000 / 10


def test_expand_is_bound_by_storage_where_that_is_slow():
    slow = Cluster(storage_bytes=1e8)
    assert first_to_saturate(expand_seconds(EXPAND, slow, 100, 10_000_000)) == "storage"
    thin = Cluster(node_bytes=1e7)
    assert first_to_saturate(expand_seconds(EXPAND, thin, 10, 10_000_000)) == "network of a node"


def test_the_last_round_of_shards_costs_as_much_as_a_full_one():
    cluster = Cluster(cores=4)
    four, five = (expand_seconds(EXPAND, cluster, 1, n * 1000)["cores"] for n in (4, 5))
    assert five == 2 * four


def test_one_rank_sends_nothing_and_waits_for_nobody():
    parts = step_seconds(TRAIN, Cluster(), 1, 64)
    assert parts == {
        "compute": pytest.approx(64 * 0.002 + 0.01),
        "stragglers": 0.0,
        "gradients": 0.0,
        "total": pytest.approx(64 * 0.002 + 0.01),
    }


def test_gradients_of_a_ring_take_twice_their_bytes_and_a_message_a_neighbour():
    cluster = Cluster(node_bytes=1e9, latency=1e-4)
    assert step_seconds(TRAIN, cluster, 2, 64)["gradients"] == pytest.approx(0.02 + 2e-4)
    assert step_seconds(TRAIN, cluster, 1000, 64)["gradients"] == pytest.approx(
        2 * 0.999 * 0.02 + 2 * 999 * 1e-4
    )


def test_weak_scaling_keeps_more_of_its_efficiency_than_strong():
    weak, strong = (
        [epoch_seconds(TRAIN, Cluster(), n, 1_000_000, **how)["efficiency"] for n in (1, 8, 64)]
        for how in ({"batch_per_rank": 64}, {"batch": 64})
    )
    assert weak[0] == strong[0] == pytest.approx(1)
    assert weak[0] > weak[1] > weak[2]
    assert strong[2] < weak[2]


def test_cores_that_share_a_machine_slow_each_other():
    shared = Cluster(parallel=0.5)
    assert step_seconds(TRAIN, shared, 2, 64)["compute"] == pytest.approx(2 * (32 * 0.002 + 0.01))


def test_the_table_names_what_decides_at_each_size():
    lines = table(EXPAND, TRAIN, Cluster(), 100_000_000, 64)
    assert [line.split("|")[1].strip() for line in lines[2:]] == ["1", "2", "10", "100", "1,000"]
    assert "cores" in lines[2]
    assert "driver" in lines[-1]
    assert "gradients" in lines[-1]
