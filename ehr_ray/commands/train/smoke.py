"""`train --smoke`: some steps of a run and a validation, to see that it would go; none is kept."""

import os
import time
from dataclasses import replace
from typing import Final

from ehr_ray.commands.train.command import train_run
from ehr_ray.config.sections import TrackingConfig
from ehr_ray.experiment import Experiment, with_absolute_paths
from ehr_ray.runtime.screen import Screen
from ehr_ray.storage import sync

STEPS: Final = 3
"""Optimizer steps of a smoke test."""


def smoke(experiment: Experiment, *, screen: Screen | None = None, verbose: bool = False) -> str:
    """Train `STEPS` steps as they would be trained, and validate; return a line on it.

    Data, workers and sizes are the run's own, and so are errors. Its folder is another one, which
    is removed whatever comes of it; MLflow hears nothing. Prepared rows stay, for the run to find.
    """
    screen, experiment = screen or Screen(), with_absolute_paths(experiment)
    plan = replace(experiment.train, max_steps=STEPS, report_steps=STEPS)
    tried = replace(
        experiment,
        name=f"{experiment.name}.smoke-{os.getpid()}",
        train=plan,
        tracking=TrackingConfig(experiment=None),
    )
    started = time.monotonic()
    try:
        step = train_run(tried, screen, verbose).step
    finally:
        sync.remove(tried.location)
    seconds = time.monotonic() - started
    return f"{experiment.name}: {step} steps and a validation in {seconds:.0f} s; none of it kept"
