import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import f1_score, roc_auc_score

from ehr_ray.evaluation.tasks.fold_scores import fold_scores, markdown, paired, spread, verdict


@pytest.fixture(scope="module")
def predictions():
    """A good and a useless model on four folds of 60."""
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
                        "label": label > 0,
                        "probability": skill * label + (1 - skill) * rng.random(60),
                        "threshold": 0.5,
                    }
                )
            )
    return pd.concat(parts)


def test_scores_are_of_one_fold_each(predictions):
    scores = fold_scores(predictions)
    assert len(scores) == 8
    chosen = "model == 'other' and repeat == 1 and fold == 1"
    row, rows = scores.query(chosen), predictions.query(chosen)
    expected = roc_auc_score(rows["label"], rows["probability"])
    assert row["auroc"].item() == pytest.approx(expected)
    assert row["f1"].item() == pytest.approx(f1_score(rows["label"], rows["probability"] >= 0.5))
    assert row["n"].item() == 60


def test_a_fold_of_one_class_has_no_auroc_and_does_not_count_in_the_mean(predictions):
    first = (predictions["repeat"] == 0) & (predictions["fold"] == 0)
    scores = fold_scores(predictions.assign(label=predictions["label"] | first))
    table = spread(scores).set_index(["model", "metric"])
    assert table.loc[("model", "auroc"), "folds"] == 3
    assert table.loc[("model", "brier"), "folds"] == 4


def test_the_interval_is_wider_than_if_folds_were_independent(predictions):
    scores = fold_scores(predictions)
    gap = paired(scores, "model", "other", "death", "auroc", test_share=0.5)
    assert 0 < gap.low < gap.value < gap.high
    narrow = paired(scores, "model", "other", "death", "auroc", test_share=0.0)
    assert narrow.high - narrow.low < gap.high - gap.low
    assert gap.value == pytest.approx(narrow.value)


def test_the_table_and_the_verdict_name_both(predictions):
    scores = fold_scores(predictions)
    text = markdown(spread(scores), "death", "**death**", {"model": "HCAT"})
    assert "| HCAT | " in text
    assert "±" in text
    said = verdict(scores, "model", ["other"], "death", 0.5)
    assert "is above the best baseline, other" in said
    assert verdict(scores, "model", [], "death", 0.5) == ""


def test_metrics_of_parts_stand_in_a_table_of_their_own(predictions):
    scores = fold_scores(predictions)
    scores.loc[scores["model"] == "model", "latent/active"] = [4.0, 5.0, 6.0, 7.0]
    first, second = markdown(spread(scores), "death", "**death**", {}).split("\n\n")[1:]
    assert "latent" not in first
    assert "| latent/active | 5.500 ± 1.291 |" in second
    assert "other" not in second
