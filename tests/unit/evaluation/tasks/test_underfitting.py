from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from ehr_ray.evaluation.tasks.downstream import FittedTask, Split, fit_task
from ehr_ray.evaluation.tasks.underfitting import train_result

METRICS = {"held_out/auroc": 0.7, "held_out/auprc": 0.3, "baseline/network/held_out/auroc": 0.6}
METRICS["baseline/network/held_out/auprc"] = 0.2


def rows(n, seed):
    rng = np.random.default_rng(seed)
    embedding = rng.normal(size=(n, 3))
    label = embedding[:, 0] + rng.normal(size=n) > 1
    return Split(np.arange(n), np.full(n, np.datetime64("2010-01-03", "us")), label, embedding)


@pytest.fixture(scope="module")
def train():
    return rows(300, 0)


@pytest.fixture(scope="module")
def fitted(train):
    return fit_task(train, rows(100, 1), baselines=())


def test_what_a_model_says_of_train_stands_beside_what_it_says_of_the_judged(fitted, train):
    found = train_result(fitted, train, METRICS, "held_out")
    probability = fitted.scorers["model"].predict(train.embedding)
    measures = {"auroc": roc_auc_score, "auprc": average_precision_score}
    assert found.metrics == {
        f"train/{name}": pytest.approx(score(train.label, probability))
        for name, score in measures.items()
    }
    (note,) = found.notes
    assert note.startswith(f"This model: AUROC {found.metrics['train/auroc']:.3f} on train and 0.7")


def test_of_an_ensemble_it_is_the_network(fitted, train):
    scorers = {"network": fitted.scorers["model"], "model": fitted.scorers["model"]}
    found = train_result(FittedTask(scorers), train, METRICS, "held_out")
    assert set(found.metrics) == {f"baseline/network/train/{name}" for name in ("auroc", "auprc")}
    assert "Its network alone: AUROC" in found.notes[0]


def test_nothing_is_said_of_one_class_nor_where_train_itself_is_judged(fitted, train):
    assert train_result(fitted, train, METRICS, "train").metrics == {}
    one = replace(train, label=np.zeros(300, bool))
    assert train_result(fitted, one, METRICS, "held_out").metrics == {}
    undefined = dict.fromkeys(METRICS, np.nan)
    assert train_result(fitted, train, undefined, "held_out").notes == ()
