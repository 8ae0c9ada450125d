import datetime

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ehr_ray.errors import InputError
from ehr_ray.events.schema import EVENTS
from ehr_ray.events.subgroups import Subgroup, SubgroupReader, default_subgroups, place_subgroups

DAY = 86_400_000_000


def at(text):
    return datetime.datetime.fromisoformat(text)


def micro(text):
    return int(np.datetime64(text, "us").astype(np.int64))


@pytest.fixture
def reader(tmp_path):
    """Make a reader of (subject, time or None, code, value) events."""

    def make(*events, subgroups=None):
        columns = [list(column) for column in zip(*events, strict=True)]
        path = tmp_path / "0.parquet"
        pq.write_table(pa.table(columns, schema=EVENTS), path)
        return SubgroupReader(path, subgroups or default_subgroups())

    return make


def test_the_groups_of_a_physionet_stay(reader):
    found = reader(
        (1, None, "Age", 64.0),
        (1, None, "Gender", 0.0),
        (1, None, "ICUType", 3.0),
        (1, at("2000-01-01"), "HR", 80.0),
        (2, None, "Age", 80.0),
        (2, None, "Gender", 1.0),
        (2, None, "ICUType", 4.0),
    )
    told = {s: [found.group_of(n, s, 0) for n in ("age", "sex", "ICU type")] for s in (1, 2)}
    assert told[1] == ["45 to under 65", "female", "medical"]
    assert told[2] == ["80 and over", "male", "surgical"]


def test_the_groups_of_a_mimic_patient_change_with_time(reader):
    found = reader(
        (7, None, "GENDER//M", None),
        (7, at("1950-01-01"), "MEDS_BIRTH", None),
        (7, at("2014-06-01"), "ICU_ADMISSION//Coronary Care Unit (CCU)", None),
        (
            7,
            at("2016-06-01"),
            "ICU_ADMISSION//Medical/Surgical Intensive Care Unit (MICU/SICU)",
            None,
        ),
    )
    before, after = micro("2014-07-01"), micro("2016-07-01")
    assert found.group_of("sex", 7, before) == "male"
    assert [found.group_of("age", 7, t) for t in (before, after)] == [
        "45 to under 65",
        "65 to under 80",
    ]
    assert [found.group_of("ICU type", 7, t) for t in (before, after)] == [
        "coronary",
        "medical and surgical",
    ]


def test_nothing_after_the_time_is_used(reader):
    found = reader(
        (1, at("2000-01-02"), "Age", 30.0),
        (1, at("2000-01-03"), "Age", 90.0),
    )
    assert found.group_of("age", 1, micro("2000-01-01T23:59:59")) is None
    assert found.group_of("age", 1, micro("2000-01-02")) == "under 45"
    assert found.group_of("age", 1, micro("2000-01-03")) == "80 and over"


def test_a_subject_without_such_events_is_in_no_group(reader):
    found = reader((1, None, "Gender", 2.0), (1, None, "Age", None))
    assert found.group_of("sex", 1, 0) is None
    assert found.group_of("age", 1, 0) is None
    assert found.group_of("age", 2, 0) is None


@pytest.mark.parametrize(
    ("care_unit", "group"),
    [
        ("Cardiac Vascular Intensive Care Unit (CVICU)", "cardiac surgery"),
        ("Medical Intensive Care Unit (MICU)", "medical"),
        ("Surgical Intensive Care Unit (SICU)", "surgical"),
        ("Trauma SICU (TSICU)", "surgical"),
        ("Neuro Surgical Intensive Care Unit (Neuro SICU)", "neurological"),
        ("Neuro Stepdown", "neurological"),
        ("Somewhere else", None),
    ],
)
def test_every_care_unit_of_mimic_is_in_one_group(reader, care_unit, group):
    found = reader((1, at("2000-01-01"), f"ICU_ADMISSION//{care_unit}", None))
    assert found.group_of("ICU type", 1, micro("2000-01-02")) == group


def test_own_codes_with_an_equals_sign_and_without_wildcards(reader):
    own = {"ward": Subgroup(groups={"A": ("UNIT=A",), "B": ("UNIT=B", "UNIT.B"), "7": ("U=W=7",)})}
    found = reader(
        (1, None, "UNIT=A", None), (2, None, "UNITxB", None), (3, None, "U=W", 7.0), subgroups=own
    )
    assert [found.group_of("ward", s, 0) for s in (1, 2, 3)] == ["A", None, "7"]


def test_a_shard_without_values_is_read(tmp_path):
    table = pa.table(
        {"subject_id": [1], "time": pa.array([None], pa.timestamp("us")), "code": ["GENDER//F"]}
    )
    pq.write_table(table, tmp_path / "0.parquet")
    assert (
        SubgroupReader(tmp_path / "0.parquet", default_subgroups()).group_of("sex", 1, 0)
        == "female"
    )


def test_no_subgroups_read_nothing(tmp_path):
    assert SubgroupReader(tmp_path / "absent.parquet", {})._facts == {}


def test_an_unreadable_shard_is_named(tmp_path):
    (tmp_path / "0.parquet").write_text("no parquet")
    with pytest.raises(InputError, match=r"0\.parquet: unreadable, damaged"):
        SubgroupReader(tmp_path / "0.parquet", default_subgroups())


def test_bands_are_named_by_their_edges():
    assert Subgroup(edges=(45, 65.5), codes=("Age",)).names == [
        "under 45",
        "45 to under 65.5",
        "65.5 and over",
    ]


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({}, "either edges"),
        ({"edges": (1,), "groups": {"a": ("A",)}}, "either edges"),
        ({"edges": (1,)}, "codes or births"),
        ({"edges": (2, 1), "codes": ("A",)}, "ascend"),
    ],
)
def test_a_subgroup_that_says_nothing_or_two_things_is_refused(fields, reason):
    with pytest.raises(ValueError, match=reason):
        Subgroup(**fields)


def test_hospitals_are_subgroups_unless_there_is_one_however_many():
    codes = ["HOSPITAL//2", "HOSPITAL//10", "HOSPITAL_REGION//West", "HR", "HOSPITAL_BEDS//<100"]
    codes += ["HOSPITAL_TEACHING//yes", *(f"CARE_SITE//{i}" for i in range(600))]
    found = place_subgroups([*codes, "HOSPITAL_BEDS//>= 500"])
    assert len(found.pop("care site").groups) == 600
    assert {name: one.groups for name, one in found.items()} == {
        "hospital": {"10": ("HOSPITAL//10",), "2": ("HOSPITAL//2",)},
        "hospital beds": {"<100": ("HOSPITAL_BEDS//<100",), ">= 500": ("HOSPITAL_BEDS//>= 500",)},
    }
