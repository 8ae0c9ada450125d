"""`benchmark`: speed as ratios measured within one run, since machines differ.

Each part compares two ways of doing the same work, in turn, on the same data, with the same
threads; a ratio is that of medians. Times are wall seconds unless a name says CPU.
"""

import contextlib
import json
import multiprocessing
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from ehr_ray.commands.benchmark.cpu import cpu_speed
from ehr_ray.commands.benchmark.ddp import ddp_speed
from ehr_ray.commands.benchmark.faults import fault_speed
from ehr_ray.commands.benchmark.gpu import PATIENTS, gpu_speed
from ehr_ray.commands.benchmark.model import model_speed
from ehr_ray.commands.benchmark.peers.command import peers
from ehr_ray.commands.benchmark.peers.ingesting import ingesting
from ehr_ray.commands.benchmark.published_vitals import vitals_speed
from ehr_ray.commands.benchmark.scaling import scaling
from ehr_ray.commands.benchmark.search import search_speed
from ehr_ray.commands.benchmark.size import size_speed
from ehr_ray.commands.expand import ShardExpander
from ehr_ray.commands.ingest import ingest
from ehr_ray.errors import ConfigError, RunError
from ehr_ray.events.carry import carry_forward
from ehr_ray.events.patients import Patient, cohort_shards, read_patients
from ehr_ray.experiment import Experiment, parse
from ehr_ray.runtime.data.dataset import codes_table, vocabulary_of
from ehr_ray.runtime.data.prepared import Prepared, prepared
from ehr_ray.runtime.screen import Screen
from ehr_ray.runtime.session import session
from ehr_ray.runtime.training.launch import fit
from ehr_ray.runtime.training.start_log import read_starts
from ehr_ray.runtime.training.worker import Job, loader_of, train_here
from ehr_ray.storage import files, sync
from ehr_ray.train.backend import LocalBackend
from ehr_ray.train.task import family_of

Numbers = dict[str, float]
Figures = Mapping[str, float | str]
"""A text where a figure was left out, and why."""
WINDOW = 2880.0
MODEL = "model"
"""The part that takes a config: `model_speed`."""
GPU = "gpu"
"""The part that takes a device: `gpu_speed`."""
VITALS = "vitals"
CPU = "cpu"
DDP = "ddp"
SIZE = "size"
INGEST = "ingest"
OWN_DATA = {VITALS, CPU, SIZE, INGEST}
"""The parts that make their own patients: they need neither a cohort nor Ray."""
WARM_STEPS = 5
"""First steps of a run, in which memory is still being touched, that are not counted."""


