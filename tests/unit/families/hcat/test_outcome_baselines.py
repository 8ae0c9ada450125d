import numpy as np
from sklearn.metrics import roc_auc_score

from ehr_ray.families.hcat.outcome_baselines import LOGISTIC, Columns, fit_baselines


def columns(seed, number=160):
    """The first column of the core tells the label, with holes; tiles are noise."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 2, number)
    core = rng.normal(size=(number, 3))
    core[:, 0] += 2 * label
    core[rng.random(core.shape) < 0.1] = np.nan
    tables = np.concatenate([core, rng.normal(size=(number, 2))], 1)
    return Columns(core, tables, rng.normal(size=(number, 40))), label


def test_baselines_learn_and_thresholds_rest_on_models_that_had_not_seen_the_row():
    train, label = columns(0)
    other, truth = columns(1)
    for name, (predict, unseen) in fit_baselines(
        train, label, seed=0, names=(LOGISTIC, "trees")
    ).items():
        assert roc_auc_score(truth, predict(other)) > 0.8, name
        assert 0.8 < roc_auc_score(label, unseen) < 0.99, name


def test_tiles_are_shortened_and_tables_kept():
    train, label = columns(2)
    found = fit_baselines(train, label, seed=0, names=("forest_tiles",))
    predict, _ = found["forest_tiles"]
    other, truth = columns(3)
    assert roc_auc_score(truth, predict(other)) > 0.75


def test_a_class_that_is_hardly_there_gives_everybody_its_share():
    train, _ = columns(4, number=20)
    label = (np.arange(20) < 2).astype(int)
    predict, unseen = fit_baselines(train, label, seed=0, names=(LOGISTIC,))[LOGISTIC]
    assert set(predict(train)) == set(unseen) == {0.1}


def test_tiles_are_shortened_for_fewer_patients_than_components():
    train, label = columns(5, number=24)
    predict, unseen = fit_baselines(train, label, seed=0, names=("forest_tiles",))["forest_tiles"]
    assert np.isfinite(predict(train)).all()
    assert np.isfinite(unseen).all()
