"""`tune`: a search on Ray Tune, its trials ranked by one metric, resumed by the same command.

What is durable lies in the search's folder, a run directory a trial; Ray Tune's own bookkeeping is
thrown away, so nothing is unpickled and a search that was killed goes on from its trials.
"""

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ehr_ray.config.search import Domain, Sample, space_of
from ehr_ray.errors import ConfigError, InputError
from ehr_ray.evaluation.report.sweep_page import write_sweep
from ehr_ray.events.labels import choose_task, read_labels
from ehr_ray.events.patients import splits_of
from ehr_ray.experiment import Experiment, changes_since, dump, to_yaml, with_absolute_paths
from ehr_ray.runtime.screen import Screen
from ehr_ray.runtime.session import running, session
from ehr_ray.runtime.tracking import (
    UNTOLD,
    Tracked,
    Tracker,
    find_run,
    open_run,
    register,
    tag_best_trial,
    untold,
)
from ehr_ray.runtime.tracking_store import check_server, tracking_uri
from ehr_ray.runtime.training.ranking import PROBE, rank_of
from ehr_ray.runtime.tuning.launch import fit_trials
from ehr_ray.runtime.tuning.plan import (
    check_exploits,
    check_space,
    concurrency,
    default_space,
    limited,
)
from ehr_ray.runtime.tuning.proposals import Proposals, known_trials
from ehr_ray.runtime.tuning.trial import FINAL, Search, read_trial, tell_late, trial_dir
from ehr_ray.runtime.tuning.trial_data import Datasets, datasets
from ehr_ray.runtime.tuning.trials_table import Sweep, read_sweep
from ehr_ray.sources.expanded import fetch_sets, shards_of
from ehr_ray.storage import copies, files, sync
from ehr_ray.storage.lease import Lease, leased
from ehr_ray.storage.lock import search_lock
from ehr_ray.storage.paths import canonical, check_cohort_folder, is_uri
from ehr_ray.train.checkpoint import checkpoint_damage
from ehr_ray.train.task import family_of

SEARCH: Final = "search.yaml"
FREE: Final = (
    "output",
    "cluster.",
    "tracking.",
    "crossval",
    "evaluation.bootstrap",
    "data.cache",
    "data.mode",
)
GROWING: Final = ("tune.trials", "tune.concurrent", "tune.spare_cpus", "tune.register")
"""Where a search may differ from the one it goes on with."""
TAKEN = " (before a takeover a trial's scores are its giver's: lineage.yaml)"


@dataclass(frozen=True)
class Searched:
    """What `tune` did."""

    root: Path
    sweep: Sweep
    lines: list[str]


def tune(
    experiment: Experiment, *, screen: Screen | None = None, verbose: bool = False
) -> Searched:
    """Search an experiment's space, or go on with a search; return its trials and its best.

    `<output>/<name>/` gets `search.yaml`, a run directory a trial under `trials/`, `trials.parquet`
    and `report.html`.
    """
    screen = screen or Screen()
    experiment = with_absolute_paths(experiment)
    expanded, cohort = experiment.data.expanded, experiment.data.cohort
    if expanded is None:
        check_cohort_folder(sync.fetch_cohort(cohort))
    family = family_of(experiment)
    space = space_of(experiment.search, default_space(experiment, family))
    check_space(experiment, space)
    if experiment.tune.scheduler == "pbt" and experiment.cluster.most_workers > 1:
        raise ConfigError(
            "tune.scheduler=pbt: works with cluster.num_workers=1 only; Ray cannot hand the "
            "weights of one Ray Train run to another"
        )
    if experiment.tune.scheduler == "pbt" and is_uri(experiment.output):
        raise ConfigError(
            f"tune.scheduler=pbt: trials hand each other files, so output={experiment.output} must "
            "be a folder that all nodes share"
        )
    splits = splits_of(experiment.cohort) if expanded is None else shards_of(fetch_sets(expanded))
    if not splits.get("tuning"):
        raise InputError(
            f"{expanded or cohort}: no tuning split, whose patients rank the trials; "
            "ingest it with one (--splits)"
        )
    select = rank_of(experiment, family)
    probe = _probe_task(experiment) if select == PROBE else None
    if experiment.tracking.experiment is not None:
        tracking_uri(experiment)
    with leased(experiment.location, screen.say) as lease:
        return _search(experiment, space, select, probe, lease, screen, verbose)


