"""Did a model that predicts its own representation learn anything? Its loss cannot tell.

The loss falls as well when targets stop depending on the patient (collapse). What tells is whether
a prediction beats the mean target of its position, and whether it needs the patient's own context.
The error is what the model was trained by: the distance of a prediction from its target, or, where
its length means nothing (`infonce`), the nats by which it fails to tell its target from others.
N targets, D width. Levels: a collapsed run had skill below 0 and lost nothing by another patient's
context, while the rank of its targets, centred, stayed what it was.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from ehr_ray.evaluation.metrics.spread import mean_pairwise_cosine, rankme
from ehr_ray.families.jepa.config import TEMPERATURE, LatentLoss

Array = NDArray[np.float64]

MIN_GAP: Final = 0.01
"""Least rise of the loss under another patient's context of a model that reads its context."""
MAX_COSINE: Final = 0.98
"""Mean cosine of different patients' targets above which they are nearly one vector."""
FALLS: Final = 4
"""Reports in a row with a smaller spread of the targets that are worth a warning."""
MAX_SPREAD: Final = 0.95
"""Spread after them over that before, above which it is none: an average moves a little."""
UNMEASURED: Final = (
    "whether it learns is not measured: it takes two tuning patients with 2 rows or more"
)
REMEDY: Final = (
    "raise train.max_epochs while val/skill rises, else give more patients, and compare with the "
    "untrained encoder (ehr-ray evaluate)"
)
"""What to do about a model that did not learn and has not collapsed either."""
CONTRASTED: Final = 512
"""Targets, at most, among which a prediction must find its own: about a batch's hidden rows."""
MIN_ENTRIES: Final = 32
"""Targets behind a position mean; neighbouring positions are merged up to it."""


@dataclass(frozen=True, eq=False)
class Predicted:
    """Targets and what was predicted of them.

    Args:
        patient: int [N], whose target it is.
        position: int [N], its place in the patient's sequence.
        target: float [N, D].
        predicted: float [N, D], from the patient's own context.
        shuffled: float [N, D], from the context of another patient.
    """

    patient: NDArray[np.integer]
    position: NDArray[np.integer]
    target: NDArray[np.floating]
    predicted: NDArray[np.floating]
    shuffled: NDArray[np.floating]


def prediction_measures(
    found: Predicted, latent_loss: LatentLoss = "smooth_l1"
) -> dict[str, float]:
    """Return what tells a prediction that learned from one that collapsed; {} without targets.

    `skill` = 1 - loss / loss of the position mean, in `latent_loss`; of `infonce` that mean is of
    targets of length 1, and costs no more than a guess. `shuffled_gap` is by how much the loss
    rises with another patient's context; at fixed position between targets are `target_std` and
    `target_cosine`; `target_rankme` and `target_rankme_centered` of the patients' mean targets.
    """
    if len(found.position) < 2:
        return {}
    target = found.target.astype(np.float64)
    contrasted = latent_loss == "infonce"
    error = contrast if contrasted else distance
    right, wrong = (
        float(error(np.asarray(guess, np.float64), target).mean())
        for guess in (found.predicted, found.shuffled)
    )
    group = merged_positions(found.position)
    sizes = np.bincount(group)
    parts = [target[group == g] for g in range(len(sizes))]
    levels = _unit(target) if contrasted else target
    mean = np.stack([levels[group == g].mean(0) for g in range(len(sizes))])
    constant = float(error(mean[group], target).mean())
    if contrasted:
        # Of targets that all point one way, no guess is worth more than none.
        blind = sum(len(block) * np.log(len(block)) for block in _blocks(len(target)))
        constant = min(constant, float(blind / len(target)))
    _, patient = np.unique(found.patient, return_inverse=True)
    of_patient = np.zeros((patient.max() + 1, target.shape[1]))
    np.add.at(of_patient, patient, target)
    of_patient /= np.bincount(patient)[:, None]
    cosine = [mean_pairwise_cosine(part) if len(part) > 1 else 1.0 for part in parts]
    return {
        "skill": 1 - right / max(constant, 1e-12),
        "shuffled_gap": wrong / max(right, 1e-12) - 1,
        "target_std": float(np.average([part.std(0).mean() for part in parts], weights=sizes)),
        "target_cosine": float(np.average(cosine, weights=sizes)),
        "target_rankme": rankme(of_patient),
        "target_rankme_centered": rankme(of_patient - of_patient.mean(0)),
    }


