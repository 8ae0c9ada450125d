"""One trial of a search: the one loop in an actor of Ray Tune, or a Ray Train run of its own.

A trial is a run directory like any other, `<search>/trials/<number>/`, so that it can be evaluated,
and resumed: what was reported before is reported again, then training goes on.
"""

import contextlib
import math
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import ray.tune
import torch
import yaml

from ehr_ray.config.search import Sample
from ehr_ray.config.yaml_files import override, read_yaml
from ehr_ray.errors import (
    ConfigError,
    InputError,
    LeaseLostError,
    ResourcesUnavailableError,
    RunError,
    StoreUnavailableError,
)
from ehr_ray.experiment import Experiment, parse, to_yaml
from ehr_ray.runtime.tracking import UNTOLD, Tracked, Tracker, find_run, leave_run, open_run, untold
from ehr_ray.runtime.training.ranking import MEASURES, TRIAL, WORST, TrialRanking
from ehr_ray.runtime.tuning.schedulers import AGAIN, LACKS
from ehr_ray.runtime.tuning.trial_data import Datasets
from ehr_ray.storage import copies, files, runs, sync
from ehr_ray.storage.lease import Lease
from ehr_ray.storage.paths import canonical, join, local
from ehr_ray.train import history
from ehr_ray.train.backend import LocalBackend
from ehr_ray.train.checkpoint import Progress, saved_progress
from ehr_ray.train.checksums import damage_of, document
from ehr_ray.train.history import HISTORY

LINEAGE: Final = "lineage.yaml"
"""Trials whose weights a trial took over, in population-based training."""
CARRIED: Final = ("state", "checkpoint", HISTORY, MEASURES)
"""What a trial takes over from another."""
FINAL: Final = ("finished", "stopped", "failed")
STATUS: Final = {"finished": "FINISHED", "stopped": "KILLED"}
"""MLflow's word for how a trial ended; any other end has failed."""


@dataclass(frozen=True)
class Search:
    """What all trials of a search share, picklable."""

    root: str
    """Its folder by the name all nodes know it by: a path they share, or a URI."""
    paths: tuple[str, ...]
    """Dotted paths that vary."""
    datasets: Datasets
    rank: Any
    probe_patients: int
    tracked: Tracked | None
    """The search's own MLflow run."""
    exploits: bool = False
    """Whether trials take over each other's weights."""
    nested: bool = False
    """Whether a trial is a Ray Train run of several workers."""
    lease: Lease | None = None
    """The right to write to the search's URI."""

    def trial_dir(self, number: int) -> Path:
        """Return the run directory of a trial."""
        return trial_dir(self.root, number)


def trial_dir(root: str | Path, number: int) -> Path:
    """Return the run directory of a trial, on this machine where the search lies in a store."""
    return local(join(root, "trials", f"{number:04d}"))


def read_trial(folder: Path) -> dict[str, Any]:
    """Return a trial's record: number, status, error and sample; {} without one."""
    path = folder / TRIAL
    if not path.is_file():
        return {}
    if damage := damage_of(folder, (TRIAL,)):
        raise InputError(f"{damage}; remove {folder} to run this trial anew")
    record = read_yaml(path)
    if missing := [name for name in ("trial", "status", "sample") if name not in record]:
        raise InputError(f"{path}: no {missing[0]}; remove {folder} to run this trial anew")
    return record


def known_progress(folder: Path) -> Progress | None:
    """Return how far a trial is; None too where no state of it is whole: that ends it alone."""
    try:
        return saved_progress(folder)
    except InputError:
        return None


def write_trial(
    folder: Path,
    number: int,
    sample: Sample,
    status: str = "running",
    error: str = "",
    passed: int = 0,
) -> None:
    """Write a trial's record, whole or not at all; `passed` is its last step nobody stopped it at.

    Without it a scheduler could not know, after a kill, whether it had judged the last report.
    """
    folder.mkdir(parents=True, exist_ok=True)
    record = {"trial": number, "status": status, "error": error, "sample": sample}
    if status not in FINAL:
        record["passed"] = passed
    with copies.unsent(folder):
        files.write_text(folder / TRIAL, document(yaml.safe_dump(record, sort_keys=False)))
        sync.push(folder / TRIAL)


