import numpy as np
import pytest
from made_up_rows import outcomes_and_risks
from sklearn.metrics import f1_score

from ehr_ray.evaluation.metrics.thresholds import best_f1_threshold, choose_threshold, f1


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(8))
def test_the_chosen_threshold_is_the_best_of_all(seed, ties):
    y, p = outcomes_and_risks(seed, n=120, ties=ties)

    def smaller(threshold):
        called = p >= threshold
        hits = (called & y).sum()
        return min(hits / y.sum(), hits / max(called.sum(), 1))

    assert smaller(choose_threshold(y, p)) == max(smaller(t) for t in p)


def test_a_threshold_without_positives_is_one_half():
    assert choose_threshold(np.zeros(5), np.linspace(0, 1, 5)) == 0.5


def test_neighbouring_floats_keep_the_threshold_between_them():
    high = 0.3
    low = np.nextafter(high, 0)
    threshold = choose_threshold(np.array([1, 0]), np.array([high, low]))
    assert low < threshold <= high


def test_the_threshold_has_the_highest_f1_there_is():
    rng = np.random.default_rng(1)
    y = rng.integers(0, 2, 200)
    p = np.clip(0.4 * y + 0.6 * rng.random(200), 0, 1)
    cut = best_f1_threshold(y, p)
    every = max(f1_score(y, p >= c) for c in np.unique(p))
    assert f1(y, p >= cut) == pytest.approx(every)
    assert best_f1_threshold(np.zeros(3), p[:3]) == 0.5
