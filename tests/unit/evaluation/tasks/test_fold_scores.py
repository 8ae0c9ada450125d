import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from ehr_ray.evaluation.tasks.fold_scores import fold_scores, markdown, paired, spread, verdict


@pytest.fixture(scope="module")
def predictions():
    """A good and a useless model on four folds of 60; every tenth label is unknown."""
    rng, parts = np.random.default_rng(0), []
    for repeat, fold in ((0, 0), (0, 1), (1, 0), (1, 1)):
        label = rng.integers(0, 2, 60)
        for model, skill in (("model", 0.5), ("other", 0.0)):
            parts.append(
                pd.DataFrame(
                    {
                        "model": model,
                        "outcome": "death",
                        "repeat": repeat,
                        "fold": fold,
                        "label": np.where(np.arange(60) % 10 == 0, -1, label),
                        "days": np.where(label, 100.0, 900.0),
                        "state": label,
                        "weight": (np.arange(60) % 10 != 0).astype(float),
                        "probability": skill * label + (1 - skill) * rng.random(60),
                        "threshold": 0.5,
                        "positive_is_event": True,
                    }
                )
            )
    return pd.concat(parts)


def test_scores_are_of_known_rows_and_concordance_of_all(predictions):
    scores = fold_scores(predictions)
    assert len(scores) == 8
    one = predictions[(predictions["model"] == "other") & (predictions["fold"] == 1)]
    one = one[(one["repeat"] == 1)]
    known = one[one["label"] >= 0]
    row = scores[(scores["model"] == "other") & (scores["fold"] == 1) & (scores["repeat"] == 1)]
    assert row["auroc"].item() == pytest.approx(roc_auc_score(known["label"], known["probability"]))
    assert row["n"].item() == 54
    good = scores[scores["model"] == "model"]
    assert (good["c_index"] > 0.95).all()


def test_the_risk_is_turned_where_the_positive_class_is_to_live(predictions):
    turned = predictions.assign(positive_is_event=False)
    assert (fold_scores(turned).query("model == 'model'")["c_index"] < 0.05).all()


def test_the_interval_is_wider_than_if_folds_were_independent(predictions):
    scores = fold_scores(predictions)
    gap = paired(scores, "model", "other", "death", "auroc", test_share=0.5)
    assert 0 < gap.low < gap.value < gap.high
    narrow = paired(scores, "model", "other", "death", "auroc", test_share=0.0)
    assert narrow.high - narrow.low < gap.high - gap.low
    assert gap.value == pytest.approx(narrow.value)


def test_the_table_and_the_verdict_name_both(predictions):
    scores = fold_scores(predictions)
    table = spread(scores)
    text = markdown(table, "death", "positive: death", {"model": "HCAT"})
    assert "| HCAT | " in text
    assert "±" in text
    assert "model" in verdict(scores, "model", ["other"], "death", 0.5)
    assert "is above the best baseline, other" in verdict(scores, "model", ["other"], "death", 0.5)