def _search(
    experiment: Experiment,
    space: Mapping[str, Domain],
    select: Any,
    probe: str | None,
    lease: Lease | None,
    screen: Screen,
    verbose: bool,
) -> Searched:
    """Run the trials that have not ended, and rank all."""
    root = sync.fetch(experiment.location, missing_ok=True)
    check_folder(root, experiment)
    proposals = Proposals(space, experiment.tune, experiment.seed)
    known = known_trials(root)
    total = max(proposals.total, len(known))
    ended = sum(read_trial(trial_dir(root, n)).get("status") in FINAL for n in known)
    screen.say(
        f"{root.name}: {total} trials over {', '.join(space)}"
        + (" (every point of the grid)" if experiment.tune.method == "grid" else "")
        + (f"; {len(known)} begun before, {ended} of them ended" if known else "")
    )
    tracked = find_run(root)
    if ended < total:
        if not running():  # what can never run is told before Ray starts
            concurrency(experiment, total, {"CPU": os.cpu_count() or 1, "GPU": math.inf})
        if away := check_server(experiment):
            screen.say(away)
        screen.say("starting Ray and preparing rows")
        with session(experiment.cluster.address, verbose=verbose):
            at_once = concurrency(experiment, total)
            with (
                search_lock(root),
                datasets(experiment, space, probe, on_ray=True, say=screen.passing) as data,
            ):
                tracked = _run_trials(
                    experiment, space, select, data, proposals, known, at_once, lease, screen
                )
    try:
        if lease is not None:
            lease.check()
        return _conclude(experiment, space, root, select, tracked)
    except BaseException:
        _ended(tracked, "FAILED")
        raise


def _run_trials(
    experiment: Experiment,
    space: Mapping[str, Domain],
    select: Any,
    data: Datasets,
    proposals: Proposals,
    known: dict[int, Sample],
    at_once: int,
    lease: Lease | None,
    screen: Screen,
) -> Tracked | None:
    """Run the trials that have not ended, `at_once` at a time; return the search's MLflow run."""
    root, total = experiment.directory, max(proposals.total, len(known))
    exploits = experiment.tune.scheduler == "pbt"
    if exploits:
        check_exploits(experiment, family_of(experiment), space, data)
        if at_once < 2 and (total < 2 or limited(experiment.tune)):
            raise ConfigError(
                "tune.scheduler=pbt: needs at least 2 trials at a time, but has "
                f"{at_once} of {total}; give more CPUs, or drop tune.concurrent and "
                "tune.spare_cpus"
            )
    _claim(root, experiment)
    tracked = open_run(experiment, more=_told(experiment, space))
    search = Search(
        root=canonical(root),
        paths=tuple(space),
        datasets=data,
        rank=select,
        probe_patients=experiment.tune.probe_patients,
        tracked=tracked,
        exploits=exploits,
        nested=experiment.cluster.most_workers > 1,
        lease=lease,
    )
    screen.say(f"{at_once} at a time, ranked by {select.metric}")
    try:
        fit_trials(experiment, space, search, proposals, known, at_once, data, screen)
    except BaseException as error:
        _close_all(root, tracked, "FAILED" if isinstance(error, Exception) else "KILLED")
        raise
    return tracked


def _conclude(
    experiment: Experiment,
    space: Mapping[str, Domain],
    root: Path,
    select: Any,
    tracked: Tracked | None,
) -> Searched:
    """Rank the trials of a search that has ended; write its table and page, and tell MLflow."""
    sweep = read_sweep(root, select)
    with copies.unsent(root):
        lines = _write(root, sweep, experiment, space)
        sync.push(root)
    if failed := int((sweep.frame["status"] == "failed").sum()):
        lines.append(f"{failed} failed; remove the folder of a trial to try it again")
    damage = _damage_of_best(root, sweep)
    lines += [damage] if damage else []
    if tracked is not None and not tracked.run_id:
        try:
            tracked = open_run(experiment, more=_told(experiment, space))
        except ConfigError as error:
            return Searched(root, sweep, [*lines, f"{error}; the search is whole without"])
    if tracked is not None:
        lines += _track(experiment, root, sweep, tracked, sound=not damage)
    return Searched(root, sweep, lines)


def _write(
    root: Path, sweep: Sweep, experiment: Experiment, space: Mapping[str, Domain]
) -> list[str]:
    plan = experiment.tune
    about = {
        "family": experiment.family,
        "trials": str(len(sweep.frame)),
        "method": plan.method,
        "scheduler": plan.scheduler + (TAKEN if plan.scheduler == "pbt" else ""),
        "ranked by": f"{sweep.select.metric} ({sweep.select.mode}){_fixed(experiment)}",
        "cohort": experiment.data.cohort,
    }
    return write_sweep(
        root,
        sweep.frame,
        list(space),
        metric=sweep.select.metric,
        mode=sweep.select.mode,
        curves=sweep.curves,
        best=sweep.best,
        about=about,
        config=to_yaml(experiment),
    )


