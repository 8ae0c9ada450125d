"""How well a model tells the patients it learned from: what it has learned by heart, or not at all.

A model that is no better on train than on unseen patients has learned too little; one that is far
better has learned them by heart.
"""

from collections.abc import Mapping

import numpy as np

from ehr_ray.evaluation.metrics.binary import binary_metrics
from ehr_ray.evaluation.suite import SuiteResult
from ehr_ray.evaluation.tasks.baselines import SHORT_TITLES
from ehr_ray.evaluation.tasks.downstream import FittedTask, Split
from ehr_ray.evaluation.tasks.verdicts import MODEL, NETWORK, metric_prefix

TRAIN = "train"
NAMES = ("auroc", "auprc")


def train_result(
    fitted: FittedTask, train: Split, metrics: Mapping[str, float], split: str
) -> SuiteResult:
    """Return the model's `train/auroc` and `train/auprc`, and a note on them beside the split's.

    Of an ensemble they are its network's, `baseline/network/train/...`: trees tell train by heart.
    `metrics` are those of the judged split. Nothing where train is judged or has one class.
    """
    if split == TRAIN or np.unique(train.label).size < 2:
        return SuiteResult()
    name = NETWORK if NETWORK in fitted.scorers else MODEL
    scorer = fitted.scorers[name]
    probability = scorer.predict(getattr(train, scorer.input))
    measured = binary_metrics(
        train.label,
        probability,
        threshold=scorer.threshold,
        names=NAMES,
        subject=train.subject_id,
        num_bootstrap=0,
    )
    found = {f"{metric_prefix(name, TRAIN)}/{metric}": measured[metric] for metric in NAMES}
    judged = [metrics[f"{metric_prefix(name, split)}/{metric}"] for metric in NAMES]
    if not np.isfinite(judged).all():
        return SuiteResult(metrics=found)
    told = (
        f"{metric.upper()} {measured[metric]:.3f} on train and {value:.3f} on {split}"
        for metric, value in zip(NAMES, judged, strict=True)
    )
    note = (
        f"{SHORT_TITLES[name]}: {', '.join(told)}; if they are level it may have learned too "
        "little, if they are far apart it knows train by heart."
    )
    return SuiteResult(metrics=found, notes=(f"{note[0].upper()}{note[1:]}",))
