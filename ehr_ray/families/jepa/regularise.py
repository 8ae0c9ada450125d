"""Terms that keep the states of different patients apart: B patients, D width.

They are statistics of a batch, so several workers each regularise their own share of it.
"""

import torch
from torch import Tensor

from ehr_ray.nn.noise import normal

SLICES, KNOTS, FARTHEST = 256, 17, 3.0
"""Random directions, and points of the characteristic function in each, from 0 to the farthest."""


def variance_and_covariance(state: Tensor) -> tuple[Tensor, Tensor]:
    """Return VICReg's two terms of [B, D] (Bardes et al. 2022, eq. 1 to 4).

    The mean over dimensions of max(0, 1 - std), and the mean square, times D, of the covariances
    between different dimensions.
    """
    state = state.float()
    count, width = state.shape
    if count < 2:
        return state.sum() * 0, state.sum() * 0
    centred = state - state.mean(0)
    std = (centred.square().sum(0) / (count - 1) + 1e-4).sqrt()
    with torch.autocast(state.device.type, enabled=False):
        covariance = centred.T @ centred / (count - 1)
    between = covariance.square().sum() - covariance.diagonal().square().sum()
    return (1 - std).clamp(min=0).mean(), between / width


def isotropy(state: Tensor, seed: int) -> Tensor:
    """Return how far [B, D] is from N(0, I), by Epps and Pulley's test of random projections.

    B times the mean over directions of the integral of |phi(t) - exp(-t^2 / 2)|^2 exp(-t^2 / 2),
    phi the characteristic function of the projected sample (Balestriero & LeCun 2025, SIGReg). The
    directions are functions of `seed`, so all workers test the same ones.
    """
    state = state.float()
    count, width = state.shape
    keys = torch.arange(SLICES, device=state.device) + seed
    direction = torch.nn.functional.normalize(normal(keys, width), dim=1)
    point = torch.linspace(0, FARTHEST, KNOTS, device=state.device)
    with torch.autocast(state.device.type, enabled=False):
        angle = (state @ direction.T).unsqueeze(-1) * point  # [B, SLICES, KNOTS]
    density = torch.exp(-point.square() / 2)
    apart = (angle.cos().mean(0) - density).square() + angle.sin().mean(0).square()
    # Twice the half line, by the rule of trapezia.
    return count * 2 * torch.trapezoid(apart * density, point, dim=1).mean()
