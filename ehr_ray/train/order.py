"""Which patients make up which step: a pure function of (seed, epoch), the same for any world."""

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.int64]


def steps_in_epoch(num_patients: int, batch_size: int) -> int:
    """Return the optimizer steps of one pass: every patient once, batches as even as can be."""
    return -(-num_patients // batch_size)


def epoch_windows(
    lengths: Indices,
    block_sizes: Indices,
    shard_blocks: Indices,
    *,
    batch_size: int,
    bucket_batches: int,
    shuffle_patients: int,
    seed: int,
    epoch: int,
) -> list[list[Indices]]:
    """Return the patients of each step of an epoch, by window; each patient is in exactly one.

    Shards are shuffled, and blocks within each, then patients within windows of blocks of about
    `shuffle_patients`: a cohort larger than memory is read window by window, few shards at a time.
    A batch at the border of two windows is of the first. Within `bucket_batches` batches patients
    are sorted by length, so that a batch pads little, and the batches are shuffled again. The
    remainder is spread over all batches rather than left as a short one.
    """
    rng = np.random.Generator(np.random.Philox(key=[seed, epoch]))
    parts = _shuffled(block_sizes, shard_blocks, shuffle_patients, rng)
    order = np.concatenate(parts) if parts else np.zeros(0, np.int64)
    ends = np.cumsum([len(part) for part in parts])
    num_batches = steps_in_epoch(len(order), batch_size)
    bounds = np.linspace(0, len(order), num_batches + 1).round().astype(np.int64)
    windows: list[list[Indices]] = [[] for _ in parts]
    for first in range(0, num_batches, bucket_batches):
        group = bounds[first : first + bucket_batches + 1]
        patients = order[group[0] : group[-1]]
        patients = patients[np.argsort(lengths[patients], kind="stable")]
        batches = np.split(patients, group[1:-1] - group[0])
        window = windows[int(np.searchsorted(ends, group[0], side="right"))]
        window += [batches[i] for i in rng.permutation(len(batches))]
    return [window for window in windows if window]


def share(batch: Indices, rank: int, world: int, accumulate: int = 1) -> list[Indices]:
    """Return one rank's part of a step as micro-batches; the parts of all ranks make the batch.

    A batch ascends by length. From the longest on patients are dealt back and forth, so that no
    rank has the longer one of every few: ranks wait for the one with most tokens. Lengths
    themselves are not asked: models read a long stay in part, each in its own way.
    """
    row, place = np.divmod(np.arange(len(batch))[::-1], world)
    mine = batch[np.where(row % 2, world - 1 - place, place) == rank]
    return [mine[i::accumulate] for i in range(accumulate)]


def _shuffled(
    block_sizes: Indices, shard_blocks: Indices, window: int, rng: np.random.Generator
) -> list[Indices]:
    starts = np.cumsum(block_sizes) - block_sizes
    first = np.cumsum(shard_blocks) - shard_blocks
    blocks: list[int] = []
    for shard in rng.permutation(len(shard_blocks)):
        own = np.arange(first[shard], first[shard] + shard_blocks[shard])
        blocks += (rng.permutation(own) if len(own) > 1 else own).tolist()
    parts: list[Indices] = []
    pending: list[Indices] = []
    size = 0
    for block in blocks:
        pending.append(np.arange(starts[block], starts[block] + block_sizes[block]))
        size += int(block_sizes[block])
        if size >= window:
            parts.append(rng.permutation(np.concatenate(pending)))
            pending, size = [], 0
    if pending:
        parts.append(rng.permutation(np.concatenate(pending)))
    return parts
