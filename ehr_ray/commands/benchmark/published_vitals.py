"""`benchmark --only vitals`: a training step of the vitals VAE beside that of the published one.

Both steps are taken in turn in one process, on one thread and the same batch, branch losses on, and
timed in CPU seconds of that thread. B patients, H hours, V vitals.
"""

import itertools
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ehr_ray.events.options import VITALS
from ehr_ray.events.vocabulary import Vocabulary
from ehr_ray.experiment import parse
from ehr_ray.family import Batch
from ehr_ray.nn.gaussian import kl_standard
from ehr_ray.registry import get_family
from ehr_ray.train.backend import LocalBackend
from ehr_ray.train.meters import Sums
from ehr_ray.train.optim import make_optimizer
from ehr_ray.train.seeds import scheduled_at
from ehr_ray.train.step import OptimizerStep

Numbers = dict[str, float]
BATCH, HOURS, LATENT = 64, 745, 32
WIDTH, START = 64, 8
"""Channels and steps a branch of the published decoder starts from."""
OBSERVED = 0.108
"""Share of cells observed, as in the cohorts the published step was measured on."""
WARM, STEPS = 2, 10
DOWN = (
    ((3, 2, 32), (5, 2, 64), (5, 2, 64)),
    ((15, 4, 32), (31, 4, 64)),
    ((63, 8, 32), (127, 8, 64)),
    ((255, 16, 64),),
)
"""(kernel, stride, channels) of the published encoder's branches."""
UP = (
    ((5, 2, 64), (5, 2, 32), (5, 2, 32), (5, 2, 16), (5, 2, 16), (5, 2, 16)),
    ((15, 4, 64), (15, 4, 32), (15, 4, 16)),
    ((31, 8, 64), (31, 8, 32)),
    ((63, 16, 32), (63, 8, 16)),
)
"""The same of its decoder: transposed convolutions from 8 steps on."""


def vitals_speed() -> Numbers:
    """Return CPU milliseconds of both steps and their ratio: least and median of the steps."""
    torch.manual_seed(0)
    observed = torch.rand(BATCH, HOURS, len(VITALS)) < OBSERVED
    batch = {
        "subject_id": torch.arange(BATCH),
        "value": torch.randn(observed.shape) * observed,
        "observed": observed,
    }
    takes = {"ours": _our_step(batch), "published": _published_step(batch)}
    spent: dict[str, list[float]] = {name: [] for name in takes}
    for _ in range(WARM + STEPS):
        for name, take in takes.items():
            started = time.thread_time()
            take()
            spent[name].append(1000 * (time.thread_time() - started))
    least, median = (
        {name: float(choose(times[WARM:])) for name, times in spent.items()}
        for choose in (min, statistics.median)
    )
    return {
        "CPU ms per step, least": least["ours"],
        "CPU ms per step, median": median["ours"],
        "published step, CPU ms, least": least["published"],
        "published step, CPU ms, median": median["published"],
        "ours over published, least": least["ours"] / least["published"],
        "ours over published, median": median["ours"] / median["published"],
    }


def _our_step(batch: Batch) -> Callable[[], object]:
    """Return the training loop's own step at the default config."""
    experiment = parse({"family": "vitals_vae", "name": "speed", "data": {"cohort": "none"}})
    family, backend = get_family("vitals_vae"), LocalBackend()
    names = tuple(sorted(code for vital in VITALS for code in vital.codes))
    ones = np.ones(len(names))
    words = Vocabulary(names, ones.astype(np.int64), 0 * ones, ones)
    model = family.build(experiment.model, words).train()
    optimizer = make_optimizer(model, experiment.train)
    # Noise and hidden cells are drawn anew at each step; the schedules are where training ends.
    scheduled = {**scheduled_at(experiment, 10**6, 1), **family.eval_scheduled}
    seeds = itertools.count(1)
    take_step = OptimizerStep(experiment, family, model, optimizer, backend, Sums(backend))

    def step() -> None:
        take_step([batch], scheduled, next(seeds))

    return step


def _published_step(batch: Batch) -> Callable[[], object]:
    model = Published().train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, weight_decay=1e-5)

    def step() -> None:
        optimizer.zero_grad()
        curves, mu, logvar = model(batch["value"])
        mask, errors = batch["observed"].float(), 0.0
        for curve in curves:
            errors = errors + ((curve - batch["value"]).square() * mask).sum() / mask.sum()
        penalty = (kl_standard(mu, logvar) - 2.0).clamp(min=0).mean()
        (errors / len(curves) + 0.5 * penalty).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return step


class Published(nn.Module):
    """The published architecture, made anew from its description: 1,092,423 parameters.

    Every convolution is followed by batch normalisation, a leaky ReLU and dropout; branches of the
    encoder are averaged over all hours, those of the decoder padded or cut to them.
    """

    def __init__(self) -> None:
        super().__init__()
        vitals = len(VITALS)
        self.down = nn.ModuleList([_published_branch(vitals, layers, up=False) for layers in DOWN])
        self.merge = nn.Linear(WIDTH * len(DOWN), 2 * WIDTH)
        self.mu, self.logvar = nn.Linear(2 * WIDTH, LATENT), nn.Linear(2 * WIDTH, LATENT)
        self.unfold = nn.Linear(LATENT, len(UP) * WIDTH * START)
        self.up = nn.ModuleList([_published_branch(WIDTH, layers, up=True) for layers in UP])
        self.out = nn.ModuleList([nn.Conv1d(u[-1][2], vitals, 3, padding=1) for u in UP])
        self.mix = nn.Conv1d(len(UP) * vitals, vitals, 1)

    def forward(self, value: Tensor) -> tuple[list[Tensor], Tensor, Tensor]:
        """Return the merged curves and the branches' [B, H, V], and the posterior [B, Z]."""
        x = value.transpose(1, 2)
        pooled = [F.adaptive_avg_pool1d(branch(x), 1).squeeze(-1) for branch in self.down]
        seen = F.leaky_relu(self.merge(torch.cat(pooled, 1)), 0.2)
        mu, logvar = self.mu(seen), self.logvar(seen)
        z = mu + torch.randn_like(mu) * (0.5 * logvar).exp()
        starts = self.unfold(z).unflatten(1, (len(UP), WIDTH, START)).unbind(1)
        curves = [
            out(_at_length(branch(start), value.shape[1]))
            for branch, out, start in zip(self.up, self.out, starts, strict=True)
        ]
        merged = self.mix(torch.cat(curves, 1))
        return [curve.transpose(1, 2) for curve in (merged, *curves)], mu, logvar


def _published_branch(
    width: int, layers: tuple[tuple[int, int, int], ...], *, up: bool
) -> nn.Module:
    blocks: list[nn.Module] = []
    for kernel, stride, channels in layers:
        pad = kernel // 2
        blocks.append(
            nn.ConvTranspose1d(width, channels, kernel, stride, pad, stride - 1)
            if up
            else nn.Conv1d(width, channels, kernel, stride, pad)
        )
        blocks += [nn.BatchNorm1d(channels), nn.LeakyReLU(0.2), nn.Dropout(0.2)]
        width = channels
    return nn.Sequential(*blocks)


def _at_length(x: Tensor, length: int) -> Tensor:
    """Return x [B, C, T] cut at the right, or padded there by its last value."""
    if x.shape[-1] >= length:
        return x[..., :length]
    return F.pad(x, (0, length - x.shape[-1]), mode="replicate")
