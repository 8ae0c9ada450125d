import pytest

from ehr_ray.errors import InputError, ResourcesUnavailableError, RunError
from ehr_ray.runtime.data.tasks import run_jobs, run_shards, split_shards


def here(function, jobs, **options):
    return run_jobs(function, jobs, on_ray=False, say=lambda _: None, verb="done", **options)


def test_results_come_in_the_order_of_the_jobs_and_each_is_told():
    said = []
    found = run_jobs(str.upper, ["b", "a"], on_ray=False, say=said.append, verb="raised")
    assert found == ["B", "A"]
    assert said == ["raised 1/2", "raised 2/2"]
    assert here(str.upper, []) == []


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


def test_a_shard_that_is_a_copy_of_a_uri_is_fetched_and_its_target_pushed(tmp_path, monkeypatch):
    monkeypatch.setenv("EHR_RAY_STAGING", str(tmp_path / "staging"))
    store = tmp_path / "store"
    store.mkdir()
    (store / "a.txt").write_text("abc")

    def copy(job):
        with open(job["shard"]) as source, open(job["target"], "w") as target:
            target.write(source.read().upper() + job["tail"])
        return len(job["tail"])

    jobs = [{"shard": f"file://{store}/a.txt", "target": f"file://{store}/b.txt", "tail": "!"}]
    assert run_shards(jobs, copy, on_ray=False, say=lambda _: None, verb="copied") == [1]
    assert (store / "b.txt").read_text() == "ABC!"


def test_a_split_that_a_cohort_lacks_is_refused_with_those_it_has(synthetic_cohort):
    assert split_shards(synthetic_cohort, "train")
    with pytest.raises(InputError, match="no hold_out split; it has train, tuning, held_out"):
        split_shards(synthetic_cohort, "hold_out")
