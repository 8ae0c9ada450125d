"""Rows of made-up patients: outcomes with risks of them, and features with outcomes."""

import numpy as np


def outcomes_and_risks(seed, n=300, ties=False):
    """Return bool[n] and float[n]; a quarter has the outcome, and a higher risk."""
    rng = np.random.default_rng(seed)
    y = rng.random(n) < 0.25
    p = 1 / (1 + np.exp(-(rng.normal(size=n) + 1.2 * y - 1)))
    return y, np.round(p, 1) if ties else p


def features_and_outcomes(seed=0, n=500, width=20):
    """Risk is not linear in the features, some are missing, some constant or never seen."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, width)).astype(np.float32)
    y = (np.abs(x[:, 0]) + 0.3 * rng.normal(size=n) > 1.2).astype(int)
    x[rng.random((n, width)) < 0.1] = np.nan
    x[:, -1], x[:, -2] = np.nan, 3.0
    return x, y
