import torch

from ehr_ray.families.event_transformer.blocks import (
    Block,
    rotary_turns,
    rotated,
    sinusoids,
    time_waves,
)

CPU = torch.device("cpu")


def test_sinusoids_are_those_of_the_paper():
    table = sinusoids(5, 8, CPU)
    assert table.shape == (5, 8)
    torch.testing.assert_close(table[3, 0], torch.tensor(3.0).sin())
    torch.testing.assert_close(table[3, 5], torch.tensor(3 / 10_000 ** (4 / 8)).cos())


def test_rotary_scores_depend_on_distance_alone():
    query, key = torch.randn(2, 1, 1, 1, 8)
    turns = rotary_turns(20, 8, CPU)

    def score(i, j):
        return (rotated(query, turns[i : i + 1]) * rotated(key, turns[j : j + 1])).sum()

    torch.testing.assert_close(score(3, 7), score(12, 16))
    assert (score(3, 7) - score(3, 9)).abs() > 1e-3
    torch.testing.assert_close(rotated(query, turns[5:6]).norm(), query.norm())


def test_time_waves_tell_an_hour_from_a_day_and_from_a_year():
    waves = time_waves(torch.tensor([0.0, 60.0, 1440.0, 525_600.0]), 32)
    assert waves.shape == (4, 32)
    assert torch.cdist(waves, waves).add(torch.eye(4) * 9).min() > 0.5


def test_a_causal_block_sees_no_later_token_and_a_masked_one_no_padding():
    torch.manual_seed(0)
    block = Block(8, 2, 0.0)
    x, other = torch.randn(2, 1, 6, 8)
    changed = torch.cat([x[:, :4], other[:, 4:]], 1)
    before, after = (block(h, None, True, None)[:, :4] for h in (x, changed))
    torch.testing.assert_close(before, after)
    mask = torch.arange(6)[None] < 4
    before, after = (block(h, mask, False, None)[:, :4] for h in (x, changed))
    torch.testing.assert_close(before, after)
    assert (block(x, None, False, None)[:, :4] - before).abs().max() > 1e-3
