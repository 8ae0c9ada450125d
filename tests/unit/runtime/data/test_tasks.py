import pickle
import shutil
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ehr_ray.errors import InputError, ResourcesUnavailableError, RunError
from ehr_ray.runtime.data import tasks
from ehr_ray.runtime.data.tasks import (
    MOST_JOBS,
    GroupTask,
    Guarded,
    grouped,
    pool_size,
    run_jobs,
    run_shards,
    split_shards,
)
from ehr_ray.storage import files, in_place, sync
from ehr_ray.storage.paths import local


def here(function, jobs, **options):
    return run_jobs(function, jobs, on_ray=False, say=lambda _: None, verb="done", **options)


def test_results_come_in_the_order_of_the_jobs_and_each_is_told():
    said = []
    found = run_jobs(str.upper, ["b", "a"], on_ray=False, say=said.append, verb="raised")
    assert found == ["B", "A"]
    assert said == ["raised 1/2", "raised 2/2"]
    assert here(str.upper, []) == []


def test_a_target_is_sent_though_its_folder_is_fetched_meanwhile(tmp_path, monkeypatch):
    """As by a training that is started on the sets of an expand that has not ended."""
    monkeypatch.setenv("EHR_RAY_STAGING", str(tmp_path / "copies"))
    place = f"file://{tmp_path}/store/sets"
    (tmp_path / "store" / "sets" / "train").mkdir(parents=True)
    (tmp_path / "store" / "sets" / "train" / "0").write_text("there")

    def make(job):
        Path(job["target"]).parent.mkdir(parents=True, exist_ok=True)
        Path(job["target"]).write_text("new")
        other = threading.Thread(target=sync.fetch, args=(place,))
        other.start()
        other.join()

    job = {"shard": str(tmp_path), "target": str(local(f"{place}/train/1"))}
    run_shards([job], make, on_ray=False, say=lambda _: None, verb="made", bring=False)
    assert (tmp_path / "store" / "sets" / "train" / "1").read_text() == "new"


@pytest.mark.parametrize("kind", [InputError, RunError, ResourcesUnavailableError])
def test_an_expected_error_is_raised_as_it_was(kind):
    def refuse(job):
        raise kind(f"{job}: refused;\n mend it")

    with pytest.raises(kind, match=r"^a: refused; mend it$") as error:
        here(refuse, ["a"])
    assert type(error.value) is kind


def test_an_error_nobody_foresaw_is_one_line_that_names_its_job():
    with pytest.raises(RunError, match=r"^shard x: ValueError: invalid literal"):
        here(int, ["x"], label=lambda job: f"shard {job}")


def test_the_key_that_was_missing_is_not_told_for_it_may_be_a_patients():
    with pytest.raises(RunError) as error:
        here(lambda _: {}[12345], ["x"])
    assert str(error.value) == "x: KeyError"


def test_the_first_error_ends_the_jobs_that_have_not_begun():
    begun = []

    def fail_second(job):
        begun.append(job)
        if job == 1:
            raise InputError("no")

    with pytest.raises(InputError):
        here(fail_second, [0, 1, 2])
    assert begun == [0, 1]


@pytest.mark.parametrize(("jobs", "processes"), [(1, 2), (300, 2), (300, 0), (5000, 100)])
def test_groups_hold_every_job_once_in_order_and_end_with_single_ones(jobs, processes):
    groups = grouped(jobs, processes)
    assert [index for group in groups for index in group] == list(range(jobs))
    sizes = [len(group) for group in groups]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] == 1
    assert sizes[0] <= MOST_JOBS
    for size, group in zip(sizes, groups, strict=True):  # never more than half an even share
        assert size == 1 or size * 2 * max(1, processes) <= jobs - group[0]


def test_few_jobs_have_a_task_each_and_many_share_few():
    assert [len(group) for group in grouped(8, 4)] == [1] * 8
    assert len(grouped(300, 2)) < 300 / 12
    assert len(grouped(100_000, 100)) < 100_000 / 30


def outcomes(function, jobs, group):
    task = pickle.loads(pickle.dumps(GroupTask(Guarded(function, jobs, str))))
    return pickle.loads(task({"jobs": group})["outcomes"])


def test_a_group_gives_each_outcome_as_it_is():
    found = outcomes(str.upper, ["a", "b", "c"], [2, 0])
    assert [(one["index"], one["value"], one["kind"]) for one in found] == [
        (2, "C", ""),
        (0, "A", ""),
    ]
    assert outcomes(divmod, [], []) == []


def test_a_group_begins_nothing_after_an_error_or_when_it_took_long(monkeypatch):
    found = outcomes(int, ["1", "x", "3"], [0, 1, 2])
    assert [one["index"] for one in found] == [0, 1]
    assert found[1]["kind"] == "RunError"
    monkeypatch.setattr(tasks, "PATIENCE", -1.0)
    assert [one["value"] for one in outcomes(int, ["1", "2"], [0, 1])] == [1]


def nodes(*each, lost=()):
    """What Ray says of the nodes of a cluster, of which some were lost."""
    said = [{"Alive": True, "Resources": have} for have in each]
    return lambda: [*said, *({"Alive": False, "Resources": have} for have in lost)]


