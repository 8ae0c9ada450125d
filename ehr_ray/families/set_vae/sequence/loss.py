"""The SeqSetVAE objective: reconstruction, and the divergence from what was expected."""

from torch import Tensor, nn

from ehr_ray.family import Batch, Scheduled, Term, Terms, unwrapped
from ehr_ray.nn.gaussian import free_bits


def loss(model: nn.Module, batch: Batch, scheduled: Scheduled, seed: int) -> Terms:
    """Return terms per set: `recon` and `kl`; for the log raw nats and the padding.

    Where sets are drawn to be decoded, each stands for its share of the stay, so the expectation
    is that of all sets. The divergence of the product from the prior is what trains the prior.
    With `capacity` C above 0 it is |KL - C| of each set (Burgess et al. 2018, eq. 8), else KL
    with free bits. With `composition_weight` there is `composition` too, as for a SetVAE.
    """
    out = model(batch, seed)
    real = batch["mask"].any(1)
    count = real.sum().float()
    shown = real[out["decoded"]] * out["weight"]
    raw = out["kl"].sum(1)
    capacity = scheduled["capacity"]
    penal = free_bits(out["kl"], scheduled["free_bits"]).sum(1)
    if capacity > 0:
        penal = (penal - capacity).abs()
    weight = unwrapped(model).config.composition_weight
    composition = Term((out["composition"] * shown).sum(), count, coef=weight)
    return {
        "recon": Term((out["recon"] * shown).sum(), count),
        **({"composition": composition} if weight else {}),
        "kl": Term((penal * real).sum(), count, coef=scheduled["beta"]),
        "kl_nats": Term((raw * real).sum(), count, coef=0.0),
        "kl_standard_nats": Term((out["kl_standard"] * real).sum(), count, coef=0.0),
        "padding": Term(out["padding"].float(), out["padded"], coef=0.0),
    }


def counts(_model: nn.Module, batch: Batch, _seed: int) -> dict[str, Tensor]:
    """Return the sets with a token, [], by term: those decoded stand for all of them."""
    return dict.fromkeys(("recon", "composition", "kl"), batch["mask"].any(1).sum())
