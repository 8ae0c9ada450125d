"""`--split-by CODE`: everybody who shares a value of a static code comes into one split.

The parts are read first, divided as if nothing was said, since a subject's value may stand in any
of them. Then each part is written once more, with the keys of the splits that groups have.
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from ehr_ray.errors import InputError
from ehr_ray.events.schema import EVENTS, SPLITS
from ehr_ray.sources.building.keyed import read_all
from ehr_ray.sources.building.staging import (
    SPLITS_TABLE,
    STAGED,
    Plan,
    event_keys,
    publish_as,
    side_table,
)
from ehr_ray.sources.parsing.identifiers import subject_id
from ehr_ray.sources.parsing.split_table import SplitTable, read_mapped, write_mapped
from ehr_ray.sources.splits import SplitPolicy, sample_positions
from ehr_ray.storage import files


def divide_groups(plan: Plan, num_parts: int) -> None:
    """Write which split each subject with a value of the code is in.

    Groups that share a subject are one. They are put into a fixed random order, and the splits are
    runs of it that have about the shares of subjects asked for. Raises `InputError` where nobody
    has the code, or all are one group.
    """
    subject, group, names = _members(plan, num_parts)
    if not len(subject):
        raise InputError(
            f"--split-by {plan.split_by}: no static event of the input is {plan.split_by} or "
            f"{plan.split_by}//...; name a static code of it"
        )
    new = np.append(True, subject[1:] != subject[:-1])
    number, component = _linked(group, new, len(names))
    ids, of = subject[new], component[group[new]]
    del subject, group
    if number < 2:
        raise InputError(
            f"--split-by {plan.split_by}: all {len(ids):,} subjects share one value or are linked "
            "by those who have several; name another code"
        )
    first: dict[int, str] = {}
    for name, at in sorted(zip(names, component.tolist(), strict=True)):
        first.setdefault(at, name)
    keys = np.array(
        [subject_id(f"{plan.policy.seed} {first[at]}") for at in range(number)], np.int64
    )
    split = _splits(keys, np.bincount(of, minlength=number), plan.policy)
    write_mapped(SplitTable(ids, split[of], {}), plan.staging / SPLITS_TABLE)


def _members(
    plan: Plan, num_parts: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int32], list[str]]:
    """Return (a subject and a group of it each, by ascending subject; the groups' names)."""
    known: dict[str, int] = {}
    subjects, groups = [np.zeros(0, np.int64)], [np.zeros(0, np.int32)]
    for index in range(num_parts):
        rows = side_table(plan.part(index), "groups")
        if rows is None:
            continue
        encoded = rows["group"].combine_chunks().dictionary_encode()
        names = encoded.dictionary.to_pylist()
        number = np.array([known.setdefault(name, len(known)) for name in names], np.int32)
        groups.append(number[encoded.indices.to_numpy()])
        subjects.append(rows["subject_id"].to_numpy())
    subject, group = np.concatenate(subjects), np.concatenate(groups)
    del subjects, groups
    order = np.argsort(subject, kind="stable")
    return subject[order], group[order], list(known)


def _linked(
    group: npt.NDArray[np.int32], new: npt.NDArray[np.bool_], count: int
) -> tuple[int, npt.NDArray[np.int32]]:
    """Return (number of components, the component of each group): a subject's groups are one.

    `group` are the groups of subjects, those of one after another; `new` says where one begins.
    """
    # Every ingest reads this module, and few divide by groups: importing this takes 0.3 s.
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    same = np.flatnonzero(~new)
    pairs = np.unique(group[same - 1].astype(np.int64) * count + group[same])
    edges = coo_array((np.ones(len(pairs)), np.divmod(pairs, count)), shape=(count, count))
    number, component = connected_components(edges, directed=False)
    return int(number), component


def _splits(
    keys: npt.NDArray[np.int64], sizes: npt.NDArray[np.int64], policy: SplitPolicy
) -> npt.NDArray[np.int8]:
    """Return the position in `SPLITS` of each group."""
    order = np.argsort(sample_positions(keys), kind="stable")
    middle = (np.cumsum(sizes[order]) - sizes[order] / 2) / sizes.sum()
    found = np.empty(len(keys), np.int8)
    edges = np.cumsum(policy.fractions)[:-1]
    found[order] = np.minimum(np.searchsorted(edges, middle, side="right"), len(SPLITS) - 1)
    return found


def divide_part(plan: Plan, index: int) -> None:
    """Write a part's events by the splits of their groups; one that is there is kept.

    Subjects without a value of the code are divided by their own hash.
    """
    final = plan.keyed(index)
    if final.exists():
        return
    known = read_mapped(plan.splits_table())
    with (
        files.new_folder(final, publish_as(final)) as folder,
        plan.writer(folder, STAGED, EVENTS, plan.keys) as writer,
    ):
        for events in read_all(plan.read(plan.part(index)), STAGED, EVENTS):
            keys, _ = event_keys(events, plan, known)
            writer.write(events, keys)


def group_notes(plan: Plan, alone: int) -> Iterator[str]:
    """Yield what is to be said of the division; `alone` subjects have no value of the code."""
    if alone:
        yield f"--split-by {plan.split_by}: {alone:,} subjects have no value of it: divided by hash"
    there = np.unique(read_mapped(plan.splits_table()).split)
    for position, share in enumerate(plan.policy.fractions):
        if share > 0 and position not in there:
            yield (
                f"--split-by {plan.split_by}: its groups are too few or too large for {share:g} of "
                f"the subjects in {SPLITS[position]}: none is there; change --splits or --seed"
            )
