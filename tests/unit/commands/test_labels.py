"""Labels by ACES over the synthetic cohort, where its package is installed."""

import shutil
import sys

import pandas as pd
import pytest

from ehr_ray.commands.labels import label, read_task
from ehr_ray.errors import InputError
from ehr_ray.events.labels import read_labels

FILE = """
predicates:
  admission: {code: ADMISSION}
  fast: {code: HR, value_min: 100}
  dialysis: {code: DIALYSIS}
trigger: admission
windows:
  input:
    start: NULL
    end: trigger + 24h
    start_inclusive: True
    end_inclusive: True
    has: {_ANY_EVENT: "(5, None)", dialysis: "(None, 0)"}
    index_timestamp: end
  target:
    start: input.end
    end: start + 12h
    start_inclusive: False
    end_inclusive: True
    has: {}
    label: fast
"""


@pytest.fixture
def cohort(synthetic_cohort, tmp_path):
    return shutil.copytree(synthetic_cohort, tmp_path / "cohort")


@pytest.fixture
def written(tmp_path):
    """Write the file with changes: written(("old", "new"))."""

    def write(*changes):
        text = FILE
        for old, new in changes:
            assert old in text
            text = text.replace(old, new)
        (tmp_path / "fast_later.yaml").write_text(text)
        return tmp_path / "fast_later.yaml"

    return write


def test_without_the_package_its_extra_is_named(written, cohort, monkeypatch):
    monkeypatch.setitem(sys.modules, "aces.config", None)
    with pytest.raises(
        InputError, match=r"es-aces is not installed; pip install 'ehr_ray\[aces\]'"
    ):
        label(written(), cohort, on_ray=False)


@pytest.fixture
def aces():
    pytest.importorskip("aces", reason="needs es-aces: pip install -e '.[aces]'")


@pytest.mark.usefixtures("aces")
def test_labels_are_those_of_the_events(written, cohort):
    done = label(written(), cohort, on_ray=False)
    assert done.task == "fast_later"
    assert done.unseen == ("dialysis",)
    found = read_labels(cohort, "fast_later")
    rows = pd.concat([pd.read_parquet(path) for path in (cohort / "data").rglob("*.parquet")])
    start = rows[rows["code"] == "ADMISSION"].groupby("subject_id")["time"].min()
    hours = (rows["time"] - rows["subject_id"].map(start)) / pd.Timedelta(hours=1)
    fast = rows[
        (rows["code"] == "HR") & (rows["numeric_value"] >= 100) & (hours > 24) & (hours <= 36)
    ]
    told = dict(zip(found.subject_id.tolist(), found.value.tolist(), strict=True))
    assert {subject for subject, value in told.items() if value} == set(fast["subject_id"])
    assert 0 < done.positive < done.labels == len(told)
    times = pd.to_datetime(found.prediction_time, unit="us")
    assert ((times - start[found.subject_id]) == pd.Timedelta(hours=24)).all()


@pytest.mark.usefixtures("aces")
def test_labels_that_are_there_are_not_replaced(written, cohort):
    with pytest.raises(InputError, match="has outcome already; give another --task"):
        label(written(), cohort, task="outcome", on_ray=False)


@pytest.mark.usefixtures("aces")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("label: fast", "label: faster"), "predicate 'faster' that wasn't defined"),
        (("trigger: admission", "trigger: birth"), "predicate 'birth' that wasn't defined"),
        (("+ 24h", "+ 24 dogs"), "Failed to parse timedelta"),
        (("predicates:", "predicates: ["), "while parsing"),
        (("    label: fast\n", ""), "no window has `label`"),
        (("trigger: admission", "trigger:"), "no trigger; add what an ACES task has"),
        (("predicates:", "other:"), "no predicates; add"),
        (("    index_timestamp: end\n", ""), "no window has `index_timestamp`"),
    ],
)
def test_a_file_that_cannot_be_meant_is_one_line(written, change, message):
    with pytest.raises(InputError, match=r"fast_later\.yaml: ") as caught:
        read_task(written(change))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("aces")
@pytest.mark.parametrize("text", ["", "foo", "- 1"])
def test_a_file_without_a_task_is_one_line(tmp_path, text):
    (tmp_path / "task.yaml").write_text(text)
    with pytest.raises(InputError, match=r"task\.yaml: no ACES task, which has predicates"):
        read_task(tmp_path / "task.yaml")
    with pytest.raises(InputError, match=r"none.yaml: no such file; check the path"):
        read_task(tmp_path / "none.yaml")


@pytest.mark.usefixtures("aces")
def test_criteria_that_nobody_meets_are_told_with_what_never_happens(written, cohort):
    with pytest.raises(
        InputError, match=r"no subject of .* \(never met by an event: admission, dialysis\)"
    ):
        label(written(("code: ADMISSION", "code: ENTRY")), cohort, on_ray=False)
    assert not (cohort / "labels" / "fast_later.parquet").exists()
