import pytest
import torch

from ehr_ray.families.jepa.masks import draw_masks
from ehr_ray.nn.noise import combine

SIZES = torch.tensor([1, 2, 3, 7, 20, 48, 48])
MASK = torch.arange(48) < SIZES[:, None]
KEYS = torch.arange(len(SIZES)) + 100


def drawn(config, seeds=40):
    for seed in range(seeds):
        yield draw_masks(MASK, combine(KEYS, seed), config)


@pytest.mark.parametrize("kind", ["future", "blocks", "both"])
@pytest.mark.parametrize("ratio", [1.0, 0.4])
def test_every_patient_with_two_rows_has_context_and_targets_apart(make_config, kind, ratio):
    for context, target in drawn(make_config(mask=kind, context_ratio=ratio)):
        assert not (context & target).any()
        assert not ((context | target) & ~MASK).any()
        assert context.any(1).all()
        assert target.any(1).tolist() == [False] + [True] * 6


def test_fifteen_rows_tell_the_next_five(make_config):
    """The published task, at a moment that is drawn."""
    starts = set()
    for context, target in drawn(make_config(mask="future", context_rows=15, target_rows=5)):
        assert context.sum(1)[4:].tolist() == [15, 15, 15]
        assert target.sum(1).tolist() == [0, 1, 1, 3, 5, 5, 5]
        starts.add(int(target[5].float().argmax()))
        for seen, ahead in zip(context[1:], target[1:], strict=True):
            seen, ahead = seen.nonzero().flatten(), ahead.nonzero().flatten()
            assert seen.tolist() == list(range(int(seen[0]), int(ahead[0])))
            assert ahead.tolist() == list(range(int(ahead[0]), int(ahead[-1]) + 1))
    assert len(starts) > 15
    assert min(starts) >= 15
    assert max(starts) <= 43


def test_without_a_limit_the_context_is_all_that_came_before(make_config):
    for context, target in drawn(make_config(mask="future", target_rows=6)):
        first = target[5].float().argmax()
        assert context[5].tolist() == [place < first for place in range(48)]
        assert target[5].sum() == 6
        assert first >= 21


def test_blocks_are_several_and_leave_a_quarter(make_config):
    runs = []
    for context, target in drawn(make_config(mask="blocks", blocks=3, block_share=(0.1, 0.3))):
        assert (context | target).equal(MASK)
        assert (context.sum(1) >= (SIZES // 4).clamp(min=1)).all()
        edges = torch.diff(target[5].int(), prepend=torch.zeros(1, dtype=torch.int))
        runs.append(int((edges == 1).sum()))
    assert set(runs) <= {1, 2, 3}
    assert max(runs) == 3


def test_both_draws_one_of_the_two_for_each_patient(make_config):
    ahead = [
        bool(context[5].nonzero().max() < target[5].nonzero().min())
        for context, target in drawn(make_config(mask="both"))
    ]
    assert 0.2 < sum(ahead) / len(ahead) < 0.8


def test_a_patient_is_masked_alike_in_any_batch_and_unlike_its_neighbour(make_config):
    config = make_config(mask="both")
    context, target = draw_masks(MASK, KEYS, config)
    alone = draw_masks(MASK[5:6], KEYS[5:6], config)
    assert torch.equal(alone[0], context[5:6])
    assert torch.equal(alone[1], target[5:6])
    assert any(not torch.equal(c[5], c[6]) for c, _ in drawn(config))


def test_the_context_keeps_its_share_of_the_rows_that_are_left(make_config):
    whole, half = (
        torch.stack([context.sum(1) for context, _ in drawn(make_config(mask="blocks", **more))])
        for more in ({}, {"context_ratio": 0.5})
    )
    assert (half <= whole).all()
    assert 0.4 < half[:, 5].sum() / whole[:, 5].sum() < 0.6


@pytest.mark.parametrize(("share", "rows"), [((0.1, 0.1), {5}), ((0.1, 0.3), set(range(5, 15)))])
def test_a_block_is_as_long_as_is_asked(make_config, share, rows):
    config = make_config(mask="blocks", blocks=1, block_share=share)
    assert {int(target[5].sum()) for _, target in drawn(config, 200)} == rows
