"""`benchmark`: speed as ratios measured within one run, since machines differ.

Each part compares two ways of doing the same work, in turn, on the same data, with the same
threads; a ratio is that of medians. Times are wall seconds unless a name says CPU.
"""

import contextlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import torch

from ehr_ray.commands.benchmark.cpu import cpu_speed
from ehr_ray.commands.benchmark.ddp import ddp_speed
from ehr_ray.commands.benchmark.faults import fault_speed
from ehr_ray.commands.benchmark.gpu import PATIENTS, check_device, gpu_speed
from ehr_ray.commands.benchmark.lvcf import lvcf
from ehr_ray.commands.benchmark.memory import memory
from ehr_ray.commands.benchmark.model import model_speed
from ehr_ray.commands.benchmark.overhead import loading, small_experiment, steps, workers
from ehr_ray.commands.benchmark.peers.command import peers
from ehr_ray.commands.benchmark.peers.ingesting import ingesting
from ehr_ray.commands.benchmark.published_vitals import vitals_speed
from ehr_ray.commands.benchmark.scaling import scaling
from ehr_ray.commands.benchmark.search import search_speed
from ehr_ray.commands.benchmark.size import size_speed
from ehr_ray.commands.benchmark.timing import Numbers
from ehr_ray.commands.ingest import ingest
from ehr_ray.errors import ConfigError, RunError
from ehr_ray.experiment import Experiment
from ehr_ray.runtime.screen import Screen
from ehr_ray.runtime.session import session
from ehr_ray.storage import files, sync

Figures = Mapping[str, float | str]
"""A text where a figure was left out, and why."""
MODEL = "model"
"""The part that takes a config: `model_speed`."""
GPU = "gpu"
"""The part that takes a device: `gpu_speed`."""
VITALS = "vitals"
CPU = "cpu"
DDP = "ddp"
SIZE = "size"
INGEST = "ingest"
MEMORY = "memory"
SCALING = "scaling"
WITHOUT_RAY = {MODEL, GPU, DDP, "peers", VITALS, CPU, SIZE, INGEST}
OWN_DATA = {VITALS, CPU, SIZE, INGEST, MEMORY, SCALING}
"""The parts that make their own patients: they need no cohort."""


def benchmark(
    output: Path,
    *,
    cohort: Path | None = None,
    only: str | None = None,
    verbose: bool = False,
    experiment: Experiment | None = None,
    device: str | None = None,
    began: float | None = None,
) -> dict[str, Figures]:
    """Run the parts, print a table, write JSON after each; return what was measured.

    The part `model` measures `experiment`, and the others too are on its cohort unless another is
    given; without one it measures the SetVAE the other parts train. `device` is that of the part
    `gpu`, whose limit of time counts from `began`, of `time.monotonic`: when the command was given.
    Raises ConfigError and InputError before anything is made, and RunError, after all is written,
    where a part found something wrong.
    """
    began = time.monotonic() if began is None else began
    chosen = _chosen(only, cohort, experiment, device)
    screen = Screen()
    results: dict[str, Figures] = {}
    output.parent.mkdir(parents=True, exist_ok=True)

    def write(parts: Mapping[str, Figures]) -> None:
        content = {"cores": os.cpu_count(), "torch": torch.__version__, "parts": parts}
        files.write_text(output, json.dumps(content, indent=2) + "\n")

    def kept(figures: Figures) -> None:
        write(results | {GPU: figures})  # whoever ends the command early has what was measured

    with tempfile.TemporaryDirectory(prefix="ehr_ray-benchmark-") as scratch:
        place = Path(scratch)
        if cohort is None and experiment is not None:
            cohort = sync.fetch_cohort(experiment.data.cohort, shards=True)
        alone = set(chosen) <= WITHOUT_RAY
        if cohort is None and set(chosen) <= OWN_DATA:
            cohort = place
        if cohort is None:
            cohort = place / "cohort"
            options = {"patients": PATIENTS.get(device or "cuda", 500)} if GPU in chosen else {}
            ingest("synthetic", None, cohort, options=options, progress=screen.passing)
        with contextlib.nullcontext() if alone else session(verbose=verbose):
            first = chosen[0]
            for name in chosen:
                screen.passing(f"benchmark: {name}")
                results[name] = (
                    _model(experiment, cohort, place)
                    if name == MODEL
                    # What other parts took before it is none of its time.
                    else gpu_speed(cohort, place, device, kept, began if name == first else None)
                    if name == GPU
                    else (PARTS | LONG)[name](cohort, place)
                )
                _show(screen, name, results[name])
                write(results)
    screen.say(f"written: {output}")
    for name, figures in results.items():
        if "faults" in figures:
            raise RunError(f"--only {name}: {figures['faults']}")
    return results


