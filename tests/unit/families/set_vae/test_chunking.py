import numpy as np
import pytest
import torch

from ehr_ray.families.set_vae import chunking


def batch_of(sizes):
    """A batch of sets of these sizes in one patient, each token's value the place it has."""
    sizes = torch.tensor(sizes)
    mask = torch.arange(max(1, int(sizes.max()))) < sizes[:, None]
    return {
        "mask": mask,
        "value": torch.arange(mask.numel()).reshape(mask.shape) * mask,
        "patient": torch.zeros(len(sizes), dtype=torch.long),
        "num_sets": torch.tensor([len(sizes)]),
        "subject_id": torch.tensor([5]),
    }


def padding(batch, pieces):
    sizes = batch["mask"].sum(1)
    padded = sum(len(piece) * max(1, int(sizes[piece].max())) for piece in pieces)
    return 1 - float(sizes.sum()) / padded


def test_a_batch_without_sets_is_one_chunk_of_none():
    batch = batch_of([2, 3])
    empty = chunking.chosen(batch, torch.zeros(2, dtype=torch.bool))
    (piece,) = chunking.by_size(empty, 100)
    assert chunking.chunk(empty, piece)["value"].shape == (0, 1)
    assert chunking.padded_tokens(empty, [piece]) == 0
    assert chunking.joined([piece], [piece]).shape == (0,)


@pytest.mark.parametrize("tokens", [1, 7, 100, 10**6])
def test_every_set_is_in_one_chunk_no_chunk_too_large(tokens):
    sizes = np.random.default_rng(0).integers(0, 30, 500).tolist()
    batch = batch_of(sizes)
    pieces = chunking.by_size(batch, tokens)
    assert torch.cat(pieces).sort().values.tolist() == list(range(500))
    for piece in pieces:
        width = max(sizes[i] for i in piece)
        assert len(piece) == 1 or len(piece) * width <= tokens
    ordered = [sizes[i] for i in torch.cat(pieces)]
    assert ordered == sorted(sizes)


@pytest.mark.parametrize("sizes", [[0], [3], [0, 0, 0], [1] * 700, [40] + [1] * 300])
def test_odd_batches_are_cut_too(sizes):
    pieces = chunking.by_size(batch_of(sizes), 100)
    assert torch.cat(pieces).sort().values.tolist() == list(range(len(sizes)))
    assert all(len(piece) for piece in pieces)


def test_padding_of_sets_as_in_icu_stays_is_below_15_percent():
    """Sets of 5 to 40 tokens, 32 stays: the sizes that carried values give on real stays."""
    rng = np.random.default_rng(0)
    batch = batch_of(rng.normal(24, 7, 32 * 70).round().clip(5, 40).astype(int).tolist())
    assert padding(batch, chunking.by_size(batch, 65536)) < 0.15
    assert padding(batch, [torch.arange(32 * 70)]) > 0.3


def test_a_chunk_holds_the_sets_and_no_common_padding():
    batch = batch_of([4, 1, 9, 2])
    part = chunking.chunk(batch, torch.tensor([3, 0]))
    assert part["mask"].shape == (2, 4)
    assert part["value"].tolist() == [
        batch["value"][3, :4].tolist(),
        batch["value"][0, :4].tolist(),
    ]
    assert part["patient"].shape == (2,)
    assert part["num_sets"] is batch["num_sets"]
    assert part["subject_id"] is batch["subject_id"]


def test_rows_of_chunks_come_back_in_the_order_of_the_sets():
    batch = batch_of(np.random.default_rng(1).integers(0, 20, 300).tolist())
    pieces = chunking.by_size(batch, 64)
    assert len(pieces) > 5
    rows = [chunking.chunk(batch, piece)["value"].sum(1) for piece in pieces]
    assert torch.equal(chunking.joined(rows, pieces), batch["value"].sum(1))


def test_chosen_sets_by_mask_and_by_index_are_the_same():
    batch = batch_of([4, 1, 9, 2])
    mask = torch.tensor([True, False, True, False])
    by_mask, by_index = chunking.chosen(batch, mask), chunking.chosen(batch, torch.tensor([0, 2]))
    assert all(torch.equal(by_mask[name], by_index[name]) for name in batch)
    assert len(by_mask["value"]) == 2
