from datetime import datetime

import numpy as np
import pyarrow as pa
import pytest

from ehr_ray.errors import InputError
from ehr_ray.sources.building.shards import SUBJECTS
from ehr_ray.sources.parsing.labels import LeftOut, label_rows, resolve

T = [datetime(2020, 1, day) for day in range(1, 9)]
SUBJECTS_TABLE = pa.table(
    [[1, 2, 3], [4, 4, 1], [T[0], T[1], None], [T[4], T[5], None]], schema=SUBJECTS
)


def ids(*numbers):
    return np.array(numbers, np.int64)


def rows_of(table):
    return [tuple(row.values()) for row in table.to_pylist()]


def test_time_is_given_or_counted_from_the_origin_or_the_last_event():
    at = pa.array([T[7]], pa.timestamp("us"))
    pieces = [
        label_rows(ids(2), [True], times=at),
        label_rows(ids(1), [True], 24 * 60.0),
        label_rows(ids(2), [False]),
    ]
    table, left_out = resolve(pa.concat_tables(pieces), SUBJECTS_TABLE)
    assert rows_of(table) == [(1, T[1], True), (2, T[5], False), (2, T[7], True)]
    assert left_out == LeftOut()


def test_labels_of_strangers_and_of_untimed_subjects_are_counted():
    table, left_out = resolve(label_rows(ids(0, 1, 3, 9), [True] * 4), SUBJECTS_TABLE)
    assert rows_of(table) == [(1, T[4], True)]
    assert left_out == LeftOut(without_subject=3)


def test_unknown_values_give_no_label_and_are_counted():
    table, left_out = resolve(label_rows(ids(1, 2), [None, True]), SUBJECTS_TABLE)
    assert rows_of(table) == [(2, T[5], True)]
    assert left_out == LeftOut(unknown=1)


def test_repeats_are_counted_and_contradictions_refused():
    same = [label_rows(ids(1, 1), [True, True]), label_rows(ids(1), [True])]
    table, left_out = resolve(pa.concat_tables(same), SUBJECTS_TABLE)
    assert (len(table), left_out) == (1, LeftOut(repeated=2))
    left_out.check("t")
    other = pa.concat_tables([*same, label_rows(ids(1), [False])])
    _, left_out = resolve(other, SUBJECTS_TABLE)
    with pytest.raises(InputError, match="task t: two values of one subject at one time, 1 times"):
        left_out.check("t")


def test_no_labels_at_all():
    assert len(resolve(label_rows(ids(), []), SUBJECTS_TABLE)[0]) == 0
    table, left_out = resolve(label_rows(ids(1), [True]), SUBJECTS_TABLE.slice(0, 0))
    assert (len(table), left_out) == (0, LeftOut(without_subject=1))