def run_trial(config: Mapping[str, Any], search: Search) -> None:
    """Train a trial to its end, telling Ray Tune its score at each report.

    An error ends the trial and not the search: it is marked failed, with the reason. Where it is
    not the trial's (no room for it, a store that is away) the trial goes on another time.
    """
    number = _number(config, search)
    sample: Sample = {path: config[path] for path in search.paths}
    try:
        folder = runs.fetch_run(search.trial_dir(number), missing_ok=True)
    except StoreUnavailableError as error:
        _tell({"step": 1, "score": WORST}, lacks=str(error))
        return
    if search.exploits:
        _take_over(folder, number, sample)
    record = read_trial(folder)
    before = record.get("status")
    known = before in FINAL or search.nested  # a Ray Train run does not hear what Tune decides
    passed = math.inf if known else record.get("passed", 0)
    for row in history.read(folder, file=MEASURES).to_dict("records"):
        _tell(row, again=row["step"] <= passed)
    if before not in FINAL:
        try:
            _train(search, number, sample, folder)
        except (ResourcesUnavailableError, StoreUnavailableError) as error:
            _tell({"step": record.get("passed", 0) + 1, "score": WORST}, lacks=str(error))
        except LeaseLostError:  # what the trial is now is for another machine to say
            raise
        except Exception as error:
            reason = _reason(error).removeprefix(f"{folder.name}: ")
            # A trial that has failed is tried again once its folder is gone, not a part of it.
            reason = reason.partition("; restore it, or remove ")[0]
            write_trial(folder, number, sample, "failed", reason)
    if read_trial(folder).get("status") == "failed":
        progress = known_progress(folder)
        _tell({"step": progress.step if progress else 1, "score": WORST})


def trial_experiment(search: Search, number: int, sample: Sample) -> Experiment:
    """Return the experiment of a trial: the search's own with the sample's values."""
    folder = search.trial_dir(number)
    fixed = {"name": folder.name, "output": canonical(folder.parent), "search": {}}
    return parse(override(search.datasets.of(sample).base, {**sample, **fixed}))


def _train(search: Search, number: int, sample: Sample, folder: Path) -> None:
    from ehr_ray.runtime.training.launch import fit
    from ehr_ray.runtime.training.worker import Job, train_here

    experiment = trial_experiment(search, number, sample)
    data = search.datasets.of(sample).here()
    folder.mkdir(parents=True, exist_ok=True)
    tracked = None
    with copies.unsent(folder):
        files.write_text(folder / "experiment.yaml", to_yaml(experiment))
        if search.tracked is not None:
            untold(folder)  # until the end: a scheduler may stop this process before all is told
            with contextlib.suppress(ConfigError):  # refused: the search says so at its end
                tracked = open_run(experiment, parent=search.tracked)
        sync.push(folder)
    ranking = TrialRanking(search.rank, data.probe, search.probe_patients)
    progress = folder / ".progress.jsonl"
    job = Job(experiment, data.own, folder, progress, tracked, ranking=ranking, lease=search.lease)
    try:
        if search.nested:
            from ray.tune.integration.ray_train import TuneReportCallback

            fit(job, callbacks=(TuneReportCallback(),))
        else:
            torch.set_num_threads(max(1, int(experiment.cluster.cpus_per_worker)))
            train_here(job, TuneBackend(search, number, sample, _device(experiment)))
    finally:
        sync.remove(progress)


