import pytest
import torch

from ehr_ray.families.set_vae.augment import (
    hidden_tokens,
    jitter,
    keys_of,
    query_rows,
    sample_sets,
    set_key,
    value_noise,
)
from ehr_ray.families.set_vae.data import collate

SEED = 12345


@pytest.fixture(scope="module")
def many(make_row, make_config):
    """3,000 sets of each size from 1 to 12."""

    def build(size, carried=None):
        rows = [make_row(100 + i, [size] * 30, carried) for i in range(100)]
        return collate(rows, make_config())

    return build


def hidden_of(batch, config, seed=SEED):
    return hidden_tokens(batch, config, keys_of(batch, seed))


def share(hidden, where):
    return float(hidden[where].float().mean())


def test_values_are_hidden_at_their_rates(many, make_config):
    batch = many(12)
    hidden = hidden_of(batch, make_config(clean=True, p_stale=0.5, p_live=0.05))
    assert abs(share(hidden, batch["carried"]) - 0.5) < 0.02
    assert abs(share(hidden, batch["mask"] & ~batch["carried"]) - 0.05) < 0.01


def test_carried_values_alone_may_be_hidden(many, make_config):
    batch = many(12)
    hidden = hidden_of(batch, make_config(clean=True, p_stale=0.5))
    assert 0.4 < share(hidden, batch["carried"]) < 0.6
    assert not (hidden & ~batch["carried"]).any()


@pytest.mark.parametrize(
    ("size", "counts"), [(1, {0: 1.0}), (3, {0: 0.6, 1: 0.4}), (5, {0: 0.6, 1: 0.4})]
)
def test_a_small_set_has_one_token_masked_or_none(many, make_config, size, counts):
    # The share is of large sets: without one small sets are masked all the same.
    config = make_config(clean=True, set_mae_ratio=0.0, small_set_mask_prob=0.4)
    found = hidden_of(many(size), config).sum(1)
    for count, expected in counts.items():
        assert abs(float((found == count).float().mean()) - expected) < 0.03
    assert set(found.tolist()) == set(counts)


@pytest.mark.parametrize(
    ("size", "ratio", "most", "count"),
    [(6, 0.15, 2, 1), (7, 0.15, 2, 2), (12, 0.15, 2, 2), (12, 0.3, 2, 2), (12, 0.3, 9, 4)],
)
def test_a_large_set_has_a_share_of_its_tokens_masked(many, make_config, size, ratio, most, count):
    config = make_config(clean=True, set_mae_ratio=ratio, max_masks_per_set=most)
    found = hidden_of(many(size), config)
    assert set(found.sum(1).tolist()) == {count}
    rates = found.float().mean(0)[:size]
    assert (rates - count / size).abs().max() < 0.05


def test_at_least_one_value_stays_visible_a_live_one_if_there_is(batch, many, make_config):
    config = make_config(p_stale=1.0, p_live=1.0)
    for sets in (batch, many(3)):
        visible = sets["mask"] & ~hidden_of(sets, config)
        assert visible.sum(1).tolist() == [1] * len(visible)
        has_live = (sets["mask"] & ~sets["carried"]).any(1)
        assert not (visible & sets["carried"]).any(1)[has_live].any()


def test_padding_is_never_hidden_and_all_switches_off_hide_nothing(batch, make_config):
    assert not (hidden_of(batch, make_config(p_live=1.0)) & ~batch["mask"]).any()
    assert not hidden_of(batch, make_config(clean=True)).any()
    off = make_config(clean=True, small_set_mask_prob=1.0, max_masks_per_set=0)
    assert not hidden_of(batch, off).any()


def test_draws_change_with_the_seed_and_not_with_the_batch(rows, make_config):
    config = make_config(p_stale=0.5, p_live=0.5)
    whole, alone = collate(rows, config), collate(rows[2:], config)
    mine = whole["patient"] == 2
    for draw in (
        lambda b, seed: hidden_of(b, config, seed).float(),
        lambda b, seed: value_noise(keys_of(b, seed), 0.1),
        lambda b, seed: query_rows(keys_of(b, seed)),
    ):
        ours, theirs = draw(whole, SEED)[mine], draw(alone, SEED)
        mask = alone["mask"]
        assert torch.equal(ours[whole["mask"][mine]], theirs[mask])
        assert not torch.equal(draw(alone, SEED + 2)[mask], theirs[mask])


def test_value_noise_has_its_deviation_and_can_be_off(many):
    batch = many(12)
    noise = value_noise(keys_of(batch, SEED), 0.07)
    assert abs(float(noise.std()) - 0.07) < 0.001
    assert abs(float(noise.mean())) < 0.001
    assert not value_noise(keys_of(batch, SEED), 0.0).any()


def test_jitter_turns_directions_a_little_and_keeps_their_length():
    directions = torch.nn.functional.normalize(torch.randn(2000, 16), dim=-1)
    turned = jitter(directions, 0.01, SEED)
    torch.testing.assert_close(turned.norm(dim=-1), torch.ones(2000))
    moved = (turned - directions).norm(dim=-1).square().mean().sqrt()
    assert abs(float(moved) - 0.01 * 15**0.5) < 0.002
    assert jitter(directions, 0.0, SEED) is directions
    assert torch.equal(jitter(directions, 0.01, SEED), turned)
    assert not torch.equal(jitter(directions, 0.01, SEED + 2), turned)


def test_each_patient_keeps_at_most_k_sets_whatever_the_rank(rows, make_config):
    whole = collate(rows, make_config())
    chosen = sample_sets(whole, 2, SEED)
    assert chosen["num_sets"].tolist() == [2, 1, 2]
    assert chosen["patient"].tolist() == [0, 0, 1, 2, 2]
    assert chosen["subject_id"].tolist() == [11, 5, 8]
    pairs = list(zip(chosen["patient"].tolist(), chosen["set_index"].tolist(), strict=True))
    assert pairs == sorted(set(pairs))
    for i, row in enumerate(rows):
        alone = sample_sets(collate([row], make_config()), 2, SEED)
        mine = chosen["patient"] == i
        assert alone["set_index"].tolist() == chosen["set_index"][mine].tolist()
        assert torch.equal(set_key(alone, SEED), set_key(chosen, SEED)[mine])
        where = alone["mask"]
        assert torch.equal(alone["value"][where], chosen["value"][mine][chosen["mask"][mine]])


def test_every_set_is_drawn_equally_often(make_row, make_config):
    batch = collate([make_row(3, [1] * 8)], make_config())
    drawn = torch.cat([sample_sets(batch, 2, seed)["set_index"] for seed in range(2000)])
    rates = torch.bincount(drawn, minlength=8) / 2000
    assert (rates - 0.25).abs().max() < 0.04


def test_few_sets_or_no_limit_leave_the_batch(batch):
    assert sample_sets(batch, None, SEED) is batch
    assert sample_sets(batch, 5, SEED) is batch
