"""What a model is worth on the tuning split, at fixed values of whatever is scheduled."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ehr_ray.family import AnyFamily
from ehr_ray.train.backend import Backend
from ehr_ray.train.feed import move
from ehr_ray.train.loader import Loader
from ehr_ray.train.meters import Metrics, Sums
from ehr_ray.train.statistics import LABEL
from ehr_ray.train.step import autocast, loss_terms

NOISE_SEED = 0
"""Validation draws the same noise each time, and training never draws it (`seeds.noise_seed`)."""


@torch.no_grad()
def validate(
    family: AnyFamily, module: nn.Module, loader: Loader, backend: Backend, *, precision: str
) -> Metrics:
    """Return `val/<term>`, the mean of each, and `val/objective` over the tuning split.

    What the family diagnoses is `val/<name>` too. A family under a task head also gets the metrics
    of its task over all its rows, as `val/auroc`, `val/auprc` and `val/f1`.
    """
    was_training = module.training
    module.eval()
    diagnosed = _diagnosed(family, module, loader, backend, precision)
    training = family.training
    task_scores, width = training.task_scores, training.task_width
    sums, scored = Sums(backend), [torch.zeros(0, width + 1, device=backend.device)]
    for batch in loader.tuning_batches(backend.rank, backend.world):
        batch = move(batch, backend.device)
        if task_scores is None:
            terms = loss_terms(family, module, batch, family.eval_scheduled, NOISE_SEED, precision)
        else:
            with autocast(backend.device.type, precision):
                terms, said = task_scores(module, batch)
            columns = [said.float().reshape(-1, width), batch[LABEL].float()[:, None]]
            scored.append(torch.cat(columns, 1))
        sums.add(terms)
    module.train(was_training)
    values = sums.means("val") | {f"val/{name}": value for name, value in diagnosed.items()}
    if training.task_metrics is not None:
        rows = _gathered(torch.cat(scored).cpu(), backend)
        found = training.task_metrics(rows[:, :-1].squeeze(1), rows[:, -1])
        values |= {f"val/{k}": v for k, v in found.items()}
    return values


def _diagnosed(
    family: AnyFamily, module: nn.Module, loader: Loader, backend: Backend, precision: str
) -> Mapping[str, float]:
    """Return the family's own diagnosis of some tuning patients: every rank measures the same."""
    diagnose = family.training.diagnose
    if diagnose is None:
        return {}
    batches = (move(batch, backend.device) for batch in loader.fixed_batches(diagnose.patients))
    with autocast(backend.device.type, precision):
        return diagnose.measure(module, batches)


def _gathered(rows: Tensor, backend: Backend) -> Tensor:
    """Return the rows [N, F] of every rank, one rank after the other.

    A backend only sums: each rank writes its rows to its own place among zeros.
    """
    counts = torch.zeros(backend.world, dtype=torch.float64)
    counts[backend.rank] = len(rows)
    sizes = backend.all_sum(counts).long().cpu().tolist()
    everything = torch.zeros(sum(sizes), rows.shape[1], dtype=torch.float64)
    first = sum(sizes[: backend.rank])
    everything[first : first + len(rows)] = rows.double()
    return backend.all_sum(everything).cpu()


def summarised(family: AnyFamily, values: Metrics) -> Metrics:
    """Return what the family makes of the means of its terms, for train and tuning alike."""
    if family.training.summarise is None:
        return {}
    summary: Metrics = {}
    for prefix in ("train/", "val/"):
        means = {k.removeprefix(prefix): v for k, v in values.items() if k.startswith(prefix)}
        summary |= {f"{prefix}{n}": v for n, v in family.training.summarise(means).items()}
    return summary
