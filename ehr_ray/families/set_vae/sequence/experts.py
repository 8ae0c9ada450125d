"""Products of Gaussian experts, and the divergence between two Gaussians."""

from torch import Tensor


def product(
    mu_q: Tensor, logvar_q: Tensor, mu_p: Tensor, logvar_p: Tensor, gate: Tensor | float = 1.0
) -> tuple[Tensor, Tensor]:
    """Return mean and log-variance of N(mu_q, s_q)^gate N(mu_p, s_p), normalised (Hinton 2002).

    Precisions add; at gate 0 the prior is left, at a large one the set's own expert.
    """
    precise_q, precise_p = gate * (-logvar_q).exp(), (-logvar_p).exp()
    precision = precise_q + precise_p
    return (precise_q * mu_q + precise_p * mu_p) / precision, -precision.log()


def divergence(mu_q: Tensor, logvar_q: Tensor, mu_p: Tensor, logvar_p: Tensor) -> Tensor:
    """Return KL(N(mu_q, exp logvar_q) || N(mu_p, exp logvar_p)) in nats, elementwise."""
    gap = (mu_q - mu_p).square()
    ratio = ((logvar_q - logvar_p).exp() + gap * (-logvar_p).exp() - 1) / 2
    return ratio + (logvar_p - logvar_q) / 2
