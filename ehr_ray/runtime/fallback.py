"""Did the latent collapse, and what does the family train then?"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import yaml

from ehr_ray.config import Experiment
from ehr_ray.evaluation.collapse import LatentDiagnostics, latent_diagnostics
from ehr_ray.events.patients import cohort_shards, read_patients
from ehr_ray.runtime.inference import BATCH_PATIENTS, batched
from ehr_ray.train import checkpoint
from ehr_ray.train.task import family_of

RECORD = "fallback.yaml"
"""What was found and what is trained instead, in the run that is replaced."""


def fallback_of(experiment: Experiment, run: Path) -> tuple[Experiment, str] | None:
    """Return what to train instead of a trained run, and why; None if the run stands.

    Its name is the run's with `_fallback`; the finding is left in the run as `fallback.yaml`.
    """
    family = family_of(experiment)
    if family.fallback is None or family.latents is None or experiment.task is not None:
        return None
    found = tuning_latents(experiment, run)
    if found is None:
        return None
    metrics = found.metrics()
    model = family.fallback(experiment.model, metrics)
    if model is None:
        return None
    other = replace(experiment, name=f"{experiment.name}_fallback", model=model)
    reason = (
        f"{metrics['active_units']:.0f} active units, {metrics['kl_per_row']:.2f} nats a patient "
        "on tuning"
    )
    record = {"collapsed": reason, "trained_instead": other.name}
    (run / RECORD).write_text(yaml.safe_dump(record, sort_keys=False))
    return other, reason


@torch.inference_mode()
def tuning_latents(experiment: Experiment, run: Path) -> LatentDiagnostics | None:
    """Return diagnostics of the tuning patients' posteriors; None without patients or latents."""
    loaded = checkpoint.load(run)
    family, config = loaded.family, loaded.experiment.model
    mu: list[np.ndarray] = []
    logvar: list[np.ndarray] = []
    limit = experiment.evaluation.max_patients
    for shard in cohort_shards(Path(experiment.data.cohort), "tuning"):
        for group in batched(read_patients(shard, loaded.vocabulary), BATCH_PATIENTS):
            rows = [family.transform(patient, config, loaded.vocabulary) for patient in group]
            assert family.latents is not None
            found = family.latents(loaded.model, family.collate(rows, config))
            if found and sum(len(part) for part in mu) < limit:
                mu.append(found["mu"].numpy())
                logvar.append(found["logvar"].numpy())
    return latent_diagnostics(np.concatenate(mu), np.concatenate(logvar)) if mu else None
