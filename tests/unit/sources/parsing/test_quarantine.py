import numpy as np

from ehr_ray.events.schema import REJECTED
from ehr_ray.sources.parsing.quarantine import Rejects, masked


def test_rows_are_sorted_by_line_within_a_file_and_files_by_arrival():
    rejects = Rejects()
    rejects.row("b", 9, "late")
    rejects.file("a", "whole")
    rejects.rows(np.array([False, True]), lambda i: ("b", i + 1), lambda i: f"row {i}")
    table = rejects.table()
    assert table.schema.equals(REJECTED)
    assert [tuple(r.values()) for r in table.to_pylist()] == [
        ("b", 2, "row 1"),
        ("b", 9, "late"),
        ("a", None, "whole"),
    ]
    assert len(rejects) == 3


def test_reasons_are_one_short_line():
    rejects = Rejects()
    rejects.file("a", "two\nlines " + "x" * 500)
    reason = rejects.table()["reason"][0].as_py()
    assert reason.startswith("two lines x")
    assert len(reason) == 200


def test_nothing_refused_is_an_empty_table():
    assert Rejects().table().num_rows == 0


def test_what_a_reason_quotes_is_masked_for_the_screen():
    for reason, shown in (
        ("RecordID '132539' in another file", "RecordID … in another file"),
        (
            "hadm_id 21 of subject_id 7 is not in hosp/admissions",
            "hadm_id … of subject_id … is not in hosp/admissions",
        ),
        (
            '3 cells where the header has 5: \'10006, Ann, "x" and so on...',
            "3 cells where the header has 5: …",
        ),
        ("value nan is not a finite number", "value nan is not a finite number"),
    ):
        assert masked(reason) == shown
