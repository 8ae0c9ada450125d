"""A MEDS dataset to model-ready rows and its loader, here and in meds-torch-data.

Both prepare the train and tuning splits of the same files by a command of their own, from nothing,
with statistics fitted on train; both loaders then give batches of as many patients, cut to their
last tokens.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ehr_ray.commands.benchmark.peers.timing import Figures, in_turn, library
from ehr_ray.errors import RunError
from ehr_ray.events.patients import splits_of
from ehr_ray.events.schema import is_origin
from ehr_ray.experiment import Experiment, parse
from ehr_ray.runtime.data.prepared import Prepared, prepared
from ehr_ray.runtime.training.worker import loader_of
from ehr_ray.train.allocator import keep_freed_memory
from ehr_ray.train.backend import LocalBackend
from ehr_ray.train.loader import Loader
from ehr_ray.train.task import family_of

NAME: Final = "meds-torch-data"
SPLITS: Final = ("train", "tuning")
BATCH, LENGTH = 32, 512
EPOCHS: Final = 20
"""Passes over train that a loader is timed over: one takes milliseconds."""


def preparing(cohort: Path, place: Path) -> Figures:
    """Return CPU seconds of both commands and tokens per CPU second of both loaders.

    Raises RunError where a command fails or they do not see the same patients and events.
    """
    module = library("meds_torchdata")
    if isinstance(module, str):
        return {f"MEDS to model-ready, {NAME}": module}
    dataset = linked(cohort, place / "dataset")
    ours, theirs = place / "here", place / "there"
    plan = experiment(dataset, ours)
    config = place / "experiment.yaml"
    config.write_text(json.dumps(plan))  # JSON is YAML
    commands = {
        "here": [sys.executable, "-m", "ehr_ray.cli.main", "prepare", str(config)],
        NAME: [
            "MTD_preprocess",
            *(f"MEDS_dataset_dir={dataset}", f"output_dir={theirs}"),
        ],
    }
    targets = {"here": ours, NAME: theirs}
    spent = in_turn({n: partial(from_nothing, targets[n], c) for n, c in commands.items()})
    here = parse(plan)
    keep_freed_memory()  # as training does
    with prepared(here, family_of(here), on_ray=False) as data:
        figures = compared(dataset, data, theirs)
        loaders: dict[str, Callable[[], int]] = {
            "here": partial(our_tokens, _loader(here, data)),
            NAME: partial(their_tokens, batches_of(module, theirs)),
        }
        tokens = {name: read() for name, read in loaders.items()}
        read = in_turn(loaders)
    rates = {name: tokens[name] / read[name] for name in loaders}
    return {
        **{f"MEDS to model-ready {_at(n)}, CPU seconds": spent[n] for n in spent},
        f"MEDS to model-ready, CPU seconds of {NAME} over here": spent[NAME] / spent["here"],
        **figures,
        **{f"tokens an epoch of the loader {_at(n)}": tokens[n] / EPOCHS for n in tokens},
        **{f"loader {_at(n)}, million tokens per CPU second": rates[n] / 1e6 for n in rates},
        f"loader, here over {NAME}": rates["here"] / rates[NAME],
    }


def _at(name: str) -> str:
    return name if name == "here" else f"in {name}"


def linked(cohort: Path, dataset: Path) -> Path:
    """Make a MEDS dataset of a cohort's train and tuning shards, as links; return its folder.

    Statistics of codes stay behind, so that both programs fit them.
    """
    for split, shards in splits_of(cohort).items():
        if split not in SPLITS:
            continue
        (dataset / "data" / split).mkdir(parents=True)
        for number, shard in enumerate(shards):
            target = dataset / "data" / split / f"{number}.parquet"
            target.symlink_to(Path(shard).absolute())
    (dataset / "metadata").mkdir()
    for name in ("dataset.json", "subject_splits.parquet"):
        if (cohort / "metadata" / name).is_file():
            shutil.copy(cohort / "metadata" / name, dataset / "metadata" / name)
    return dataset


def experiment(dataset: Path, output: Path) -> dict[str, Any]:
    """Return the config of an event transformer, a token an event, whose rows are prepared."""
    return {
        "family": "event_transformer",
        "name": "peers",
        "output": str(output),
        "model": {"arch": "decoder", "text_model": "hashing", "max_length": LENGTH},
        "data": {"cohort": str(dataset.absolute()), "batch_size": BATCH},
        "cluster": {"num_workers": 0},
        "tracking": {"experiment": None},
    }


def from_nothing(target: Path, command: list[str]) -> None:
    """Remove what a command wrote before and run it; RunError, with its last line, if it fails.

    Programs are looked for beside this Python first.
    """
    shutil.rmtree(target, ignore_errors=True)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    command = [shutil.which(command[0], path=path) or command[0], *command[1:]]
    done = subprocess.run(
        command, env={**os.environ, "PATH": path}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip()).splitlines()
        raise RunError(
            f"--only peers: {Path(command[0]).name} ended with {done.returncode}: "
            f"{said[-1] if said else 'no word'}"
        )


def compared(dataset: Path, data: Prepared, theirs: Path) -> Figures:
    """Return patients and events of train in both; RunError where they are not the same.

    An admission gives the origin of time here and is no token, so those events may be fewer.
    """
    store = data.store("train")
    ours = len(store), int(store.sizes("phrase").sum())
    schemas = [
        pq.read_table(path, columns=["subject_id", "static_code", "measurements_per_event"])
        for path in sorted((theirs / "tokenization" / "schemas" / "train").rglob("*.parquet"))
    ]
    if not schemas:
        raise RunError(f"--only peers: {NAME} wrote no schema of train under {theirs}")
    schema = pa.concat_tables(schemas)
    dynamic = pc.sum(pc.list_flatten(schema["measurements_per_event"])).as_py() or 0
    static = pc.sum(pc.list_value_length(schema["static_code"])).as_py() or 0
    there = len(schema), int(dynamic + static)
    origins = sum(_origins(Path(p), data) for p in splits_of(dataset)["train"])
    if (ours[0], ours[1] + origins) != there:
        raise RunError(
            f"--only peers: {NAME} prepared {there[0]:,} patients and {there[1]:,} events of "
            f"train, ehr_ray {ours[0]:,} and {ours[1]:,} beside {origins:,} admissions"
        )
    return {
        "patients of train, both": float(ours[0]),
        "events of train here": float(ours[1]),
        f"events of train in {NAME} (admissions, the origin of time here, too)": float(there[1]),
    }


def _origins(shard: Path, data: Prepared) -> int:
    counts = pq.read_table(shard, columns=["code"])["code"].value_counts().to_pylist()
    return sum(c["counts"] for c in counts if is_origin(c["values"], data.vocabulary.origin))


def _loader(plan: Experiment, data: Prepared) -> Loader:
    return loader_of(plan, family_of(plan), data)


def our_tokens(loader: Loader) -> int:
    """Read some epochs of train; return the tokens of their batches."""
    steps = loader.steps(0, EPOCHS * loader.steps_per_epoch, LocalBackend())
    return sum(int(batch["mask"].sum()) for step in steps for batch in step)


def batches_of(module: ModuleType, folder: Path) -> Iterable[Any]:
    """Return their data loader of train: a row of measurements a patient, cut to the last ones."""
    config = module.MEDSTorchDataConfig(
        tensorized_cohort_dir=str(folder),
        max_seq_len=LENGTH,
        seq_sampling_strategy="to_end",
        static_inclusion_mode="omit",
        batch_mode="SM",
    )
    dataset = module.MEDSPytorchDataset(config, split="train")
    batches: Iterable[Any] = dataset.get_dataloader(batch_size=BATCH, shuffle=True)
    return batches


def their_tokens(batches: Iterable[Any]) -> int:
    """Read some epochs of their loader; return the measurements of their batches."""
    return sum(int((b.code != b.PAD_INDEX).sum()) for _ in range(EPOCHS) for b in batches)
