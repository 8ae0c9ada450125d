import numpy as np
import pytest
from made_up_rows import outcomes_and_risks

from ehr_ray.evaluation.metrics.weighted import METRICS, statistics


@pytest.mark.parametrize("ties", [False, True])
def test_a_weighted_metric_equals_the_metric_of_the_rows_repeated(ties):
    y, p = outcomes_and_risks(3, n=80, ties=ties)
    weights = np.random.default_rng(1).integers(0, 4, 80)
    repeated = np.repeat(np.arange(80), weights)
    functions = statistics(y.astype(float), p, 0.4)
    direct = statistics(y[repeated].astype(float), p[repeated], 0.4)
    for name in METRICS:
        if name in ("ece", "event2"):  # their bins belong to the split and stay fixed
            continue
        ours = functions[name](weights[None].astype(float))[0]
        assert ours == pytest.approx(direct[name](np.ones((1, repeated.size)))[0]), name
