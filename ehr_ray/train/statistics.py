"""The heads of a task that read plain statistics beside a family's embedding.

B patients, W width of the embedding, F statistics, H hidden, M heads.
"""

import functools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ehr_ray.config.task import StatisticsConfig, TaskConfig
from ehr_ray.events.blocks import RowStore
from ehr_ray.events.patient_statistics import StatisticsReader
from ehr_ray.events.patients import Patient
from ehr_ray.events.vocabulary import Vocabulary
from ehr_ray.family import AnyFamily, Batch, Row
from ehr_ray.nn.tabular import TabularInputs
from ehr_ray.train.targets import num_outputs, start_logits

LABEL: Final = "label"
"""Key of a row and of a batch, float [B]; the model underneath never sees it."""
STATISTICS: Final = "statistics"
"""Key of a row, float32 [F], and of a batch, [B, F]; the model underneath never sees it."""
FITTED_ROWS: Final = 20_000
"""Rows of train that scales are taken from at most, evenly spaced."""
PART: Final = 4096
"""Of them, those that are held at once."""


@functools.lru_cache(maxsize=8)
def reader_of(vocabulary: Vocabulary, config: StatisticsConfig) -> StatisticsReader:
    """Return what reads the statistics of patients; made once in each process."""
    return StatisticsReader.of(vocabulary, config.max_codes, config.windows)


def with_statistics(family: AnyFamily, config: StatisticsConfig) -> AnyFamily:
    """Return the family with `statistics` in its rows and batches."""

    def transform(patient: Patient, model: Any, vocabulary: Vocabulary) -> Row:
        row = family.transform(patient, model, vocabulary)
        return {**row, STATISTICS: reader_of(vocabulary, config)(patient)}

    def collate(rows: Sequence[Row], model: Any) -> Batch:
        statistics = torch.from_numpy(np.stack([row[STATISTICS] for row in rows]))
        return {**family.collate(rows, model), STATISTICS: statistics}

    return replace(family, transform=transform, collate=collate)


class StatisticsHeads(nn.Module):
    """M networks of one hidden layer, each over the embedding and the statistics, side by side.

    They share nothing, neither what training leaves out, so their average is that of M runs.
    """

    decayed = ("statistics", "embedding", "out")
    """Maps, of every head at once; shifts are none."""

    variables: Tensor
    unmeasured: Tensor

    def __init__(self, width: int, reader: StatisticsReader, task: TaskConfig) -> None:
        super().__init__()
        assert task.statistics is not None
        num_statistics = reader.width
        self.dropout, self.hidden_dropout = task.dropout, task.hidden_dropout
        self.statistic_dropout = task.statistics.dropout
        self.variable_dropout = task.statistics.variable_dropout
        self.num_variables = int(reader.variables.max(initial=-1)) + 1
        for name in ("variables", "unmeasured"):
            self.register_buffer(name, torch.from_numpy(getattr(reader, name)), persistent=False)
        self.inputs = TabularInputs(num_statistics)
        heads, hidden, inputs = task.members, task.hidden, 2 * num_statistics

        def drawn(*shape: int, std: float) -> nn.Parameter:
            return nn.Parameter(std * torch.randn(shape))

        # Small: what a head says starts near the rate of the label.
        self.statistics = drawn(heads, inputs, hidden, std=(3 * max(1, num_statistics)) ** -0.5)
        self.embedding = drawn(heads, width, hidden, std=0.3 * width**-0.5)
        self.shift = nn.Parameter(torch.zeros(heads, 1, hidden))
        self.task, outputs = task, num_outputs(task)
        self.out = drawn(heads, hidden, outputs, std=0.5 * hidden**-0.5)
        self.bias = nn.Parameter(torch.zeros(heads, 1, outputs))

    def forward(self, embedding: Tensor, statistics: Tensor) -> Tensor:
        """Return logits [B, M], or of K classes [B, M, K].

        They are of a standardised embedding [B, W] and statistics [B, F].
        """
        inputs = self.inputs(self._measured(statistics)).flatten(1)
        hidden = self._kept(inputs, self.statistic_dropout) @ self.statistics
        hidden = hidden + self._kept(embedding, self.dropout) @ self.embedding
        hidden = F.dropout(F.gelu(hidden + self.shift), self.hidden_dropout, self.training)
        said = (hidden @ self.out + self.bias).transpose(0, 1)
        return said.squeeze(2) if said.shape[2] == 1 else said

    def _measured(self, statistics: Tensor) -> Tensor:
        """Return [B, F] with other variables left out of each row in training."""
        if not self.training or not self.variable_dropout:
            return statistics
        drawn = torch.rand(len(statistics), self.num_variables + 1, device=statistics.device)
        gone = drawn < self.variable_dropout
        gone[:, -1] = False  # what is of no variable
        return torch.where(gone[:, self.variables], self.unmeasured, statistics)

    def _kept(self, x: Tensor, rate: float) -> Tensor:
        """Return [M, B, N] of [B, N]: each head is left without other inputs in training."""
        return F.dropout(x.expand(len(self.out), *x.shape), rate, self.training)

    @torch.no_grad()
    def fit(self, rows: RowStore) -> None:
        """Fit the inputs on rows of train, and start at the label's rate, or its mean, there.

        Every rank reads the same rows, so all of them start alike.
        """
        chosen = np.linspace(0, len(rows) - 1, min(len(rows), FITTED_ROWS)).astype(np.int64)
        parts = (rows.rows(chosen[at : at + PART]) for at in range(0, len(chosen), PART))
        self.inputs.fit(np.stack([row[STATISTICS].copy() for part in parts for row in part]))
        if self.task.kind != "regression":  # whose targets are standardised
            start = start_logits(rows.column(LABEL), self.task)
            self.bias.copy_(start.expand_as(self.bias))
