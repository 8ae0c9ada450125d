import numpy as np
import pandas as pd
import pytest

from ehr_ray.commands.benchmark.lvcf import carry_in_pandas, lvcf


def test_the_array_function_is_measured_beside_a_loop_that_carries_the_same(
    synthetic_cohort, tmp_path
):
    found = lvcf(synthetic_cohort, tmp_path)
    ours, theirs = (
        found[name]
        for name in ("million tokens per CPU second", "pandas, million tokens per CPU second")
    )
    assert ours > 0
    assert found["ratio"] == pytest.approx(ours / theirs)


def test_pandas_carries_values_within_the_window_alone():
    events = pd.DataFrame(
        {
            "minute": [0.0, 10.0, 100.0],
            "code": [1, 2, 2],
            "value": [5.0, 6.0, 7.0],
            "static": [False, False, False],
        }
    )
    found = carry_in_pandas(events, window=20.0)
    assert found["set_index"].tolist() == [0, 1, 1, 2]
    assert found["code"].tolist() == [1, 1, 2, 2]
    np.testing.assert_array_equal(found["age"], [0, 10, 0, 0])