def verdict(measures: Mapping[str, float]) -> tuple[str, str]:
    """Return `learned`, `not learned` or `collapsed`, and in one line why.

    A model has learned if it beats the mean of a position and loses by another patient's context.
    If it has not, and the targets of all patients point one way, it has collapsed.
    """
    skill, gap, cosine = (measures[n] for n in ("skill", "shuffled_gap", "target_cosine"))
    reason = (
        f"skill {skill:+.3f} over the mean of a position, {gap:+.1%} loss with another patient's "
        f"context, cosine of targets {cosine:.3f}"
    )
    if skill > 0 and gap >= MIN_GAP:
        return "learned", reason
    return ("collapsed" if cosine > MAX_COSINE else "not learned"), reason


def prediction_warnings(reports: Sequence[Mapping[str, float]]) -> list[str]:
    """Return lines about the newest of the reports after warm-up, oldest first; [] if it is well.

    Keys are those of `prediction_measures`. That nothing could be measured is said once.
    """
    if not reports or not np.isfinite(reports[-1].get("skill", np.nan)):
        return [UNMEASURED] if len(reports) == 1 else []
    (told, reason), lines = verdict(reports[-1]), []
    if told == "collapsed":
        lines.append(f"collapsed: {reason}; set model.regulariser, or raise model.value_weight")
    elif told == "not learned":
        lines.append(f"not learned: {reason}; {REMEDY}")
    elif reports[-1]["target_cosine"] > MAX_COSINE:
        lines.append(f"near collapse: {reason}")
    spread = [report["target_std"] for report in reports[-FALLS - 1 :]]
    if len(spread) > FALLS and spread[-1] < MAX_SPREAD * spread[0] and all(np.diff(spread) < 0):
        lines.append(f"targets keep coming closer: spread {spread[0]:.3f} to {spread[-1]:.3f}")
    return lines


def distance(guess: Array, target: Array) -> Array:
    """Return the smooth-L1 distance of each number of [N, D] from its target's."""
    return smooth_l1(guess - target)


def contrast(guess: Array, target: Array) -> Array:
    """Return -log p of each guess's own target among those of its block, [N], of [N, D] each.

    Log-odds are cosines over the temperature of training. A block has 512 rows at most.
    """
    guess, target = _unit(guess), _unit(target)
    parts = []
    for block in _blocks(len(target)):
        odds = guess[block] @ target[block].T / TEMPERATURE
        most = odds.max(1)
        total = np.log(np.exp(odds - most[:, None]).sum(1)) + most
        parts.append(total - odds.diagonal())
    return np.concatenate(parts)


def _unit(rows: Array) -> Array:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


def _blocks(number: int) -> list[NDArray[np.int64]]:
    return np.array_split(np.arange(number), -(-number // CONTRASTED))


def smooth_l1(error: Array) -> Array:
    """Return the Huber loss with threshold 1 (Girshick 2015, eq. 3), elementwise."""
    size = np.abs(error)
    return np.where(size < 1, 0.5 * size * size, size - 0.5)


def merged_positions(position: NDArray[np.integer]) -> NDArray[np.int64]:
    """Return a group for each entry: its position, or several with too few entries, in order."""
    places, index, counts = np.unique(position, return_inverse=True, return_counts=True)
    group_of, group, held = np.zeros(len(places), np.int64), 0, 0
    for place, count in enumerate(counts):
        group_of[place] = group
        held += count
        if held >= MIN_ENTRIES:
            group, held = group + 1, 0
    if held > 0 and group:  # what is left over joins the group before
        group_of[group_of == group] = group - 1
    return group_of[index]
