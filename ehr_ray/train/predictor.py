"""A trained model over patients: transform, collate and predict, the same way for every user."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ehr_ray.events.batched import batched
from ehr_ray.events.patients import Patient
from ehr_ray.events.vocabulary import Vocabulary
from ehr_ray.family import AnyFamily, Batch, Row
from ehr_ray.train.checkpoint import Loaded
from ehr_ray.train.feed import move
from ehr_ray.train.numerics import products
from ehr_ray.train.step import autocast

BATCH_PATIENTS = 64
"""Patients predicted together: enough to fill the cores, few enough for any model's memory."""
Output = Callable[[nn.Module, Batch], Batch]
"""(model, batch) to tensors by name: `Family.predict` and the functions of `Evaluation`."""


@dataclass(frozen=True, eq=False)
class Predictor:
    """A model with what turns patients into its batches.

    Args:
        family: whose transform and collate are used.
        config: the `model` section of its experiment.
        vocabulary: of the cohort it was trained on.
        model: on any device, in the mode it is to predict in; None for rows and batches alone, as
            baselines read them.
        precision: of matrix products on a GPU, as `train.precision`; on the CPU it is float32.
        matmul_precision: of float32 products and convolutions on a GPU, as in `train`.
    """

    family: AnyFamily
    config: Any
    vocabulary: Vocabulary
    model: nn.Module | None = None
    precision: str = "float32"
    matmul_precision: str = "highest"

    @classmethod
    def of(cls, loaded: Loaded) -> "Predictor":
        """Return the predictor of a loaded checkpoint, in the precision it was trained in."""
        experiment, plan = loaded.experiment, loaded.experiment.train
        given = (loaded.family, experiment.model, loaded.vocabulary, loaded.model)
        return cls(*given, plan.precision, plan.matmul_precision)

    def rows(self, patients: Iterable[Patient]) -> list[Row]:
        """Return the model-ready row of each patient."""
        return [self.family.transform(p, self.config, self.vocabulary) for p in patients]

    def batch(self, rows: Sequence[Row]) -> Batch:
        """Return rows as one batch, on the CPU."""
        return self.family.collate(rows, self.config)

    @torch.no_grad()
    def outputs(self, batch: Batch, function: Output | None = None) -> Batch:
        """Return the outputs of `function`, the family's `predict` unless given, on the CPU.

        Numbers are float32 whatever they were computed in.
        """
        assert self.model is not None
        device = next(self.model.parameters()).device
        # What few CPUs multiply fast is no gain there, and results do not hang on the machine.
        precision = "float32" if device.type == "cpu" else self.precision
        how = contextlib.nullcontext() if device.type == "cpu" else products(self.matmul_precision)
        with how, autocast(device.type, precision):
            outputs = (function or self.family.predict)(self.model, move(batch, device))
        reduced = torch.bfloat16
        return {n: (v.float() if v.dtype == reduced else v).cpu() for n, v in outputs.items()}

    def over_patients(
        self,
        patients: Iterable[Patient],
        function: Output | None = None,
        size: int = BATCH_PATIENTS,
    ) -> Iterator[Batch]:
        """Yield the outputs of `size` patients at a time."""
        for group in batched(patients, size):
            yield self.outputs(self.batch(self.rows(group)), function)
