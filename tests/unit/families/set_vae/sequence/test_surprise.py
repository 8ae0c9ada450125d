import numpy as np
import pandas as pd
import pytest

from ehr_ray.families.set_vae.sequence.surprise import (
    MIN_SPREAD,
    expectations,
    residuals,
    surprises,
)


def stays(seed, sets=4000, noise=0.5, tie=0.95):
    """Sets of three values: two that move together, one alone, each around its last one."""
    rng = np.random.default_rng(seed)
    last = rng.normal(size=(sets, 3))
    shared = rng.normal(size=(sets, 1))
    own = rng.normal(size=(sets, 3))
    moved = np.hstack([np.sqrt(tie) * shared + np.sqrt(1 - tie) * own[:, :2], own[:, 2:]])
    value = 0.8 * last + noise * moved
    return pd.DataFrame(
        {
            "sample": np.repeat(np.arange(sets), 3),
            "set": 1,
            "kind": 0,
            "code": np.tile([0, 1, 2], sets),
            "value": value.ravel(),
            "last": last.ravel(),
            "expected": rng.normal(size=3 * sets),
            "carried": False,
        }
    )


def test_the_past_and_the_other_values_are_learned():
    frame = stays(0)
    found = expectations(frame, 4)
    np.testing.assert_allclose(found.coefficients[:3, 1, 0], 0.8, atol=0.03)
    np.testing.assert_allclose(found.coefficients[:3, 1, 1:], 0.0, atol=0.03)
    np.testing.assert_allclose(found.spread[:3, 1], 0.5, atol=0.03)
    assert found.correlation[0, 1] == pytest.approx(0.95, abs=0.03)
    assert abs(found.correlation[0, 2]) < 0.05
    assert found.place.tolist() == [0, 1, 2, 3]


def test_surprise_is_the_distance_from_what_the_others_say_by_hand():
    found = expectations(stays(0), 3)
    frame = stays(1, sets=50)
    scored = surprises(found, frame)
    left = residuals(found, frame).reshape(50, 3)
    for row in scored.itertuples():
        at = left[row.sample]
        tie = found.correlation
        distances = []
        for i in range(3):
            rest = [j for j in range(3) if j != i]
            weights = np.linalg.solve(tie[np.ix_(rest, rest)], tie[rest, i])
            spread = np.sqrt(1 - weights @ tie[rest, i])
            distances.append(abs(at[i] - weights @ at[rest]) / spread)
        assert row.surprise == pytest.approx(max(distances))
        assert row.code == np.argmax(distances)


def test_values_that_are_each_usual_and_together_are_not_are_noticed():
    found = expectations(stays(0), 3)
    frame = stays(1, sets=2)
    frame["last"] = 0.0
    frame["expected"] = 0.0
    frame["value"] = [0.5, 0.5, 0.1, 0.5, -0.5, 0.1]  # together, then apart
    together, apart = surprises(found, frame)["surprise"]
    assert together < 1.5
    assert apart > 4


def test_a_carried_value_must_be_the_last_one():
    found = expectations(stays(0), 3)
    frame = stays(1, sets=1)
    frame["carried"] = [True, False, False]
    frame.loc[0, "value"] = frame.loc[0, "last"] + 1.0
    scored = surprises(found, frame)
    assert scored["surprise"].tolist() == pytest.approx([1.0 / MIN_SPREAD])
    assert scored["code"].tolist() == [0]


def test_a_variable_of_few_values_is_expected_at_its_last_one_or_as_the_prior_says():
    frame = stays(0, sets=10)
    found = expectations(frame, 3)
    assert found.correlation.shape == (0, 0)
    first = frame.assign(last=np.where(frame["code"] == 0, np.nan, frame["last"]))
    expected = np.where(frame["code"] == 0, frame["expected"], frame["last"])
    np.testing.assert_allclose(residuals(found, first), frame["value"] - expected)
    scored = surprises(found, first)
    assert len(scored) == 10
    assert (scored["surprise"] > 0).all()


def test_nothing_measured_is_no_set_and_no_error():
    found = expectations(stays(0).head(0), 3)
    assert len(surprises(found, stays(0).head(0))) == 0
