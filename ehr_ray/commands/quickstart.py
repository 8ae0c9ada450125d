"""The whole road on synthetic patients: ingest, LVCF on Ray Data, Ray Train, evaluation, report."""

import os
import shlex
import time
from pathlib import Path

from ehr_ray.commands.doctor import machine
from ehr_ray.errors import InputError
from ehr_ray.experiment import Experiment, parse
from ehr_ray.runtime.screen import Screen
from ehr_ray.runtime.session import session
from ehr_ray.runtime.tracking_store import STORE, sqlite_uri
from ehr_ray.storage.paths import is_vacant


def quickstart(output: Path, *, screen: Screen, verbose: bool = False) -> Path:
    """Run every step below `output` and return the report's path; the same call again resumes."""
    started = time.perf_counter()
    cohort = output / "cohort"
    if not cohort.is_dir() and not is_vacant(output):
        raise InputError(f"--output {output}: not empty; choose another folder")
    # Each step's imports take seconds, so they stand where it begins; and Ray's processes start
    # while the patients are made.
    with session(verbose=verbose):
        from ehr_ray.commands.ingest import ingest

        screen.say("1/4 ingest: 500 synthetic patients to a MEDS cohort")
        summary = ingest("synthetic", None, cohort, progress=screen.passing)
        for line in str(summary).splitlines():
            screen.say(f"    {line}")
        from ehr_ray.commands.expand import expand

        screen.say("2/4 expand: last values carried forward, one Ray Data task a shard")
        expanded = expand(cohort, output / "expanded", say=screen.passing)
        screen.say(f"    {expanded.tokens:,} tokens of {expanded.patients:,} patients")
        experiment = quickstart_experiment(cohort, output / "runs")
        workers = experiment.cluster.most_workers
        screen.say(f"3/4 train: SetVAE by Ray Train, {workers} DDP worker{'s' * (workers > 1)}")
        from ehr_ray.commands.train.command import train

        trained = train(experiment, screen=screen, verbose=verbose)
    screen.say("4/4 evaluate: linear probe beside simple baselines, on patients never seen")
    from ehr_ray.commands.evaluate.command import evaluate

    # So few patients are embedded sooner than the processes of a pool have imported torch.
    for line in evaluate(trained.run, on_ray=False, verbose=verbose, say=screen.passing):
        screen.say(f"    {line}")
    report = trained.run / "report.html"
    screen.say(f"done in {time.perf_counter() - started:.0f} s; open {os.path.relpath(report)}")
    store = sqlite_uri(Path(os.path.relpath(output / "runs" / STORE)))
    screen.say(f"MLflow: mlflow ui --backend-store-uri {shlex.quote(store)}")
    return report


def quickstart_experiment(cohort: Path, runs: Path) -> Experiment:
    """Return a SetVAE for a quickstart of 80 s on two slow cores: 16 epochs, a report every two."""
    return parse(
        {
            "family": "set_vae",
            "name": "quickstart",
            "output": str(runs),
            "model": {
                **dict.fromkeys(("embedding_width", "reduced", "width"), 32),
                "latent": 16,
                "inducing": 8,
                "sets_per_patient": 4,
            },
            "data": {"cohort": str(cohort), "batch_size": 32},
            "schedules": {"beta": {"end": 0.1, "epochs": 4}, "free_bits": 0.05},
            "train": {"max_epochs": 16, "lr": 0.006, "warmup_steps": 20, "report_steps": 26},
            "evaluation": {"max_patients": 50},
            "cluster": {"num_workers": max(1, min(2, int(machine.cpus()[1])))},
            "tracking": {"experiment": "quickstart"},
        }
    )
