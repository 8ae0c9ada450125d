"""Diagonal Gaussians: divergence from the standard normal, free bits, sampling."""

import torch
from torch import Tensor

from ehr_ray.nn.noise import normal


def kl_standard(mu: Tensor, logvar: Tensor) -> Tensor:
    """Return KL(N(mu, exp logvar) || N(0, 1)) in nats, per dimension (Kingma & Welling 2014, B)."""
    mu, logvar = mu.float(), logvar.float()
    return 0.5 * (logvar.exp() + mu.square() - 1 - logvar)


def free_bits(kl: Tensor, minimum: float) -> Tensor:
    """Return each dimension's KL, at least `minimum` nats (Kingma et al. 2016, C.8).

    The minimum is per sample, not per batch mean, so that sums over ranks stay exact.
    """
    return kl.clamp(min=minimum)


def sample(mu: Tensor, logvar: Tensor, key: Tensor) -> Tensor:
    """Return mu + sigma * eps with eps a function of `key` [B] alone; mu and logvar are [B, Z]."""
    eps = normal(key, mu.shape[-1])
    return mu.float() + torch.exp(0.5 * logvar.float()) * eps