def benchmark(
    output: Path,
    *,
    cohort: Path | None = None,
    only: str | None = None,
    verbose: bool = False,
    experiment: Experiment | None = None,
    device: str | None = None,
) -> dict[str, Figures]:
    """Run the parts, print a table, write JSON; return what was measured.

    The part `model` measures `experiment`, on its own cohort unless another is given; without one
    it measures the SetVAE the other parts train. `device` is that of the part `gpu`. Raises
    RunError, after all is written, where a part found something wrong.
    """
    chosen = [*PARTS] if only is None else only.split(",")
    for name in chosen:
        if name not in (known := (*PARTS, *LONG, GPU, MODEL)):
            raise ConfigError(f"--only {name}: no such part; known: {', '.join(known)}")
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
        if cohort is None and experiment is not None and chosen == [MODEL]:
            cohort = sync.fetch(experiment.data.cohort)
        alone = set(chosen) <= {MODEL, GPU, DDP, "peers", *OWN_DATA}
        if cohort is None and set(chosen) <= OWN_DATA:
            cohort = place
        if cohort is None:
            cohort = place / "cohort"
            options = {"patients": PATIENTS.get(device or "cuda", 500)} if chosen == [GPU] else {}
            ingest("synthetic", None, cohort, options=options, progress=screen.passing)
        with contextlib.nullcontext() if alone else session(verbose=verbose):
            for name in chosen:
                screen.passing(f"benchmark: {name}")
                results[name] = (
                    _model(experiment, cohort, place)
                    if name == MODEL
                    else gpu_speed(cohort, place, device, kept)
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


def _model(experiment: Experiment | None, cohort: Path, place: Path) -> Numbers:
    experiment = _experiment(cohort, place, MODEL) if experiment is None else experiment
    data = replace(experiment.data, cohort=str(cohort.absolute()))
    return model_speed(replace(experiment, data=data, output=str(place / "runs")))


def lvcf(cohort: Path, place: Path) -> Numbers:  # noqa: ARG001
    """Tokens a CPU second of the array function beside a pandas one, on one core; equal output."""
    vocabulary = vocabulary_of(cohort, 1)
    patients = list(read_patients(cohort_shards(cohort, "train")[0], vocabulary))[:200]
    few = patients[:20]
    frames = [_frame(patient) for patient in few]
    fast, slow = _carry_all(few), [carry_in_pandas(frame, WINDOW) for frame in frames]
    for ours, theirs in zip(fast, slow, strict=True):
        np.testing.assert_array_equal(ours.code, theirs["code"])
        np.testing.assert_allclose(ours.age, theirs["age"])
    tokens = sum(len(t.code) for t in _carry_all(patients))
    rate = tokens / _cpu(lambda: _carry_all(patients), rounds=5)
    reference = sum(map(len, slow)) / _cpu(
        lambda: [carry_in_pandas(frame, WINDOW) for frame in frames], rounds=1
    )
    return {
        "million tokens per CPU second": rate / 1e6,
        "pandas, million tokens per CPU second": reference / 1e6,
        "ratio": rate / reference,
    }


def loading(cohort: Path, place: Path) -> Numbers:
    """Patients a second from the loader, beside the bound of batches that are already made."""
    with _prepared(_experiment(cohort, place, "loading"), on_ray=True) as (experiment, data):
        family = family_of(experiment)
        loader = loader_of(experiment, family, data)
        patients = len(loader.train)

        def read() -> None:
            for _ in loader.train_steps(0, 0, 0, 1):
                pass

        made = list(loader.train_steps(0, 0, 0, 1))

        def touch() -> None:
            for step in made:
                for batch in step:
                    batch["value"].sum()

        read()
        ours, bound = patients / _wall(read, 5), patients / _wall(touch, 5)
        steps = _wall(lambda: _train_bare(experiment, data, place / "bound"), 1)
        trained = patients * experiment.train.max_epochs / steps
    return {
        "patients per second": ours,
        "bound: batches made before": bound,
        "patients per second that training uses": trained,
        "loader over training": ours / trained,
    }


def steps(cohort: Path, place: Path) -> Numbers:
    """Step throughput of the Ray backend over the bare loop on the same batches, one worker."""
    bare: list[float] = []
    ray_: list[float] = []
    first_bare: list[float] = []
    first_ray: list[float] = []
    experiment = _experiment(cohort, place, "steps", epochs=3)
    with _prepared(experiment, on_ray=True) as (experiment, data):
        for turn in range(3):
            for name, times, first in (("bare", bare, first_bare), ("ray", ray_, first_ray)):
                run = place / f"steps-{name}-{turn}"
                started = time.monotonic()
                ended = (_bare_process if name == "bare" else _on_ray)(experiment, data, run, 1)
                times += list(np.diff(ended[WARM_STEPS:]))
                first.append(ended[0] - started)
    return {
        "bare, ms per step": 1000 * statistics.median(bare),
        "Ray, ms per step": 1000 * statistics.median(ray_),
        "Ray over bare, step throughput": statistics.median(bare) / statistics.median(ray_),
        "bare, seconds to first step": statistics.median(first_bare),
        "Ray, seconds to first step": statistics.median(first_ray),
    }


def workers(cohort: Path, place: Path) -> Numbers:
    """Step throughput of two DDP workers over one, at the same global batch."""
    times: dict[int, list[float]] = {1: [], 2: []}
    if (os.cpu_count() or 1) < 2:
        raise ConfigError("--only workers: needs 2 CPUs")
    with _prepared(_experiment(cohort, place, "workers", epochs=3), on_ray=True) as (base, data):
        for turn in range(2):
            for world in times:
                ended = _on_ray(base, data, place / f"workers-{world}-{turn}", world)
                times[world] += list(np.diff(ended[WARM_STEPS:]))
    one, two = statistics.median(times[1]), statistics.median(times[2])
    return {
        "1 worker, ms per step": 1000 * one,
        "2 workers, ms per step": 1000 * two,
        "2 workers over 1, step throughput": one / two,
    }


def memory(cohort: Path, place: Path) -> Numbers:  # noqa: ARG001
    """Peak memory of `expand` on a synthetic cohort and on one ten times larger."""
    peaks = []
    for patients in (300, 3000):
        folder = place / f"memory-{patients}"
        ingest("synthetic", None, folder, options={"patients": patients}, splits="all:train")
        peaks.append(_in_process(_expand_peak, folder, place / f"expanded-{patients}"))
    return {
        "MiB, 300 patients": peaks[0],
        "MiB, 3000 patients": peaks[1],
        "ratio": peaks[1] / peaks[0],
    }


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
    "memory": memory,
    VITALS: vitals,
}
LONG: dict[str, Callable[[Path, Path], Figures]] = {
    CPU: cpu,
    DDP: ddp_speed,
    "faults": fault_speed,
    "peers": peers,
    "scaling": scaling,
    "search": search_speed,
    SIZE: size_speed,
    INGEST: ingest_speed,
}
"""Parts that take minutes, so that they run only where they are asked for."""