def tell_late(root: Path, tracked: Tracked) -> list[Path]:
    """Tell MLflow of trials it was away for; return their folders."""
    runs: dict[Path, Tracked] = {}
    for folder in sorted(note.parent for note in (root / "trials").glob(f"[0-9]*/{UNTOLD}")):
        run = find_run(folder)
        if run is None or not run.run_id:
            try:
                run = open_run(parse(read_yaml(folder / "experiment.yaml")), parent=tracked)
            except ConfigError:
                break
            if run is None or not run.run_id:  # still away, as the search's own run will say
                break
        runs[folder] = run
    for folder, run in runs.items():  # once all are made: nobody waits behind reports for that
        tracker = Tracker(run)
        tracker.retell(folder, (HISTORY, MEASURES))
        tracker.close(STATUS.get(read_trial(folder).get("status", ""), "FAILED"))
    return [*runs]


class TuneBackend(LocalBackend):
    """One process that reports to Ray Tune."""

    def __init__(self, search: Search, number: int, sample: Sample, device: str) -> None:
        super().__init__(device)
        self._search, self._number, self._sample = search, number, sample

    def report(self, metrics: dict[str, float]) -> None:
        """Tell Tune the score, and note that it lets the trial go on.

        Where trials may take over each other, with what they may take over.
        """
        if not self._search.exploits:
            _tell(metrics)  # comes back when Tune has decided, or never
            folder = self._search.trial_dir(self._number)
            write_trial(folder, self._number, self._sample, passed=int(metrics["step"]))
            return
        with tempfile.TemporaryDirectory(prefix="ehr_ray-") as scratch:
            for name in CARRIED:
                _copy(self._search.trial_dir(self._number) / name, Path(scratch) / name)
            (Path(scratch) / TRIAL).write_text(yaml.safe_dump({"trial": self._number}))
            _tell(metrics, ray.tune.Checkpoint.from_directory(scratch))


def _tell(
    row: Mapping[Any, float], checkpoint: Any = None, *, again: bool = False, lacks: str = ""
) -> None:
    report = {"step": int(row["step"]), "score": float(row["score"]), AGAIN: again, LACKS: lacks}
    ray.tune.report(report, checkpoint=checkpoint)


def _number(config: Mapping[str, Any], search: Search) -> int:
    """Return the trial's number; a config that was taken over still holds that of its giver."""
    if not search.exploits:
        return int(config["trial"])
    return int(str(ray.tune.get_context().get_trial_id()).rsplit("_", 1)[-1])


def _take_over(folder: Path, number: int, sample: Sample) -> None:
    """Replace a trial's state by that of the trial Tune says it shall go on from."""
    checkpoint = ray.tune.get_checkpoint()
    if checkpoint is None:
        return
    with checkpoint.as_directory() as given:
        giver = int(yaml.safe_load((Path(given) / TRIAL).read_text())["trial"])
        if giver == number:
            return
        # Copied first, so that a kill in between finds whole files, the old ones or the new.
        for name in CARRIED:
            _remove(folder / f".{name}.given")
            _copy(Path(given) / name, folder / f".{name}.given")
        for name in CARRIED:
            _remove(folder / name)
            if (copied := folder / f".{name}.given").exists():
                files.sync_tree(copied)
                copied.rename(folder / name)
    progress = known_progress(folder)
    path = folder / LINEAGE
    past = yaml.safe_load(path.read_text()) if path.is_file() else []
    step = progress.step if progress else 0
    before = read_trial(folder).get("sample")
    past.append({"step": step, "from": giver, "before": before, "sample": sample})
    files.write_text(path, yaml.safe_dump(past, sort_keys=False))
    write_trial(folder, number, sample)
    # MLflow's parameters cannot change, so that what follows is a run of its own.
    leave_run(folder, f"took over trial {giver} at step {step}")


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target)
    elif source.is_file():
        shutil.copy2(source, target)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _device(experiment: Experiment) -> str:
    return "cuda" if experiment.cluster.gpus_per_worker and torch.cuda.is_available() else "cpu"


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    first = lines[0] if lines else ""
    return first if isinstance(error, RunError) else f"{type(error).__name__}: {first}"
