import numpy as np
import pytest

from ehr_ray.evaluation.metrics.reconstruction import (
    Tokens,
    examples,
    reconstruction_metrics,
    reconstruction_table,
)


@pytest.fixture
def tokens():
    """Two patients; code 0 is measured in three sets of the first, its middle one hidden."""
    return Tokens.from_columns(
        {
            "sample": [0, 0, 0, 0, 1],
            "set": [2, 0, 1, 1, 0],
            "code": [0, 0, 0, 1, 0],
            "value": [3.0, 1.0, 2.0, -1.0, 4.0],
            "estimate": [3.0, 1.0, 1.0, -1.0, 0.0],
            "carried": [False, False, False, True, False],
            "hidden": [False, False, True, True, False],
        }
    )


def test_last_values_are_those_of_the_same_code_and_patient(tokens):
    np.testing.assert_array_equal(tokens.last_values(), [2.0, np.nan, 1.0, np.nan, np.nan])


def test_metrics_compare_with_the_mean_and_the_last_value_by_group(tokens):
    metrics = reconstruction_metrics(tokens)
    assert metrics["all/mse"] == pytest.approx((1 + 16) / 5)
    assert metrics["all/mse_mean"] == pytest.approx((9 + 1 + 4 + 1 + 16) / 5)
    assert metrics["all/mse_last"] == pytest.approx((1 + 1 + 1 + 1 + 16) / 5)
    assert metrics["hidden_live/n"] == 1
    assert metrics["hidden_live/r2"] == pytest.approx(1 - 1 / 4)
    assert metrics["hidden_carried/mse"] == 0
    assert metrics["visible/n"] == 3


def test_a_perfect_model_has_r2_of_one_and_the_mean_has_zero(tokens):
    def with_estimate(estimate):
        return Tokens(**{**vars(tokens), "estimate": estimate})

    assert reconstruction_metrics(with_estimate(tokens.value))["all/r2"] == 1
    assert reconstruction_metrics(with_estimate(np.zeros(5)))["all/r2"] == 0


def test_the_table_has_a_row_for_each_group_there_is(tokens):
    metrics = {f"held_out/reconstruction/{k}": v for k, v in reconstruction_metrics(tokens).items()}
    table = reconstruction_table(metrics, "held_out", "robust")
    assert table.rows[0][0] == "all values"
    assert len(table.rows) == 4
    assert all(len(row) == len(table.columns) for row in table.rows)


def test_the_table_states_the_scale(tokens):
    metrics = {f"held_out/reconstruction/{k}": v for k, v in reconstruction_metrics(tokens).items()}
    robust, standard = (
        reconstruction_table(metrics, "held_out", s) for s in ("robust", "standard")
    )
    assert (robust.columns[2], standard.columns[2]) == ("train median", "train mean")
    assert "interquartile range / 1.349" in robust.caption
    assert "in train standard deviations" in standard.caption


def test_examples_name_variables_and_flags(tokens):
    first = examples(tokens, ("HR", "Temp"))[0]
    assert first["title"] == "patient 1, set 2 of 3"
    assert [t["variable"] for t in first["tokens"]] == ["HR", "Temp"]
    assert [t["masked"] for t in first["tokens"]] == [True, True]
    assert [t["carried"] for t in first["tokens"]] == [False, True]
