"""When the latent has collapsed, discrete codes are trained instead."""

from collections.abc import Mapping
from dataclasses import replace

from ehr_ray.families.vitals_vae.config import VitalsVAEConfig

MIN_ACTIVE_UNITS = 4
MIN_NATS = 1.0
"""A patient's divergence before free bits below which the latent says nothing."""


def fallback(config: VitalsVAEConfig, latent: Mapping[str, float]) -> VitalsVAEConfig | None:
    """Return the config to train instead, or None: the latent is used, or none was asked for.

    `latent` has `active_units` and `kl_per_row`, nats a patient before free bits, on tuning.
    """
    collapsed = latent["active_units"] < MIN_ACTIVE_UNITS or latent["kl_per_row"] < MIN_NATS
    if config.fallback is None or not collapsed:
        return None
    return replace(config, arch=config.fallback, fallback=None)
