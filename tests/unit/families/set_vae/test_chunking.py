import numpy as np
import pytest
import torch

from ehr_ray.families.set_vae import chunking
from ehr_ray.families.set_vae.config import most_sets


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
    empty = chunking.chosen(batch, torch.zeros(0, dtype=torch.long))
    pieces = chunking.by_size({**empty, "num_sets": torch.tensor([0])}, 100)
    ((piece, width),) = pieces
    assert chunking.chunk(empty, piece, width)["value"].shape == (0, 1)
    assert chunking.padded_tokens(empty, pieces) == 0
    assert chunking.joined([piece], [piece]).shape == (0,)


@pytest.mark.parametrize("tokens", [1, 7, 100, 10**6])
def test_every_set_is_in_one_chunk_no_chunk_too_large(tokens):
    sizes = np.random.default_rng(0).integers(0, 30, 500).tolist()
    batch = batch_of(sizes)
    found = chunking.by_size(batch, tokens)
    pieces = found.indices
    assert found.num_sets == [500]
    assert found.widths == [max(1, *(sizes[i] for i in piece)) for piece in pieces]
    assert torch.cat(pieces).sort().values.tolist() == list(range(500))
    for piece in pieces:
        width = max(sizes[i] for i in piece)
        assert len(piece) == 1 or len(piece) * width <= tokens
    ordered = [sizes[i] for i in torch.cat(pieces)]
    assert ordered == sorted(sizes)


@pytest.mark.parametrize("sizes", [[0], [3], [0, 0, 0], [1] * 700, [40] + [1] * 300])
def test_odd_batches_are_cut_too(sizes):
    pieces = chunking.by_size(batch_of(sizes), 100).indices
    assert torch.cat(pieces).sort().values.tolist() == list(range(len(sizes)))
    assert all(len(piece) for piece in pieces)


def test_a_chunk_holds_no_more_sets_than_a_gpus_attention_takes():
    pieces = chunking.by_size(batch_of([1] * 420_000), 10**6).indices
    assert max(len(piece) for piece in pieces) < 65_536
    assert torch.cat(pieces).sort().values.tolist() == list(range(420_000))
    some = chunking.by_size(batch_of([1] * 4_000), 10**6, 300)
    assert max(len(piece) for piece in some.indices) == 300


@pytest.mark.parametrize(
    ("queries", "width", "most"),
    [(16, 128, 65_535), (128, 256, 65_535), (1, 257, 65_280), (129, 512, 16_383), (1, 2**40, 1)],
)
def test_its_places_are_counted_in_31_bits(queries, width, most):
    assert most_sets(queries, width) == most
    if most > 1:
        assert most * -(-queries // 128) * 128 * width < 2**31


def test_a_wide_model_reads_fewer_sets_at_a_time(make_config):
    assert make_config().chunk_limits == (65_536, 65_535)
    assert make_config(width=1024, inducing=200).chunk_limits == (65_536, 8191)


def test_padding_of_sets_as_in_icu_stays_is_below_15_percent():
    """Sets of 5 to 40 tokens, 32 stays: the sizes that carried values give on real stays."""
    rng = np.random.default_rng(0)
    batch = batch_of(rng.normal(24, 7, 32 * 70).round().clip(5, 40).astype(int).tolist())
    assert padding(batch, chunking.by_size(batch, 65536).indices) < 0.15
    assert padding(batch, [torch.arange(32 * 70)]) > 0.3


def test_a_chunk_holds_the_sets_and_no_common_padding():
    batch = batch_of([4, 1, 9, 2])
    part = chunking.chunk(batch, torch.tensor([3, 0]), 4)
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
    rows = [chunking.chunk(batch, *piece)["value"].sum(1) for piece in pieces]
    assert torch.equal(chunking.joined(rows, pieces.indices), batch["value"].sum(1))


def test_chunks_of_some_sets_and_of_the_others_hold_every_set_once():
    sizes = np.random.default_rng(1).integers(0, 20, 300).tolist()
    first = torch.arange(300) % 3 == 0
    some, others = chunking.split_by_size(batch_of(sizes), first, 64)
    assert torch.cat(some.indices).sort().values.tolist() == list(range(0, 300, 3))
    assert torch.cat(some.indices + others.indices).sort().values.tolist() == list(range(300))
    for index, width in [*some, *others]:
        assert width == max(1, *(sizes[i] for i in index))
