"""What a task's heads are judged by, for each kind of label: truth values, numbers and classes.

B rows, M heads, K classes.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from ehr_ray.config.task import TaskConfig
from ehr_ray.events.auroc import auroc
from ehr_ray.family import Select, Term, Terms
from ehr_ray.nn.focal import focal

SCALE_BUFFERS: Final = ("target_location", "target_spread")
"""Mean and standard deviation of a regression's labels in train, in the checkpoint."""
_LOWER_IS_BETTER: Final = ("mae", "rmse")


def num_outputs(task: TaskConfig) -> int:
    """Return how many numbers a head gives: one a class, else one."""
    return len(task.classes) or 1


def selection(task: TaskConfig) -> Select:
    """Return what chooses the checkpoint of a task."""
    if task.select == "loss":
        return Select("val/task", "min")
    needed = {
        "binary": "tuning rows of both classes",
        "regression": "tuning rows of more than one value",
        "classes": "tuning rows of two classes or more",
    }
    remedy = f"give {needed[task.kind]}, or choose by task.select=loss"
    mode = "min" if task.select in _LOWER_IS_BETTER else "max"
    return Select(f"val/{task.select}", mode, remedy)  # type: ignore[arg-type]


def start_logits(label: NDArray[np.floating], task: TaskConfig) -> Tensor:
    """Return what says the shares of labels in train, as logits, [1], of K classes [K].

    Each class has half a row more. Of truth values and classes alone.
    """
    if task.kind == "classes":
        count = np.bincount(label.astype(np.int64), minlength=num_outputs(task)) + 0.5
        return torch.from_numpy(np.log(count / count.sum())).float()
    rate = (label.sum() + 0.5) / (len(label) + 1)
    return torch.tensor([float(np.log(rate) - np.log1p(-rate))])


def row_weights(task: TaskConfig, shares: float | Sequence[float] | None) -> tuple[float, ...]:
    """Return the weight of a row of each class; of a regression of every row.

    `shares` are those of train rows by class, or that of positive ones; None where no loss is
    computed.
    """
    if isinstance(shares, float):
        shares = (1.0 - shares, shares)
    count = 1 if task.kind == "regression" else len(task.classes) or 2
    if task.class_weight == "none" or shares is None:
        return (1.0,) * count
    if task.kind == "classes":
        # A class without rows in train has no row to weigh.
        return tuple(1 / (count * share) if share > 0 else 1.0 for share in shares)
    if task.class_weight == "balanced":
        negative, positive = shares
        return 1.0, negative / positive if 0 < positive < 1 else 1.0
    return 1.0, float(task.class_weight)


def target_loss(raw: Tensor, label: Tensor, task: TaskConfig, weights: Sequence[float]) -> Terms:
    """Return the loss `task` of what the heads say, [B, M] or [B, M, K], of labels [B].

    It is averaged over rows, weighted by their class, and heads. Labels of a regression are
    standardised, those of classes their places.
    """
    label = label.unsqueeze(1).expand(raw.shape[:2])
    if task.kind == "regression":
        function = F.huber_loss if task.loss == "huber" else F.mse_loss
        loss = function(raw, label, reduction="none")
        return {"task": Term(loss.sum(), torch.ones_like(loss).sum())}
    place = label.long()
    if task.kind == "classes":
        loss = F.cross_entropy(raw.flatten(0, 1), place.flatten(), reduction="none")
        loss = loss.view_as(place)
    else:
        loss = F.binary_cross_entropy_with_logits(raw, label, reduction="none")
        if task.loss == "focal":
            loss = focal(loss, task.focal_gamma)
    weight = class_weights(place, weights)
    return {"task": Term((weight * loss).sum(), weight.sum())}


def class_weights(place: Tensor, weights: Sequence[float]) -> Tensor:
    """Return the weight of each class in `place`, float32 of its shape.

    No table of them is made: a GPU would wait for the host.
    """
    found = torch.full_like(place, weights[0], dtype=torch.float32)
    for number, one in enumerate(weights[1:], start=1):
        found = torch.where(place == number, one, found)
    return found


def target_metrics(said: Tensor, label: Tensor, task: TaskConfig) -> dict[str, float]:
    """Return the metrics of all rows by name, of which `task.select` chooses one."""
    if task.kind == "binary":
        return ranking_metrics(said, label)
    # Here, since every worker imports this module, and scikit-learn takes a second.
    from ehr_ray.evaluation.metrics import classes, regression

    y, weight = label.double().numpy(), np.ones((1, len(label)))
    if task.kind == "regression":
        functions = regression.statistics(y, said.double().numpy())
    else:
        probability = torch.softmax(said.double(), -1).numpy()
        functions = classes.statistics(y.astype(np.int64), probability)
    return {name: float(function(weight)[0]) for name, function in functions.items()}


def ranking_metrics(logit: Tensor, label: Tensor) -> dict[str, float]:
    """Return AUROC, average precision and F1 at 0.5 of all rows; NaN where a class is missing."""
    y, score = label.numpy() > 0, logit.double().numpy()
    if not len(y) or y.all() or not y.any():
        return {"auroc": np.nan, "auprc": np.nan, "f1": np.nan}
    from sklearn.metrics import average_precision_score, f1_score

    return {
        "auroc": auroc(y, score),
        "auprc": float(average_precision_score(y, score)),
        "f1": float(f1_score(y, score >= 0, zero_division=0)),
    }