@pytest.mark.parametrize(
    ("resource", "each", "at_first"),
    [("GPU", 1, 3), ("GPU", 2, 1), ("GPU", 0.5, 6), ("GPU", 3, 0), ("CPU", 1, 8), ("CPU", 5, 0)],
)
def test_a_pool_has_the_processes_that_its_nodes_hold_one_by_one(
    monkeypatch, resource, each, at_first
):
    cluster = ({"CPU": 4.0, "GPU": 2.0}, {"CPU": 4.0, "GPU": 1.0}, {"memory": 1e9})
    monkeypatch.setattr("ray.nodes", nodes(*cluster, lost=[{"CPU": 64.0, "GPU": 8.0}]))
    assert pool_size(100, resource, each) == (at_first, 100)
    assert pool_size(1, resource, each) == (min(1, at_first), 1)


def test_more_gpus_than_any_node_has_are_refused_though_all_together_have_them(monkeypatch):
    monkeypatch.setattr("ray.nodes", nodes({"CPU": 4.0, "GPU": 1.0}, {"CPU": 4.0, "GPU": 1.0}))
    with pytest.raises(InputError, match="--gpus 2: no node of the cluster has so many; set 0, or"):
        run_shards(
            [{"shard": "a"}],
            str,
            on_ray=True,
            say=lambda _: None,
            verb="embedded",
            num_gpus=2,
            pool=True,
        )


def test_jobs_of_more_cpus_than_any_node_has_are_told_to_wait(monkeypatch, caplog):
    monkeypatch.setattr("ray.nodes", nodes({"CPU": 2.0}, {"CPU": 2.0}))
    monkeypatch.setattr(tasks, "_dataset", Tasks)
    for cpus, told in ((2, 0), (3, 1)):
        run_jobs(int, ["1"], on_ray=True, say=lambda _: None, verb="read", num_cpus=cpus)
        assert caplog.text.count("no node has 3 CPUs, as each job wants; waiting") == told


class Tasks:
    """A dataset of groups of jobs as Ray Data would run it; what it was made of is noted."""

    made: ClassVar = []

    def __init__(self, guarded, groups, *_):
        self._task, self._groups = GroupTask(guarded), groups
        self.made.append([list(group) for group in groups])

    def iter_rows(self):
        for group in self._groups:
            yield self._task({"jobs": group})


@pytest.mark.parametrize(("patience", "rounds"), [(60.0, 1), (-1.0, 2)])
def test_what_a_group_left_since_jobs_take_long_goes_one_by_one(monkeypatch, patience, rounds):
    monkeypatch.setattr("ray.nodes", nodes({"CPU": 3.0}, {"CPU": 2.0}))
    monkeypatch.setattr(Tasks, "made", [])
    monkeypatch.setattr(tasks, "_dataset", Tasks)
    monkeypatch.setattr(tasks, "PATIENCE", patience)
    said, jobs = [], [str(n) for n in range(40)]
    found = run_jobs(int, jobs, on_ray=True, say=said.append, verb="read", num_cpus=2)
    assert found == list(range(40))
    assert said[-1] == "read 40/40"
    first, *second = Tasks.made
    assert first == [list(group) for group in grouped(40, 2)]
    assert len(Tasks.made) == rounds
    left = [[n] for group in first for n in group[1:]]
    assert second == ([left] if rounds == 2 else [])


@pytest.fixture
def copied(tmp_path, monkeypatch):
    """Rows of a shard in a store are written to it: copied(bring) returns the node's copy."""
    monkeypatch.setenv("EHR_RAY_STAGING", str(tmp_path / "staging"))
    store = tmp_path / "store"
    store.mkdir()
    pq.write_table(pa.table({"a": ["a", "b", "c"]}), store / "a.parquet")

    def copy(job):
        with in_place.parquet(job["shard"]) as source:
            text = "".join(source.read()["a"].to_pylist()).upper()
        files.write_text(Path(job["target"]), text + job["tail"])
        assert not Path(job["shard"]).exists()
        return len(job["tail"])

    def run(bring):
        names = {"shard": "a.parquet", "target": "b.txt"}
        jobs = [{"tail": "!", **{key: f"file://{store}/{name}" for key, name in names.items()}}]
        options = {"on_ray": False, "say": lambda _: None, "verb": "copied", "bring": bring}
        assert run_shards(jobs, copy, **options) == [1]
        assert (store / "b.txt").read_text() == "ABC!"
        return local(f"file://{store}/b.txt")

    return run


def test_a_shard_of_a_store_is_read_where_it_lies_and_its_target_pushed(copied):
    assert copied(bring=True).read_text() == "ABC!"


def test_a_target_whose_name_no_store_can_have_is_refused_before_anything_is_done(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("EHR_RAY_STAGING", str(tmp_path / "staging"))
    job = {"shard": "a", "target": str(local(f"file://{tmp_path}/store") / "a#1.txt")}
    with pytest.raises(InputError, match=r"store: no name in a store may .* as a#1\.txt does"):
        run_shards([job], None, on_ray=False, say=str, verb="copied")


@pytest.mark.parametrize(("free", "stays"), [(16 * 4, True), (16 * 4 - 1, False)])
def test_a_target_that_is_in_its_store_stays_on_a_node_that_has_room(
    copied, free, stays, monkeypatch
):
    monkeypatch.setattr(shutil, "disk_usage", lambda _folder: SimpleNamespace(free=free))
    assert copied(bring=True).exists()
    assert copied(bring=False).exists() == stays


def test_a_split_that_a_cohort_lacks_is_refused_with_those_it_has(synthetic_cohort):
    assert split_shards(synthetic_cohort, "train")
    with pytest.raises(InputError, match="no hold_out split; it has train, tuning, held_out"):
        split_shards(synthetic_cohort, "hold_out")
