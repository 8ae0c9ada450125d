import math

import numpy as np
import pytest
import torch

from ehr_ray.nn import future_value as module
from ehr_ray.nn.future_value import (
    FLOOR,
    FutureValue,
    ValueTruth,
    negative_log_density,
    values_after,
)

EDGES = torch.tensor([0.0, 1.0, 4.0])


def normal(value, mean, scale):
    scale = math.hypot(scale, FLOOR)
    return math.log(scale * math.sqrt(2 * math.pi)) + (value - mean) ** 2 / (2 * scale**2)


def truth_of(value, last, asked=None, known=None):
    """One window and code of N patients with one moment each."""
    value, last = (torch.tensor(v).float() for v in (value, last))
    yes = torch.ones(len(value), dtype=torch.bool)
    asked = yes if asked is None else torch.tensor(asked)
    known = yes if known is None else torch.tensor(known)
    wide = (-1, 1, 1, 1)
    return ValueTruth(value.view(wide), asked.view(wide), last[:, None, None], known[:, None, None])


def test_the_density_is_that_computed_by_hand():
    value, mean = torch.tensor([1.0, -2.0, 0.5]), torch.tensor([0.0, 1.0, 0.5])
    scale = torch.tensor([1.0, 0.5, 1e-6])
    found = negative_log_density(value, mean, scale.log()).tolist()
    rows = zip(value.tolist(), mean.tolist(), scale.tolist(), strict=True)
    assert found == pytest.approx([normal(*row) for row in rows], rel=1e-5)


@pytest.mark.parametrize("closed", [True, False])
def test_windows_hold_what_a_loop_finds_in_them_however_few_codes_at_a_time(closed, monkeypatch):
    rng = np.random.default_rng(0)
    patients, moments, codes = 4, 5, 3
    minute = np.sort(rng.integers(0, 40, (patients, 60)) * 15.0, 1)
    minute[1, 30:] = np.inf
    code = rng.integers(0, codes + 1, minute.shape)
    code[2] = codes
    value = rng.normal(size=minute.shape).astype(np.float16).astype(np.float32)
    moment = rng.integers(0, 40, (patients, moments)) * 15.0
    given = [torch.from_numpy(part) for part in (code, minute, value, moment)]
    found = values_after(*given, EDGES, codes, closed=closed)
    for b, m, c in np.ndindex(patients, moments, codes):
        mine = (code[b] == c) & np.isfinite(minute[b])
        hours = (minute[b] - moment[b, m]) / 60
        past = mine & ((hours <= 0) if closed else (hours < 0))
        assert bool(found.known[b, m, c]) == past.any()
        assert float(found.last[b, m, c]) == (value[b][past][-1] if past.any() else 0)
        for k in range(2):
            low, high = EDGES[k].item(), EDGES[k + 1].item()
            inside = (hours > low) & (hours <= high) if closed else (hours >= low) & (hours < high)
            there = value[b][mine & inside]
            assert bool(found.asked[b, m, k, c]) == bool(len(there))
            wanted = there.astype(np.float64).mean() if len(there) else 0
            assert float(found.value[b, m, k, c]) == pytest.approx(wanted, abs=1e-6)
    assert found.asked.any()
    assert found.known.any()
    monkeypatch.setattr(module, "ENTRIES", 1)
    for whole, part in zip(found, values_after(*given, EDGES, codes, closed=closed), strict=True):
        assert torch.equal(whole, part)


def test_a_sum_of_many_values_is_exact():
    """In float32 a running sum of 100,000 of them is off by more than a hundredth."""
    value = torch.full((1, 100_000), 4.99).half().float()
    minute = torch.arange(100_000, dtype=torch.float64)[None]
    moment = torch.tensor([[-1.0, 99_990.0]], dtype=torch.float64)
    found = values_after(
        torch.zeros_like(value, dtype=torch.int64), minute, value, moment,
        torch.tensor([0.0, 9999.0]), 1, closed=True,
    )  # fmt: skip
    assert found.value.flatten().tolist() == [value[0, 0].item()] * 2


