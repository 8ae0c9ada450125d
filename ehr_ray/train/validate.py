"""Means of the loss terms over the tuning split."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ehr_ray.family import AnyFamily
from ehr_ray.train.backend import Backend
from ehr_ray.train.loader import Loader
from ehr_ray.train.meters import Metrics, Sums
from ehr_ray.train.step import autocast, loss_terms, move
from ehr_ray.train.task import LABEL, ranking_metrics


@torch.no_grad()
def evaluate(
    family: AnyFamily, module: nn.Module, loader: Loader, backend: Backend, *, precision: str
) -> Metrics:
    """Return the mean of each term, and their weighted sum, over the tuning split.

    A family under a task head also gets `val/auroc`, `val/auprc` and `val/f1` of all its rows.
    """
    sums = Sums(backend)
    knobs = {**family.eval_knobs, "noise_seed": 0}
    was = module.training
    module.eval()
    measured: Mapping[str, float] = {}
    if family.diagnose is not None:
        chosen = (
            move(batch, backend.device) for batch in loader.fixed_batches(family.diagnose.patients)
        )
        with autocast(backend.device.type, precision):
            measured = family.diagnose.measure(module, chosen)
    scored = [torch.zeros(0, 2)]
    for batch in loader.tuning_batches(backend.rank, backend.world):
        batch = move(batch, backend.device)
        sums.add(loss_terms(family, module, batch, knobs, precision))
        if family.outcome is not None:
            logit = family.outcome(module, batch)
            scored.append(torch.stack([logit.float(), batch[LABEL].float()], 1).cpu())
    module.train(was)
    values = sums.means("val") | {f"val/{name}": value for name, value in measured.items()}
    if family.outcome is not None:
        rows = _gathered(torch.cat(scored), backend)
        values |= {f"val/{k}": v for k, v in ranking_metrics(rows[:, 0], rows[:, 1]).items()}
    return values


def _gathered(rows: Tensor, backend: Backend) -> Tensor:
    """Return the rows [N, F] of every rank, one rank after the other."""
    counts = torch.zeros(backend.world, dtype=torch.float64)
    counts[backend.rank] = len(rows)
    sizes = backend.all_sum(counts).long().cpu().tolist()
    everything = torch.zeros(sum(sizes), rows.shape[1], dtype=torch.float64)
    first = sum(sizes[: backend.rank])
    everything[first : first + len(rows)] = rows.double()
    return backend.all_sum(everything).cpu()


def summary(family: AnyFamily, values: Metrics) -> Metrics:
    """Return what the family makes of the means of its terms, for train and tuning alike."""
    if family.summarise is None:
        return {}
    found: Metrics = {}
    for prefix in ("train/", "val/"):
        means = {k.removeprefix(prefix): v for k, v in values.items() if k.startswith(prefix)}
        found |= {f"{prefix}{name}": v for name, v in family.summarise(means).items()}
    return found
