import numpy as np
import pytest

from ehr_ray.evaluation.metrics.bootstrap import bootstrap, numbered, resamples
from ehr_ray.evaluation.metrics.weighted import statistics


def test_all_rows_of_a_subject_are_drawn_together():
    subject = np.array([30, 7, 30, 7, 7, 1])
    for weights in resamples(6, subject, 0, 40):
        assert (weights[:, 0] == weights[:, 2]).all()
        assert (weights[:, 1] == weights[:, [3, 4]].T).all()
        assert (weights[:, [0, 1, 5]].sum(axis=1) == 3).all()
        assert weights[:, 0].std() > 0


def test_subjects_are_numbered_as_they_come():
    assert numbered(np.array(["b", "b", "a", "c", "a"])).tolist() == [0, 0, 1, 2, 1]
    assert numbered(np.zeros(0)).size == 0


def test_subjects_of_other_rows_are_refused():
    with pytest.raises(ValueError, match="2 subjects for 3 rows"):
        next(resamples(3, np.array([1, 2]), 0, 1))


def test_without_resamples_there_is_a_value_and_no_interval():
    found = bootstrap({"sum": lambda w: w.sum(axis=1)}, 3, num_bootstrap=0)["sum"]
    assert found.value == 3
    assert np.isnan([found.low, found.high]).all()


def test_an_interval_holds_the_truth_where_a_subject_has_five_rows():
    """Forty subjects a study; outcome and risk of a subject's five rows go together."""
    rng, studies, subjects, rows = np.random.default_rng(0), 150, 40, 5
    subject = np.repeat(np.arange(subjects), rows)

    def drawn(number):
        frailty = np.repeat(rng.normal(size=number), rows)
        label = (frailty + 0.4 * rng.normal(size=frailty.size) > 0).astype(float)
        return label, 0.5 * frailty + np.repeat(rng.normal(size=number), rows)

    label, risk = drawn(40_000)
    truth = statistics(label, risk)["auroc"](np.ones((1, len(label))))[0]
    held = {"subjects": 0, "rows": 0}
    for study in range(studies):
        label, risk = drawn(subjects)
        auroc = {"auroc": statistics(label, risk)["auroc"]}
        for name, whose in (("subjects", subject), ("rows", None)):
            found = bootstrap(auroc, len(label), subject=whose, seed=study, num_bootstrap=200)
            held[name] += found["auroc"].low <= truth <= found["auroc"].high
    assert 0.90 <= held["subjects"] / studies <= 0.99
    assert held["rows"] / studies < 0.75
