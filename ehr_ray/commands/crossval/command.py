"""`crossval`: `train` and `evaluate` on repeated stratified folds, beside ablations.

Each (variant, repeat, fold, member) is a job: it makes the fold's cohort, trains on it in its own
process, and evaluates the run on the fold's test patients. A job whose file is there is not run
again. Ablations are overrides, `crossval.variants` of the config.
"""

import contextlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import pandas as pd

from ehr_ray.commands.crossval.fold import run_fold
from ehr_ray.commands.crossval.plan import FoldJob, fold_jobs
from ehr_ray.commands.crossval.tables import (
    all_scores,
    caution,
    joined_predictions,
    record,
    report,
    tracked_metrics,
    write_fold_predictions,
)
from ehr_ray.errors import ConfigError
from ehr_ray.evaluation.tasks.fold_scores import spread
from ehr_ray.evaluation.tasks.stacking import stacked_folds
from ehr_ray.evaluation.tasks.verdicts import NETWORK
from ehr_ray.experiment import Experiment, changes_since, dump, to_yaml, with_absolute_paths
from ehr_ray.runtime.data.dataset import check_cohort
from ehr_ray.runtime.data.tasks import Say, run_jobs
from ehr_ray.runtime.session import session
from ehr_ray.runtime.tracking import Tracker, flatten, open_run
from ehr_ray.runtime.tracking_store import check_server
from ehr_ray.storage import files, sync
from ehr_ray.storage.lock import search_lock
from ehr_ray.storage.paths import check_cohort_folder, is_uri

PLAN: Final = "crossval.yaml"
FREE: Final = (
    "output: ",
    "cluster.",
    "tracking.",
    "crossval.repeats: ",
    "crossval.members: ",
    "crossval.variant_repeats: ",
    "crossval.chosen: ",
)
"""Where a cross-validation may differ from the one in its folder: none changes a job that is done.
Variants may be new or gone too."""
ARTIFACTS: Final = ("crossval.md", "folds.csv", "crossval.json", PLAN, "predictions")


def crossval(
    experiment: Experiment,
    *,
    cpus: int | None = None,
    verbose: bool = False,
    say: Say = lambda _: None,
) -> list[str]:
    """Cross-validate an experiment; return what a person should read.

    `<output>/<name>/` gets `crossval.md`, `folds.csv` with every score of every fold, and
    `predictions/<task>/r<repeat>-f<fold>.parquet` of the test patients. With
    `cluster.num_workers=0` jobs run one after the other in this process.
    """
    if is_uri(experiment.output):
        raise ConfigError(f"output={experiment.output}: crossval writes to folders; give a path")
    if experiment.data.expanded is not None:
        raise ConfigError("data.expanded: crossval divides data.cohort anew; drop it")
    experiment = with_absolute_paths(experiment)
    cohort = sync.fetch_cohort(experiment.data.cohort, shards=True)
    check_cohort_folder(cohort)
    check_cohort(cohort, experiment.cache, say)
    root = experiment.directory
    jobs = fold_jobs(experiment, cohort, root)
    if away := check_server(experiment):
        say(away)
    with search_lock(root):
        claim(root, experiment)
        more = {k: v for k, v in flatten(dump(experiment)) if k.startswith("crossval.")}
        tracker = Tracker(open_run(experiment, more=more))
        try:
            _run(experiment, jobs, cpus, verbose, say)
            lines = _conclude(experiment, jobs, root, tracker)
        except BaseException:
            tracker.close("FAILED")
            tracker.flush(5.0)
            raise
        tracker.close("FINISHED")
        left = tracker.flush()
    return [*lines, f"{left}; the same command tells MLflow later"] if left else lines


def claim(root: Path, experiment: Experiment) -> None:
    """Write what is run into the folder, or refuse one that holds another experiment."""
    path = root / PLAN
    if path.is_file():
        changed = [c for c in changes_since(path, experiment) if not _free(c)]
        if changed:
            raise ConfigError(
                f"{root}: holds another cross-validation ({'; '.join(changed[:4])}); "
                "choose another name"
            )
    files.write_text(path, to_yaml(experiment))


def _free(change: str) -> bool:
    path, _, said = change.partition(": ")
    # A whole variant, whose name has no dot; within one every change counts.
    added = re.fullmatch(r"crossval\.variants\.[^.]+", path) and said.startswith(
        ("new, ", "gone, ")
    )
    return bool(added) or change.startswith(FREE)


def _run(
    experiment: Experiment, jobs: Sequence[FoldJob], cpus: int | None, verbose: bool, say: Say
) -> None:
    """Run the jobs that are not done yet."""
    waiting = [job for job in jobs if not job.target.is_file()]
    say(f"{len(jobs)} fold jobs, {len(jobs) - len(waiting)} of them done before")
    if not waiting:
        return
    if experiment.init_from:
        say(f"note: {caution(experiment)}")
    cluster = experiment.cluster
    on_ray = cluster.most_workers > 0
    without = "cluster.num_workers=0"
    ray = session(cluster.address, cpus, verbose, without) if on_ray else contextlib.nullcontext()
    with ray:
        run_jobs(
            run_fold,
            waiting,
            on_ray=on_ray,
            say=say,
            verb="folds done:",
            label=lambda job: job.key,
            num_cpus=cluster.cpus_per_worker,
        )


def _conclude(
    experiment: Experiment, jobs: Sequence[FoldJob], root: Path, tracker: Tracker
) -> list[str]:
    """Join what the jobs wrote, score it, write the tables and tell MLflow; return the lines."""
    test = joined_predictions(jobs)
    weights: dict[str, dict[str, float]] = {}
    if NETWORK in set(test["model"]):  # an ensemble
        stacked, weights = stacked_folds(test)
        test = pd.concat([test, stacked], ignore_index=True)
    scores = all_scores(jobs, test)
    table = spread(scores)
    text = report(experiment, jobs, scores, table, weights)
    files.write_text(root / "folds.csv", scores.to_csv(index=False))
    files.write_text(root / "crossval.md", text)
    files.write_text(
        root / "crossval.json",
        json.dumps(record(experiment, jobs, table, weights), indent=1) + "\n",
    )
    write_fold_predictions(root / "predictions", test, experiment.cohort)
    tracker.metrics(tracked_metrics(table))
    tracker.artifacts(root, ARTIFACTS)
    return [*text.splitlines(), f"{root}: crossval.md, folds.csv, predictions/"]