def carry_in_pandas(events: pd.DataFrame, window: float) -> pd.DataFrame:
    """Last value carried forward as it is usually written: a loop over minutes, in pandas."""
    parts, seen = [], pd.DataFrame()
    minute: Any  # pandas types it as any scalar
    for index, (minute, live) in enumerate(events.groupby("minute", sort=True)):
        live = live.drop_duplicates("code", keep="last").assign(last=minute)
        if len(seen):
            old = seen[~seen["code"].isin(live["code"])]
            fresh = old["static"] | (minute - old["last"] <= window)
            carried = old[fresh & (old["value"].notna() | old["static"])]
        else:
            old = carried = seen
        rows = pd.concat([live, carried]) if len(carried) else live
        parts.append(rows.assign(set_index=index, age=minute - rows["last"]).sort_values("code"))
        seen = pd.concat([old, live]) if len(old) else live
    return pd.concat(parts)


def _frame(patient: Patient) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "minute": patient.minute,
            "code": patient.code,
            "value": patient.value,
            "static": patient.static,
        }
    )


def _carry_all(patients: list[Patient]) -> list[Any]:
    return [carry_forward(p.minute, p.code, p.value, p.static, window=WINDOW) for p in patients]


def _experiment(cohort: Path, place: Path, name: str, epochs: int = 1) -> Experiment:
    return parse(
        {
            "family": "set_vae",
            "name": name,
            "output": str(place / "runs"),
            "model": {"sets_per_patient": 4, "width": 64, "reduced": 64, "latent": 16},
            "data": {"cohort": str(cohort.absolute()), "batch_size": 32},
            "train": {"max_epochs": epochs},
            "tracking": {"experiment": None},
        }
    )


class _prepared:  # noqa: N801 - reads as the function it wraps
    """`prepared` with the experiment beside the data."""

    def __init__(self, experiment: Experiment, *, on_ray: bool) -> None:
        self._experiment = experiment
        self._inner = prepared(experiment, family_of(experiment), on_ray=on_ray)

    def __enter__(self) -> tuple[Experiment, Prepared]:
        return self._experiment, self._inner.__enter__()

    def __exit__(self, *error: Any) -> None:
        self._inner.__exit__(*error)


def _job(experiment: Experiment, data: Prepared, run: Path) -> Job:
    run.mkdir(parents=True, exist_ok=True)
    return Job(experiment, data, run, run / ".progress.jsonl", None, run / "starts")


def _train_bare(experiment: Experiment, data: Prepared, run: Path) -> None:
    torch.set_num_threads(1)
    train_here(_job(experiment, data, run), LocalBackend())


def _bare_process(experiment: Experiment, data: Prepared, run: Path, world: int) -> list[float]:  # noqa: ARG001
    """Train in a plain process, as new as a Ray worker is."""
    _in_process(_train_bare, experiment, data, run)
    return read_starts(run / "starts")[0].ended


def _on_ray(experiment: Experiment, data: Prepared, run: Path, world: int) -> list[float]:
    cluster = replace(experiment.cluster, num_workers=world)
    fit(_job(replace(experiment, cluster=cluster), data, run))
    return next(start.ended for start in read_starts(run / "starts") if start.rank == 0)


def _expand_peak(cohort: Path, target: Path) -> float:
    """Return the peak resident memory of this process after expanding the cohort, in MiB."""
    from ehr_ray.events.vocabulary import Vocabulary

    expander = ShardExpander(Vocabulary.from_table(codes_table(cohort)), WINDOW, ())
    for index, shard in enumerate(cohort_shards(cohort, "train")):
        expander({"shard": str(shard), "target": str(target / f"{index}.parquet")})
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _in_process(function: Callable[..., Any], *args: Any) -> Any:
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(function, args)


def _cpu(function: Callable[[], Any], rounds: int) -> float:
    return _median(function, rounds, time.process_time)


def _wall(function: Callable[[], Any], rounds: int) -> float:
    return _median(function, rounds, time.perf_counter)


def _median(function: Callable[[], Any], rounds: int, clock: Callable[[], float]) -> float:
    spent = []
    for _ in range(rounds):
        started = clock()
        function()
        spent.append(clock() - started)
    return statistics.median(spent)


def _show(screen: Screen, name: str, numbers: Figures) -> None:
    for key, value in numbers.items():
        shown = value if isinstance(value, str) else f"{value:12.4g}"
        screen.say(f"{name:10} {key:52} {shown}")
        name = ""
