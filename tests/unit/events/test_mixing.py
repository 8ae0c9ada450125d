import numpy as np
import torch

from ehr_ray.events.mixing import splitmix64, unit_interval
from ehr_ray.nn.noise import combine


def test_splitmix64_gives_the_published_sequence():
    # The first outputs of the reference generator for seed 0: its state grows by GOLDEN.
    steps = np.arange(3, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    assert [hex(n) for n in splitmix64(steps)] == [
        "0xe220a8397b1dcdaf",
        "0x6e789e6aa1b965f4",
        "0x6c45d188009454f",
    ]


def test_tensors_are_mixed_as_arrays_are():
    keys = np.array([0, 1, 7, 2**40 + 3, -1, -(2**63), 2**63 - 1], np.int64)
    mixed = splitmix64(keys.view(np.uint64)).view(np.int64)
    assert combine(torch.from_numpy(keys)).tolist() == mixed.tolist()


def test_mixed_numbers_fill_the_unit_interval_evenly():
    share = unit_interval(splitmix64(np.arange(100_000, dtype=np.uint64)))
    assert share.min() >= 0
    assert share.max() < 1
    counts = np.histogram(share, 20, (0, 1))[0] / len(share)
    assert np.abs(counts - 0.05).max() < 0.003
