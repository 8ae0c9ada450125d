import numpy as np
import torch

from ehr_ray.families.set_vae.sequence.statistics import STATISTICS, statistics

NUM_CODES = 12


def by_hand(row):
    """The statistics of one row, code by code, with numpy."""
    found = np.zeros((NUM_CODES, len(STATISTICS)))
    for code in range(NUM_CODES):
        values = row["value"][(row["code"] == code) & ~row["carried"]]
        if len(values):
            told = {"present": 1, "count": np.log1p(len(values))}
            told |= {"first": values[0], "last": values[-1]}
            told |= {how: getattr(values, how)() for how in ("mean", "min", "max", "std")}
            found[code] = [told[name] for name in STATISTICS]
    return found.ravel()


def test_the_statistics_are_those_of_measured_values_by_variable(make_row, made_batch):
    rows = [make_row(1, [3, 0, 12, 5, 8]), make_row(2, [0]), make_row(3, [7, 7, 7, 7])]
    assert any(row["carried"].any() for row in rows)
    found = statistics(made_batch(*rows), NUM_CODES)
    np.testing.assert_allclose(found, [by_hand(row) for row in rows], rtol=1e-5, atol=1e-5)


def test_a_stay_has_its_own_statistics_in_any_company(make_row, made_batch):
    rows = [make_row(subject, [4, 6, 2]) for subject in (1, 2, 3)]
    together = statistics(made_batch(*rows), NUM_CODES)
    assert torch.equal(together[1:2], statistics(made_batch(rows[1]), NUM_CODES))


def test_carried_values_alone_say_nothing(make_row, made_batch):
    batch = made_batch(make_row(1, [3, 4], carried=True))
    assert not statistics(batch, NUM_CODES).any()
