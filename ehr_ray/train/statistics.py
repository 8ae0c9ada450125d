"""The heads of a task that read plain statistics beside a family's embedding.

B patients, W width of the embedding, F statistics, K pieces of each, H hidden, M heads.
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
from ehr_ray.events.blocks import BlockStore
from ehr_ray.events.patient_statistics import StatisticsReader
from ehr_ray.events.patients import Patient
from ehr_ray.events.vocabulary import Vocabulary
from ehr_ray.family import AnyFamily, Batch, Row
from ehr_ray.nn.piecewise_linear import PiecewiseLinear

LABEL: Final = "label"
"""Key of a row and of a batch, float [B]; the model underneath never sees it."""
STATISTICS: Final = "statistics"
"""Key of a row, float32 [F], and of a batch, [B, F]; the model underneath never sees it."""
FITTED_ROWS: Final = 20_000
"""Rows of train that quantiles are taken from at most, evenly spaced."""
SPREAD: Final = 0.5
"""Standard deviation of the factors by which heads start to differ."""


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
    """M heads on one hidden layer over embedding and statistics, each with factors of its own.

    As in TabM (Gorishniy et al. 2025) the heads share their largest matrix and differ by factors of
    what it gives, so that eight cost little more than one.
    """

    decayed = ("out",)
    """A map of what is hidden to logits; factors about 1 and shifts are none."""

    def __init__(self, width: int, num_statistics: int, task: TaskConfig) -> None:
        super().__init__()
        assert task.statistics is not None
        self.dropout, self.hidden_dropout = task.dropout, task.hidden_dropout
        self.statistic_dropout = task.statistics.dropout
        self.pieces = PiecewiseLinear(num_statistics, task.statistics.pieces)
        self.statistics = nn.Linear(
            num_statistics * (task.statistics.pieces + 1), task.hidden, bias=False
        )
        self.embedding = nn.Linear(width, task.hidden, bias=False)
        # The pieces of a statistic move together, three of them at a time or so.
        nn.init.normal_(self.statistics.weight, std=(3 * max(1, num_statistics)) ** -0.5)
        nn.init.normal_(self.embedding.weight, std=0.3 * width**-0.5)
        self.factor = nn.Parameter(1 + SPREAD * torch.randn(task.members, task.hidden))
        self.shift = nn.Parameter(torch.zeros(task.members, task.hidden))
        self.out = nn.Parameter(0.5 * task.hidden**-0.5 * torch.randn(task.members, task.hidden))
        self.bias = nn.Parameter(torch.zeros(task.members))

    def forward(self, embedding: Tensor, statistics: Tensor) -> Tensor:
        """Return logits [B, M] from a standardised embedding [B, W] and statistics [B, F]."""
        pieces = self.pieces(statistics)
        kept = F.dropout(torch.ones_like(pieces[..., :1]), self.statistic_dropout, self.training)
        hidden = self.statistics((pieces * kept).flatten(1))
        hidden = hidden + self.embedding(F.dropout(embedding, self.dropout, self.training))
        hidden = F.gelu(hidden.unsqueeze(1) * self.factor + self.shift)
        hidden = F.dropout(hidden, self.hidden_dropout, self.training)
        return (hidden * self.out).sum(-1) + self.bias

    @torch.no_grad()
    def fit(self, rows: BlockStore) -> None:
        """Fit the encoding on rows of train, and start at the label's rate there.

        Every rank reads the same rows, so all of them start alike.
        """
        chosen = np.linspace(0, len(rows) - 1, min(len(rows), FITTED_ROWS)).astype(np.int64)
        self.pieces.fit(np.stack([rows.row(int(index))[STATISTICS] for index in chosen]))
        label = rows.column(LABEL)
        rate = (label.sum() + 0.5) / (len(label) + 1)
        self.bias.fill_(float(np.log(rate) - np.log1p(-rate)))