def test_the_line_through_the_last_value_is_that_of_least_squares():
    rng = np.random.default_rng(1)
    last = rng.normal(2, 1.5, 5000)
    value = 0.4 * last - 1 + rng.normal(0, 0.3, 5000)
    asked, known = rng.random(5000) < 0.9, rng.random(5000) < 0.8
    head = FutureValue(4, 1, (6.0,))
    whole = truth_of(value, last, asked, known)
    head.fit(ValueTruth(*(part[rows] for part in whole)) for rows in (slice(900), slice(900, None)))
    both = asked & known
    slope, intercept = np.polyfit(last[both], value[both], 1)
    left = (value - slope * last - intercept)[both].std()
    found = head.carried.flatten().tolist()
    assert found == pytest.approx([slope, intercept, math.log(left)], abs=5e-3)
    assert head.mean.item() == pytest.approx(value[asked].mean(), abs=1e-3)
    assert head.log_scale.exp().item() == pytest.approx(value[asked].std(), abs=1e-3)
    wanted = [
        normal(y, intercept + slope * x, left)
        if has
        else normal(y, value[asked].mean(), value[asked].std())
        for x, y, has in zip(last[asked], value[asked], known[asked], strict=True)
    ]
    out = head(torch.zeros(5000, 1, 4), whole)
    assert float(out["values"]) == asked.sum()
    assert float(out["future_value_baseline"] / out["values"]) == pytest.approx(
        np.mean(wanted), abs=2e-3
    )


def test_where_nobody_was_measured_the_last_value_is_carried():
    head = FutureValue(4, 1, (6.0,))
    head.fit([truth_of([0.0, 0.0], [1.0, 2.0], asked=[False, False])])
    assert head.carried.flatten().tolist() == [1.0, 0.0, 0.0]
    assert (head.mean.item(), head.log_scale.item()) == (0.0, 0.0)
    out = head(torch.zeros(1, 1, 4), truth_of([1.5], [1.0]))
    assert float(out["future_value_baseline"]) == pytest.approx(normal(1.5, 1.0, 1.0), rel=1e-4)


def test_a_fresh_head_says_what_train_has_and_its_scale_is_bounded():
    head = FutureValue(4, 2, (6.0, 12.0))
    head.mean += torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    head.log_scale += 0.5
    state = torch.randn(3, 4)
    with torch.no_grad():
        head.codes.zero_()
        mean, log_scale = head.normal(state)
        torch.testing.assert_close(mean, head.mean.expand(3, 2, 2))
        torch.testing.assert_close(log_scale, head.log_scale.expand(3, 2, 2))
        head.codes += 1e6
        _, log_scale = head.normal(state)
    moved = (log_scale - head.log_scale).abs()
    torch.testing.assert_close(moved, torch.full_like(moved, module.LIMIT))


def test_what_is_not_asked_has_no_say():
    head = FutureValue(8, 1, (6.0,))
    state = torch.randn(2, 1, 8)
    truth = truth_of([0.3, 0.7], [0.0, 0.0], asked=[True, False])
    found = head(state, truth)
    assert float(found["values"]) == 1
    other = truth._replace(value=truth.value + torch.tensor([0.0, 9.0]).view(2, 1, 1, 1))
    moved = head(state + torch.tensor([0.0, 5.0]).view(2, 1, 1), other)
    for name in ("future_value", "future_value_baseline"):
        assert torch.equal(found[name], moved[name])


def test_half_precision_is_left_before_the_density():
    head = FutureValue(8, 3, (6.0, 12.0))
    state = torch.randn(5, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mean, log_scale = head.normal(state)
    assert (mean.dtype, log_scale.dtype) == (torch.float32, torch.float32)
    torch.testing.assert_close(mean, head.normal(state)[0], rtol=0.05, atol=0.05)
