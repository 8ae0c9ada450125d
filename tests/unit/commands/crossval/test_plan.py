"""Who is in which fold, what is judged, and what a variant may change."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ehr_ray.commands.crossval.plan import MODEL, fold_jobs, judged_tasks, subject_strata, variants
from ehr_ray.errors import ConfigError, InputError
from ehr_ray.events.patients import splits_of
from ehr_ray.experiment import load

CONFIGS = Path(__file__).parents[4] / "configs"
VARIANTS = "crossval.variants={wide: {model.latent: 12}, narrow: {model.latent: 4}}"


def subjects_of(cohort):
    paths = [path for shards in splits_of(cohort).values() for path in shards]
    return set(
        pa.concat_tables([pq.read_table(p, columns=["subject_id"]) for p in paths])[0].to_pylist()
    )


@pytest.fixture
def labelled(synthetic_cohort, tmp_path):
    """The synthetic patients with two labels each, at two times, of two tasks."""
    (tmp_path / "labels").mkdir()
    (tmp_path / "data").symlink_to(synthetic_cohort / "data")
    ids = np.repeat(sorted(subjects_of(synthetic_cohort)), 2)
    for task, answer in (("first", np.arange(len(ids)) % 6 == 1), ("second", ids % 2 == 0)):
        table = {
            "subject_id": ids,
            "prediction_time": pa.array(np.arange(len(ids)), pa.timestamp("us")),
            "boolean_value": answer,
        }
        pq.write_table(pa.table(table), tmp_path / "labels" / f"{task}.parquet")
    return tmp_path


def make(cohort, *more, config="tiny/set_vae"):
    return load(
        CONFIGS / f"{config}.yaml", [f"data.cohort={cohort}", f"output={cohort}/runs", *more]
    )


def test_rows_of_a_subject_stay_together_and_every_subject_is_tested_once_a_repeat(labelled):
    experiment = make(labelled, "crossval.folds=3", "crossval.repeats=2", "crossval.tasks=[first]")
    jobs = fold_jobs(experiment, labelled, labelled / "runs")
    everybody = sorted(subjects_of(labelled))
    assert len(jobs) == 6
    for repeat in (0, 1):
        tested = [s for job in jobs if job.repeat == repeat for s in job.splits["held_out"]]
        assert sorted(tested) == everybody
    for job in jobs:
        assert sorted(np.concatenate([*job.splits.values()])) == everybody
    assert not np.array_equal(jobs[0].part, jobs[3].part)


def test_a_subject_with_one_positive_row_is_positive_and_folds_hold_equal_shares(labelled):
    ids, strata = subject_strata(labelled, ["first", "second"], labelled / "cache")
    assert set(np.unique(strata)) == {4, 5, 7, 8}  # negative is 1 and positive 2 of base 3
    assert (strata // 3 == 2).tolist() == [place % 3 == 0 for place in range(len(ids))]
    jobs = fold_jobs(make(labelled, "crossval.tasks=[first]"), labelled, labelled / "runs")
    positive = set(ids[strata // 3 == 2].tolist())
    counts = [len(positive & set(job.splits["held_out"])) for job in jobs]
    assert max(counts) - min(counts) <= 1


def test_what_jobs_say_of_a_subject_is_its_id_once_and_a_byte_a_job(labelled):
    jobs = fold_jobs(make(labelled, "crossval.tasks=[first]"), labelled, labelled / "runs")
    assert all(job.subjects is jobs[0].subjects for job in jobs)
    assert [job.part.itemsize for job in jobs] == [1] * len(jobs)


def test_variants_get_the_folds_of_the_model_and_baselines_are_fitted_once_a_fold(labelled):
    chosen = ("crossval.chosen=[wide]", "crossval.members=2", "crossval.folds=2")
    experiment = make(labelled, VARIANTS, *chosen, "crossval.tasks=[first]")
    jobs = fold_jobs(experiment, labelled, labelled / "runs")
    place = {job.key: job for job in jobs}
    assert len(jobs) == 2 * 2 * 2 + 2  # model: repeats, folds, members; variant: once
    parts = {key: job.part.tolist() for key, job in place.items()}
    assert parts["wide-r0-f1-m0"] == parts["model-r0-f1-m0"]
    tuning = [place[f"model-r0-f1-m{m}"].splits["tuning"].tolist() for m in (0, 1)]
    assert tuning[0] != tuning[1]
    fitted = {job.key for job in jobs if job.experiment.evaluation.baselines}
    assert fitted == {f"model-r{r}-f{f}-m0" for r in (0, 1) for f in (0, 1)}
    first = {job.key for job in jobs if job.first}
    assert first == fitted
    assert place["wide-r0-f0-m0"].experiment.model.latent == 12
    without = make(labelled, "evaluation.baselines=false", "crossval.tasks=[first]")
    jobs = fold_jobs(without, labelled, labelled / "runs")
    assert not any(job.experiment.evaluation.baselines for job in jobs)


def test_the_task_is_the_one_asked_for_the_models_own_or_that_of_evaluate(labelled):
    assert judged_tasks(make(labelled, "crossval.tasks=[second, first]"), labelled) == (
        "second",
        "first",
    )
    assert judged_tasks(make(labelled, "evaluation.task=second"), labelled) == ("second",)
    own = make(labelled, "model.survival.name=second", config="tiny/hcat")
    assert judged_tasks(own, labelled) == ("second",)
    with pytest.raises(InputError, match="third"):
        judged_tasks(make(labelled, "crossval.tasks=[third]"), labelled)
    for path in (labelled / "labels").iterdir():
        path.unlink()
    with pytest.raises(InputError, match="folds are judged by one"):
        judged_tasks(make(labelled), labelled)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("crossval.chosen=[wid]", "wid: no such variant; .*wide"),
        ("crossval.chosen=[same]", "changes nothing"),
        ("crossval.chosen=[wrong]", r"crossval\.variants\.wrong: model\.latents"),
        ("crossval.chosen=[fixed]", "must be the same in all folds"),
        ("crossval.chosen=[stacked]", r"crossval\.variants\.stacked: a row of the tables"),
    ],
)
def test_a_variant_that_cannot_be_is_refused_by_name(labelled, given, said):
    known = (
        "crossval.variants={wide: {model.latent: 12}, same: {model.latent: 8}, "
        "wrong: {model.latents: 3}, fixed: {cluster.num_workers: 2}, stacked: {model.latent: 4}}"
    )
    with pytest.raises(ConfigError, match=said):
        variants(make(labelled, known, given))


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("**/hcat.yaml")), ids=str)
def test_every_ablation_of_a_config_can_be_run(path):
    experiment = load(path)
    # What is the default is an ablation of those who have set it otherwise.
    names = [n for n in experiment.crossval.variants if n not in ("no_contrastive", "size_small")]
    chosen = load(path, [f"crossval.chosen=[{', '.join(names)}]"])
    assert list(variants(chosen)) == [MODEL, *names]


def test_a_name_that_cannot_be_a_files_is_refused():
    with pytest.raises(ConfigError, match=r"crossval\.variants"):
        make("x", "crossval.variants={a/b: {model.latent: 12}}")