def _fixed(experiment: Experiment) -> str:
    """Return the scheduled values trials are compared at, whatever their schedules are."""
    values = family_of(experiment).eval_scheduled
    return " at " + ", ".join(f"{n} {v:g}" for n, v in values.items()) if values else ""


def _told(experiment: Experiment, space: Mapping[str, Domain]) -> dict[str, Any]:
    """Return what MLflow is told of a search besides the experiment."""
    how = {f"tune.{key}": value for key, value in dump(experiment)["tune"].items()}
    return how | {f"search.{path}": domain for path, domain in space.items()}


def _probe_task(experiment: Experiment) -> str:
    task = choose_task(experiment.cohort, experiment.evaluation.task)
    if task is None:
        raise ConfigError(
            f"{experiment.data.cohort}: trials of {experiment.family} are ranked by a probe, which "
            "needs labels, and the cohort has none; set tune.rank=metric to rank by "
            f"{family_of(experiment).select.metric}"
        )
    read_labels(experiment.cohort, task).only_binary("a search ranked by a probe")
    return task


def _close_all(root: Path, tracked: Tracked | None, status: str) -> None:
    """End the MLflow runs of a search that ended before its trials did."""
    for folder in sorted((root / "trials").glob("[0-9]*")):
        if read_trial(folder).get("status") not in FINAL and (run := find_run(folder)):
            if run.run_id:
                Tracker(run).close("KILLED")
            else:
                untold(folder)
    _ended(tracked, status)


def _ended(tracked: Tracked | None, status: str) -> None:
    tracker = Tracker(tracked)
    tracker.close(status)
    tracker.flush(5.0)


def _claim(root: Path, experiment: Experiment) -> None:
    """Write what is searched into the folder."""
    with copies.unsent(root):
        files.write_text(root / SEARCH, to_yaml(experiment))
        sync.push(root / SEARCH)


def check_folder(root: Path, experiment: Experiment) -> None:
    """Refuse a folder that holds something else than this search."""
    path = root / SEARCH
    if path.is_file() and any((root / "trials").glob("[0-9]*")):
        changed = [
            change
            for change in changes_since(path, experiment)
            if not change.startswith((*FREE, *GROWING))
        ]
        if changed:
            raise ConfigError(
                f"{root}: holds another search ({'; '.join(changed[:4])}); "
                "choose another name, or remove the folder"
            )
    elif not path.is_file() and any(root.glob("[!.]*")):
        raise ConfigError(f"{root}: holds something else than a search; choose another name")


def _damage_of_best(root: Path, sweep: Sweep) -> str:
    """Return what is wrong with the checkpoint of the best trial; "" where nothing is."""
    if sweep.best is None:
        return ""
    damage = checkpoint_damage(trial_dir(root, int(sweep.best["trial"])))
    return f"the checkpoint of the best trial cannot be used: {damage}" if damage else ""


def _track(
    experiment: Experiment, root: Path, sweep: Sweep, tracked: Tracked, *, sound: bool
) -> list[str]:
    """Tell MLflow the best trial, register its checkpoint if sound, and close the search's run."""
    tracker = Tracker(tracked)
    late = tell_late(root, tracked)
    tracker.artifacts(root, ("trials.parquet", "report.html", SEARCH))
    lines: list[str] = []
    best, name = None, ""
    counts = sweep.frame["status"].value_counts()
    tracker.metrics({f"trials_{name}": float(n) for name, n in counts.items()})
    if sweep.best is not None:
        folder = trial_dir(root, int(sweep.best["trial"]))
        name = folder.name
        tracker.metrics({"best_score": float(sweep.best["score"])})
        best = find_run(folder)
        if best is not None:
            weights = ("checkpoint",) if sound else ()
            Tracker(best).artifacts(folder, (*weights, "history.parquet", "experiment.yaml"))
    tracker.close("FINISHED")
    if left := tracker.flush():
        return [f"{left}; the search is whole without, and the same command tells MLflow later"]
    for folder in late:
        (folder / UNTOLD).unlink()
    if waiting := len([*(root / "trials").glob(f"[0-9]*/{UNTOLD}")]):
        lines.append(f"MLflow was not told of {waiting} trials; the same command tells it later")
    if best is not None:
        wanted = experiment.tune.register and sound
        version = register(best, root.name) if wanted else None
        tag_best_trial(tracked, best, name)
        if version:
            lines.append(f"MLflow: registered as {root.name}, version {version}")
    return lines
