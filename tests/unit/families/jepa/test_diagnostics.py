import dataclasses

import numpy as np
import pytest
import torch

from ehr_ray.families.jepa import loss
from ehr_ray.families.jepa.diagnostics import (
    REMEDY,
    Predicted,
    contrast,
    merged_positions,
    prediction_measures,
    prediction_warnings,
    smooth_l1,
    verdict,
)


def predicted(learned=1.0, spread=1.0, patients=200, width=16, shared=0.0):
    """Targets = position + patient; `learned` is the share of the patient that is predicted."""
    rng = np.random.default_rng(0)
    position = np.tile([7, 9], patients)
    patient = np.repeat(np.arange(patients), 2)
    own = rng.normal(0, spread, (patients, width))
    place = np.stack([np.linspace(-1, 1, width), np.linspace(1, -1, width)]) + shared
    base = place[(position == 9).astype(int)]
    noise = rng.normal(0, 0.1 * spread, (2 * patients, width))
    return Predicted(
        patient,
        position,
        base + own[patient] + noise,
        base + learned * own[patient],
        base + learned * own[np.roll(patient, 2)],
    )


def test_smooth_l1_is_that_of_torch():
    error = np.linspace(-3, 3, 50)
    zero = torch.zeros(50, dtype=torch.float64)
    expected = torch.nn.functional.smooth_l1_loss(torch.from_numpy(error), zero, reduction="none")
    np.testing.assert_allclose(smooth_l1(error), expected.numpy())


def test_a_model_that_reads_its_context_has_skill_and_a_gap():
    found = prediction_measures(predicted())
    assert found["skill"] > 0.9
    assert found["shuffled_gap"] > 1
    assert found["target_std"] == pytest.approx(1, rel=0.1)
    assert found["target_rankme_centered"] > 14
    assert verdict(found)[0] == "learned"
    assert prediction_warnings([found]) == []


def test_the_contrast_is_that_of_the_loss_and_blocks_are_contrasted_alone():
    rng = np.random.default_rng(0)
    guess, target = rng.normal(size=(2, 600, 8))
    expected = [
        loss.contrast(torch.from_numpy(guess[part]), torch.from_numpy(target[part])).numpy()
        for part in (slice(0, 300), slice(300, 600))
    ]
    np.testing.assert_allclose(contrast(guess, target), np.concatenate(expected), rtol=1e-4)


def test_of_contrasted_states_the_length_of_a_prediction_is_no_error():
    found = predicted()
    long = dataclasses.replace(found, predicted=30 * found.predicted, shuffled=30 * found.shuffled)
    measured, stretched = (prediction_measures(each, "infonce") for each in (found, long))
    assert stretched == pytest.approx(measured)
    assert measured["skill"] > 0.5
    assert verdict(measured)[0] == "learned"
    assert prediction_measures(long)["skill"] < 0


def test_contrasted_states_that_are_not_told_apart_have_no_skill():
    mean = prediction_measures(predicted(learned=0.0), "infonce")
    assert mean["skill"] < 0.02
    assert verdict(mean)[0] == "not learned"
    collapsed = prediction_measures(predicted(spread=0.001, learned=0.0, shared=5.0), "infonce")
    assert collapsed["skill"] < 0.02
    assert verdict(collapsed)[0] == "collapsed"


def test_predicting_the_position_mean_is_no_skill():
    found = prediction_measures(predicted(learned=0.0))
    assert found["skill"] == pytest.approx(0, abs=0.02)
    assert found["shuffled_gap"] == 0
    assert verdict({**found, "skill": 0.01})[0] == "not learned"
    assert verdict({**found, "skill": -0.01, "shuffled_gap": 0.5})[0] == "not learned"
    (line,) = prediction_warnings([found])
    assert line.startswith("not learned: skill")
    assert line.endswith(f"; {REMEDY}")


def test_a_collapse_to_one_vector_shows_in_cosine_and_raw_rank_and_not_in_centred_rank():
    found = prediction_measures(predicted(spread=0.01, learned=0.0, shared=5.0))
    healthy = prediction_measures(predicted())
    assert found["target_cosine"] > 0.98 > healthy["target_cosine"]
    assert found["target_rankme"] < 3
    assert found["target_rankme_centered"] > 0.9 * healthy["target_rankme_centered"]
    (line,) = prediction_warnings([{**found, "skill": -0.1}])
    assert line.startswith("collapsed: skill -0.100")
    (line,) = prediction_warnings([{**found, "skill": 0.1, "shuffled_gap": 0.1}])
    assert line.startswith("near collapse: ")


def test_a_spread_that_keeps_falling_is_said():
    healthy = prediction_measures(predicted())
    falling = [{**healthy, "target_std": s} for s in (0.9, 0.8, 0.7, 0.6, 0.5)]
    assert prediction_warnings(falling) == ["targets keep coming closer: spread 0.900 to 0.500"]
    assert prediction_warnings(falling[:4]) == []
    assert (
        prediction_warnings([{**r, "target_std": 1 + r["target_std"] / 50} for r in falling]) == []
    )
    assert prediction_warnings([*falling[:3], falling[0], falling[4]]) == []


def test_without_targets_nothing_is_measured():
    empty = predicted(patients=0)
    assert prediction_measures(empty) == {}
    nothing = [{"skill": float("nan")}]
    (line,) = prediction_warnings([{}])
    assert line.startswith("whether it learns is not measured: ")
    assert prediction_warnings(nothing) == [line]
    assert prediction_warnings(nothing * 2) == prediction_warnings([]) == []  # it is said once


def test_positions_with_few_entries_are_merged_with_their_neighbours():
    position = np.repeat([0, 1, 2, 5, 9], [40, 10, 30, 50, 3])
    group = merged_positions(position)
    assert dict(zip(position.tolist(), group.tolist(), strict=True)) == {
        0: 0,
        1: 1,
        2: 1,
        5: 2,
        9: 2,
    }
    assert set(merged_positions(np.array([4, 5])).tolist()) == {0}