def _chosen(
    only: str | None, cohort: Path | None, experiment: Experiment | None, device: str | None
) -> list[str]:
    """Return the parts to run; ConfigError or InputError for an option that none of them takes."""
    chosen = [*PARTS] if only is None else only.split(",")
    for name in chosen:
        if chosen.count(name) > 1:
            raise ConfigError(f"--only {only}: {name} is named twice; name each part once")
        if name not in (known := (*PARTS, *LONG, GPU, MODEL)):
            raise ConfigError(f"--only {name}: no such part; known: {', '.join(known)}")
    if experiment is not None and MODEL not in chosen:
        raise ConfigError(f"--only {only}: --config is of the part model; add it, or drop --config")
    if experiment is not None and (gpus := experiment.cluster.gpus_per_worker):
        raise ConfigError(
            f"cluster.gpus_per_worker={gpus:g}: the part model measures one thread of the CPU; set "
            "it to 0, or give --only gpu without --config"
        )
    if cohort is not None and set(chosen) <= OWN_DATA:
        raise ConfigError(f"--only {only} makes its own patients; drop --cohort")
    if GPU in chosen:
        check_device(device or "cuda")
    elif device is not None:
        raise ConfigError(f"--device {device}: of the part gpu alone; add --only gpu, or drop it")
    return chosen


def _model(experiment: Experiment | None, cohort: Path, place: Path) -> Numbers:
    experiment = small_experiment(cohort, place, MODEL) if experiment is None else experiment
    data = replace(experiment.data, cohort=str(cohort.absolute()))
    return model_speed(replace(experiment, data=data, output=str(place / "runs")))


def cpu(cohort: Path, place: Path) -> Figures:  # noqa: ARG001
    """How near the training step of each family comes to a matrix product."""
    return cpu_speed(place)


def vitals(cohort: Path, place: Path) -> Numbers:  # noqa: ARG001
    """CPU time of a training step of the vitals VAE over one of the published architecture."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return vitals_speed()
    finally:
        torch.set_num_threads(before)


def ingest_speed(cohort: Path, place: Path) -> Figures:  # noqa: ARG001
    """CPU seconds of an ingest of one large file, here and in DuckDB, with equal results."""
    return ingesting(place / INGEST)


PARTS: dict[str, Callable[[Path, Path], Figures]] = {
    "lvcf": lvcf,
    "loading": loading,
    "steps": steps,
    "workers": workers,
    MEMORY: memory,
    VITALS: vitals,
}
LONG: dict[str, Callable[[Path, Path], Figures]] = {
    CPU: cpu,
    DDP: ddp_speed,
    "faults": fault_speed,
    "peers": peers,
    SCALING: scaling,
    "search": search_speed,
    SIZE: size_speed,
    INGEST: ingest_speed,
}
"""Parts that take minutes, so that they run only where they are asked for."""


def _show(screen: Screen, name: str, numbers: Figures) -> None:
    for key, value in numbers.items():
        shown = value if isinstance(value, str) else f"{value:12.4g}"
        screen.say(f"{name:10} {key:52} {shown}")
        name = ""
