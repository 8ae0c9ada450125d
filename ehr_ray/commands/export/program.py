"""`export --torch-export`: `predict` as a program that torch runs without this package.

It is traced by torch.export on made-up patients, with batches and records of any size, and kept
only if it says the same as the model of others.
"""

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import torch
from torch import nn

from ehr_ray.errors import InputError
from ehr_ray.events.patients import Patient, patients_of
from ehr_ray.events.schema import EVENTS, ORIGIN_CODES
from ehr_ray.events.vocabulary import Vocabulary
from ehr_ray.family import AnyFamily, Batch
from ehr_ray.train.predictor import Predictor
from ehr_ray.train.run_model import RunModel

PROGRAM: Final = "model.pt2"
NOT_READ: Final = ("place",)
"""Tensors that say where real tokens lie: of use to the kernels of a GPU alone."""
TRACED, OTHERS = (8, 24), (5, 40)
"""Patients, and events of each at least: those it is traced on, those it is checked on."""
VALUED, OTHER = 32, 8
"""Codes with values and without any that they have."""
TOLERANCE: Final = 1e-4
"""Of the largest absolute number of an output, which a program may differ by."""


class _Predict(nn.Module):
    def __init__(self, family: AnyFamily, model: nn.Module) -> None:
        super().__init__()
        self.model, self._predict = model, family.predict

    def forward(self, batch: Batch) -> Batch:
        return self._predict(self.model, batch)


def write_program(model: RunModel, path: Path) -> dict[str, str]:
    """Write `predict` on the CPU to a file; return its inputs: the name, type and axes of each.

    A program takes a dict of tensors, as the family's `collate` makes them, and gives a dict of
    tensors, the first axis patients. Raises InputError for a model that torch cannot trace, or
    whose program says something else.
    """
    predictor = Predictor.of(model)
    traced, others = (
        predictor.batch(predictor.rows(_made_up(model.vocabulary, *size)))
        for size in (TRACED, OTHERS)
    )
    for batch in (traced, others):
        for name in NOT_READ:
            batch.pop(name, None)
    if alone := sorted(n for n, t in traced.items() if any(size < 2 for size in t.shape)):
        raise InputError(
            "--torch-export: made-up patients give this model one place along an axis of "
            f"{', '.join(alone)}, of which torch would make a program for no other number; export "
            "it without"
        )
    module = _Predict(model.family, model.model).eval()
    auto = torch.export.Dim.AUTO
    shapes = {name: dict.fromkeys(range(t.ndim), auto) for name, t in traced.items()}
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.export.export(module, (traced,), dynamic_shapes=(shapes,), strict=False)
            _check(program.module()(others), module(others))
            _without_places(program)
            torch.export.save(program, path)
    except InputError:
        raise
    except Exception as error:  # torch has many, none of them about anybody's data
        reason = str(error).strip().partition("\n")[0][:120]
        raise InputError(
            f"--torch-export: a model of {model.family.name} is no program, since what it computes "
            f"depends on the data ({type(error).__name__}: {reason}); export it without"
        ) from error
    return {
        name: f"{str(tensor.dtype).removeprefix('torch.')}, {tensor.ndim} axes"
        for name, tensor in traced.items()
    }


def _check(found: Batch, wanted: Batch) -> None:
    for name, tensor in wanted.items():
        here = found[name]
        if tensor.numel() == 0 or not tensor.is_floating_point():
            same = torch.equal(here, tensor)
        else:
            most = float(tensor.abs().nan_to_num().max())
            same = torch.allclose(here, tensor, 0, TOLERANCE * max(most, 1e-6), equal_nan=True)
        if not same:
            raise InputError(
                f"--torch-export: the program's {name} is not the model's on patients of another "
                "number and length; export it without"
            )


def _without_places(program: "torch.export.ExportedProgram") -> None:
    """Drop from each node where the code that made it stands on this machine."""
    for graph in program.graph_module.modules():
        for node in graph.graph.nodes if isinstance(graph, torch.fx.GraphModule) else ():
            node.meta.pop("stack_trace", None)


def _made_up(vocabulary: Vocabulary, patients: int, events: int) -> Iterator[Patient]:
    """Yield patients with events within two days, with values as train has them.

    Of the most frequent codes, which a model has chosen if it reads only some; each eighth event is
    an admission, which begins a row where rows are admissions.
    """
    rng = np.random.default_rng(patients)
    frequent = np.argsort(-vocabulary.count, kind="stable")
    valued = vocabulary.valued[frequent]
    drawn = np.concatenate([frequent[valued][:VALUED], frequent[~valued][:OTHER]])
    sizes = events + np.arange(patients)
    subject = np.repeat(np.arange(patients), sizes)
    total = int(sizes.sum())
    minute = np.sort(rng.integers(0, 2880, total) + 2880 * subject)
    code = rng.choice(drawn, total)
    value = vocabulary.location[code] + vocabulary.scale[code] * rng.normal(size=total)
    time = (minute - 2880 * subject) * 60_000_000 + 1_600_000_000_000_000
    names = np.array(vocabulary.codes, object)[code]
    place = np.arange(total) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    names[place % 8 == 0] = ORIGIN_CODES[0]
    table = pa.table(
        {
            "subject_id": subject,
            "time": pa.array(time, pa.int64()).cast(pa.timestamp("us")),
            "code": pa.array(names, pa.string()),
            "numeric_value": pa.array(np.where(vocabulary.valued[code], value, np.nan)),
        }
    )
    yield from patients_of(table.select(EVENTS.names).cast(EVENTS), vocabulary)
