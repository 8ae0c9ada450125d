from made_up.eicu import stay

from ehr_ray.sources.eicu.options import EicuOptions
from ehr_ray.sources.eicu.tasks import labels


def told(table, stays):
    name = dict(zip(stays.subject.tolist(), stays.rows["uniquepid"], strict=True))
    return {
        (name[row["subject_id"]], f"{row['prediction_time']:%d %H}"): row["boolean_value"]
        for row in table.to_pylist()
    }


def test_death_and_long_stays_are_predicted_of_those_still_in_the_unit(stays_of):
    stays = stays_of(
        stay(1, "long", out=8 * 1440),
        stay(2, "died", status="Expired", end=49 * 60, out=7 * 1440),
        stay(3, "gone", end=48 * 60),
        stay(4, "unknown", status=""),
        stay(5, "long", year=2015, status="Expired"),
    )
    found = labels(stays, EicuOptions())
    assert told(found["mortality"], stays) == {
        ("long", "03 21"): False,
        ("died", "03 21"): True,
        ("unknown", "03 21"): None,
    }
    assert told(found["length_of_stay_7d"], stays) == {
        ("long", "03 21"): True,
        ("died", "03 21"): False,
        ("unknown", "03 21"): False,
    }
    assert set(told(found["mortality_24h"], stays)) == {
        (name, "02 21") for name in ("long", "died", "gone", "unknown")
    }
    other = labels(stays, EicuOptions(label_hours=71))
    assert set(told(other["mortality"], stays)) == {("long", "04 20"), ("unknown", "04 20")}


def test_return_to_intensive_care_is_known_within_a_hospital_stay(stays_of):
    one = {"hospital_stay": 1}
    stays = stays_of(
        stay(1, "A", **one, end=60),
        stay(2, "A", **one, admit=-120, end=60, visit=2, kind="stepdown/other"),
        stay(3, "A", **one, admit=-1500, end=60, visit=3, kind="readmit"),
        stay(4, "A", **one, admit=-1560, end=600, visit=4, kind="transfer"),
        stay(5, "A", year=2015, kind="readmit"),
        stay(6, "B", unit_status="Expired"),
    )
    # Stay 3 ends in another unit, stay 2 was not intensive care, B died, 5 is another hospital's.
    assert told(labels(stays, EicuOptions())["icu_readmission"], stays) == {
        ("A", "01 22"): True,
        ("A", "03 08"): False,
        ("A", "04 21"): False,
    }


def test_nothing_is_asked_that_needs_an_end_before_the_start(stays_of):
    found = labels(stays_of(stay(1, "A", end=-60), stay(2, "B", out=-9000)), EicuOptions())
    assert found["mortality"]["boolean_value"].to_pylist() == [False]
    assert found["length_of_stay_7d"]["boolean_value"].to_pylist() == [None]
    assert len(found["icu_readmission"]) == 1  # of B
