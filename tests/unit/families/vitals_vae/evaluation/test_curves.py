import dataclasses

import numpy as np
import pyarrow as pa
import pytest

from ehr_ray.evaluation.suite import SplitPredictions
from ehr_ray.families.vitals_vae.evaluation.curves import (
    MODEL,
    SHRUNK,
    TITLES,
    Errors,
    Grids,
    difference,
    fit_references,
    fit_shrinkage,
    measure,
    score,
)

CARRY = np.array([6, 6])
HOURS = 60
LISTS = pa.list_(pa.float32())


def grids(seed, number=80, share=0.4):
    """Patients with a level and a slope; the model's own curves are their truth."""
    rng = np.random.default_rng(seed)
    time = np.linspace(-1, 1, HOURS)[None, :, None]
    truth = rng.normal(size=(number, 1, 2)) + rng.normal(size=(number, 1, 2)) * time
    value = (truth + 0.1 * rng.normal(size=truth.shape)).astype(np.float32)
    observed = rng.random(value.shape) < share
    hidden = observed & (rng.random(value.shape) < 0.1)
    truth = truth.astype(np.float32)
    return Grids(np.arange(number), value * observed, observed, hidden, truth, truth)


@pytest.fixture(scope="module")
def references():
    return fit_references(grids(0, 120), CARRY)


@pytest.fixture(scope="module")
def errors(references):
    return measure(grids(1), references)


def test_every_row_has_a_title_and_both_kinds(errors):
    assert set(errors) == set(TITLES) - {SHRUNK}
    for kinds in errors.values():
        assert set(kinds) == {"seen", "hidden"}


def test_the_rows_rank_as_they_must(errors):
    hidden = {name: kinds["hidden"].mse() for name, kinds in errors.items()}
    assert hidden[MODEL] < hidden["pca"] < hidden["patient_mean"] < hidden["cohort_mean"]
    assert hidden["fpca"] < hidden["patient_mean"]
    assert hidden[MODEL] == pytest.approx(0.01, rel=0.2)
    assert errors["forward_fill"]["seen"].mse() == 0
    assert errors["forward_fill"]["hidden"].mse() > 0


def test_no_row_is_given_a_hidden_cell(references, errors):
    judged = grids(1)
    value = (judged.value + 5 * judged.hidden).astype(np.float32)
    for row in references.rows.values():
        visible = judged.observed & ~judged.hidden
        np.testing.assert_array_equal(row(judged.value, visible), row(value, visible))


def test_nothing_is_fitted_on_the_judged_patients(references):
    judged = grids(1)
    row = references.rows["pca"]
    whole = row(judged.value, judged.observed)
    alone = row(judged.value[:1], judged.observed[:1])
    np.testing.assert_allclose(whole[:1], alone, atol=1e-4)


def test_functional_components_explain_a_level_and_a_slope(references):
    assert references.explained.shape == (2,)
    assert (references.explained > 0.8).all()
    judged = grids(1)
    scores = references.scores(judged.value, judged.observed)
    assert scores.shape == (80, 20)


def test_a_window_counts_its_own_cells(references):
    judged = grids(1)
    part = measure(judged, references, slice(10, 20))[MODEL]["seen"]
    assert part.count.sum() == judged.observed[:, 10:20].sum()


def test_errors_are_sums_over_cells():
    curve, value = np.zeros((1, 2, 2)), np.array([[[1.0, 3], [2, 4]]])
    cells = np.array([[[True, False], [True, False]]])
    found = score(curve, value, cells)
    assert found.mse() == 2.5
    assert found.by_vital()[0] == 2.5
    assert np.isnan(found.by_vital()[1])


def test_a_difference_has_an_interval_around_it(errors):
    ours, theirs = errors[MODEL]["hidden"], errors["patient_mean"]["hidden"]
    alone = np.arange(len(ours.count))
    value, low, high = difference(ours, theirs, alone)
    assert value == pytest.approx(ours.mse() - theirs.mse())
    assert low < value < high < 0
    assert difference(ours, ours, alone) == (0, 0, 0)
    twice = [Errors(np.tile(e.squared, (2, 1)), np.tile(e.count, (2, 1))) for e in (ours, theirs)]
    again = difference(*twice, np.tile(alone, 2))
    assert again == pytest.approx((value, low, high))


def test_grids_are_read_from_a_table():
    one = grids(2, 3)
    columns = {
        name: pa.array(
            np.asarray(getattr(one, name), np.float32).reshape(3, -1).tolist(),
            pa.list_(pa.float32()),
        )
        for name in ("value", "observed", "hidden", "estimate", "imputed")
    }
    table = pa.table({"sample": pa.array([4, 5, 9]), **columns})
    found = Grids.of(SplitPredictions(pa.table({}), {"grids": table}), 2)
    assert found.sample.tolist() == [4, 5, 9]
    np.testing.assert_array_equal(found.observed, one.observed)
    np.testing.assert_array_equal(found.estimate, one.estimate)
    assert found.take(np.array([1])).sample.tolist() == [5]


def test_a_model_is_drawn_to_the_patient_mean_as_far_as_it_is_worth(references):
    """The first vital sign's curves are the truth, the second's noise; weights are of tuning."""
    rng = np.random.default_rng(5)

    def spoilt(seed):
        made = grids(seed)
        curve = made.estimate * [1.0, 0.0] + rng.normal(size=made.estimate.shape) * [0.0, 3.0]
        curve = curve.astype(np.float32)
        return dataclasses.replace(made, estimate=curve, imputed=curve)

    weights = fit_shrinkage(spoilt(2), references)
    assert set(weights) == {"seen", "hidden"}
    for own in weights.values():
        assert own[0] > 0.95
        assert own[1] < 0.1
    judged = spoilt(3)
    found = measure(judged, references, shrinkage=weights)
    for kind in ("seen", "hidden"):
        whole, shrunk, mean = (found[n][kind].by_vital() for n in (MODEL, SHRUNK, "patient_mean"))
        assert shrunk[0] == pytest.approx(whole[0], rel=0.1)
        assert shrunk[1] < 1.05 * mean[1] < whole[1]
    assert max(
        measure(judged, references, shrinkage={k: np.zeros(2) for k in weights})[SHRUNK][
            "seen"
        ].squared.sum(1)
        - found["patient_mean"]["seen"].squared.sum(1)
    ) == pytest.approx(0, abs=1e-3)
