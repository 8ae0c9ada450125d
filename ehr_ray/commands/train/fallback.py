"""Did the latent collapse, by more than one seed, and what does the family train then?"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from ehr_ray.evaluation.metrics.collapse import LatentDiagnostics, latent_diagnostics
from ehr_ray.events.patients import cohort_shards, read_patients
from ehr_ray.experiment import Experiment
from ehr_ray.storage import copies, files, sync
from ehr_ray.train import checkpoint
from ehr_ray.train.predictor import Predictor
from ehr_ray.train.task import family_of

RECORD = "fallback.yaml"
"""The verdict on each seed and which run stands, in the first run's directory."""
NEEDED = 2
"""Seeds that must agree, so three are trained at most: one run may collapse by chance."""


@dataclass(frozen=True)
class Verdict:
    """What one seed's latent looks like on tuning, and what the family would train instead."""

    experiment: Experiment
    reason: str
    instead: Experiment | None

    @property
    def collapsed(self) -> bool:
        """Whether the family would train something else."""
        return self.instead is not None

    def __str__(self) -> str:
        """Return the verdict as one line."""
        word = "has collapsed" if self.collapsed else "is used"
        return f"{self.experiment.name}: the latent {word} ({self.reason})"


def resolve_collapse(
    experiment: Experiment,
    run: Path,
    train_seed: Callable[[Experiment], Path],
    say: Callable[[str], None],
) -> Experiment:
    """Return the experiment whose run stands: this one, another seed of it, or the fallback.

    A trained run whose latent is used stands, at no further cost. One that has collapsed is trained
    again by `train_seed` with the next seeds, as `<name>_seed<number>`, until two of at most three
    agree; the fallback, `<name>_fallback`, is left for the caller to train. Verdicts are said as
    they fall, and left in `fallback.yaml` of the first run. Nothing here is lost by a kill: the
    runs resume, and their verdicts are taken again.
    """
    first = verdict_of(experiment, run)
    if first is None or not first.collapsed:
        return experiment
    verdicts = [first]
    say(str(first))
    while not _decided(verdicts):
        seed = experiment.seed + len(verdicts)
        other = replace(experiment, name=f"{experiment.name}_seed{seed}", seed=seed)
        say(f"{other.name}: training the same with seed {seed}, since one seed decides nothing")
        found = verdict_of(other, train_seed(other))
        assert found is not None
        verdicts.append(found)
        say(str(found))
    stands, record = _outcome(verdicts)
    with copies.unsent(run):
        files.write_text(run / RECORD, yaml.safe_dump(record, sort_keys=False))
        sync.push(run / RECORD)
    how = "training {} in its place" if record["trained_instead"] else "{} stands"
    say(f"{experiment.name}: collapsed with {record['collapsed']}; {how.format(stands.name)}")
    return stands


def verdict_of(experiment: Experiment, run: Path) -> Verdict | None:
    """Judge a trained run; None if its family has no fallback or there is nothing to judge by."""
    family = family_of(experiment)
    fallback = family.training.fallback
    if fallback is None or family.evaluation.latents is None or experiment.task is not None:
        return None
    found = tuning_latents(experiment, run)
    if found is None:
        return None
    metrics = found.metrics()
    model = fallback(experiment.model, metrics)
    reason = (
        f"{metrics['active_units']:.0f} active units, {metrics['kl_per_row']:.2f} nats a patient "
        "on tuning"
    )
    if model is None:
        return Verdict(experiment, reason, None)
    other = replace(experiment, name=f"{experiment.name}_fallback", model=model)
    return Verdict(experiment, reason, other)


def _decided(verdicts: list[Verdict]) -> bool:
    collapsed = sum(verdict.collapsed for verdict in verdicts)
    return max(collapsed, len(verdicts) - collapsed) >= NEEDED


def _outcome(verdicts: list[Verdict]) -> tuple[Experiment, dict[str, Any]]:
    """Return what stands, and the record of why."""
    collapsed = sum(verdict.collapsed for verdict in verdicts)
    switch = collapsed >= NEEDED
    used = [verdict.experiment for verdict in verdicts if not verdict.collapsed]
    stands = verdicts[0].instead if switch else used[0]
    assert stands is not None
    record = {
        "verdicts": {
            verdict.experiment.name: {
                "seed": verdict.experiment.seed,
                "collapsed": verdict.collapsed,
                "reason": verdict.reason,
            }
            for verdict in verdicts
        },
        "collapsed": f"{collapsed} of {len(verdicts)} seeds",
        "stands": stands.name,
        "trained_instead": stands.name if switch else None,
    }
    return stands, record


def tuning_latents(experiment: Experiment, run: Path) -> LatentDiagnostics | None:
    """Return diagnostics of the tuning patients' posteriors; None without patients or latents.

    Of `evaluation.max_patients` patients, or the batch that passes them.
    """
    predictor = Predictor.of(checkpoint.load(run))
    latents, limit = predictor.family.evaluation.latents, experiment.evaluation.max_patients
    assert latents is not None
    batches = chain.from_iterable(
        predictor.over_patients(read_patients(sync.in_store(shard), predictor.vocabulary), latents)
        for shard in cohort_shards(experiment.cohort, "tuning")
    )
    mu: list[np.ndarray] = []
    logvar: list[np.ndarray] = []
    for outputs in batches:
        if not outputs or sum(len(part) for part in mu) >= limit:
            break
        mu.append(outputs["mu"].numpy())
        logvar.append(outputs["logvar"].numpy())
    return latent_diagnostics(np.concatenate(mu), np.concatenate(logvar)) if mu else None
