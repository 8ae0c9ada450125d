import contextlib
import json
import shutil

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ehr_ray.cli.main import main
from ehr_ray.commands import expand as command
from ehr_ray.commands.expand import ShardExpander
from ehr_ray.commands.ingest import ingest
from ehr_ray.errors import InputError
from ehr_ray.events.vocabulary import Vocabulary
from ehr_ray.runtime.data import dataset, manifest

DAY = 1440


def test_what_was_measured_before_admission_is_carried_with_its_age_or_not_at_all(tmp_path):
    """Minutes from the admission to a unit, as in eICU: many of them are negative."""
    rows = [
        (1, -400 * DAY, "creatinine", 9.0),
        (1, -400 * DAY, "lactate", 15.0),
        (1, -300, "creatinine", 2.0),
        (1, -300, "potassium", 4.0),
        (1, 0, "heartrate", 80.0),
        (1, 60, "creatinine", 1.0),
    ]
    names = ["stay", "offset", "name", "result"]
    pd.DataFrame(rows, columns=names).to_csv(tmp_path / "lab.csv", index=False)
    columns = {"id_column": "stay", "time_column": "offset", "code_column": "name"}
    options = {**columns, "value_column": "result", "time_unit": "minutes"}
    out = tmp_path / "out"
    ingest("table", tmp_path / "lab.csv", out, options=options, splits="all:train", cpus=1)
    vocabulary = Vocabulary.from_table(pq.read_table(out / "metadata/codes.parquet"))
    expand = ShardExpander(vocabulary, 2.0 * DAY, ())
    target = tmp_path / "expanded.parquet"
    expand({"shard": str(out / "data/train/0.parquet"), "target": str(target)})
    found = pq.read_table(target).to_pandas()
    told = found[["time", "variable", "age", "is_carry", "set_index"]]
    assert told.values.tolist() == [
        [0, "creatinine", 300, True, 0],
        [0, "heartrate", 0, False, 0],
        [0, "potassium", 300, True, 0],
        [60, "creatinine", 0, False, 1],
        [60, "heartrate", 60, True, 1],
        [60, "potassium", 360, True, 1],
    ]


@pytest.fixture
def strange(tmp_path, monkeypatch):
    """A MEDS dataset as it stands: a typing error in train, and codes that train has not."""
    path = tmp_path / "in"
    stay = [("ENCOUNTER", 60, None), ("LAB", 90, None)]
    labs = [("LAB", 61 + i, value) for i, value in enumerate([1.0, 2.0, 3.0, 4.0, 1000.0])]
    rows = {
        "train": stay + labs,
        "held_out": [
            *stay,
            ("LAB", 61, 3.0),
            ("NEW", 62, 250.0),
            ("NEW", 63, None),
            ("X", 64, None),
        ],
    }
    for subject, (split, events) in enumerate(rows.items()):
        events = sorted([("LAB", 0, 2.0), *events], key=lambda event: event[1])
        table = pa.table(
            {
                "subject_id": pa.array([subject] * len(events), pa.int64()),
                "time": pa.array([m * 60_000_000 for _, m, _ in events], pa.timestamp("us")),
                "code": [code for code, *_ in events],
                "numeric_value": pa.array([value for *_, value in events], pa.float32()),
            }
        )
        (path / "data" / split).mkdir(parents=True)
        pq.write_table(table, path / "data" / split / "0.parquet")
    monkeypatch.setattr(command, "session", lambda *_, **__: contextlib.nullcontext())
    monkeypatch.setattr(command, "run_shards", lambda jobs, make, **_: [make(job) for job in jobs])
    for module in (dataset, manifest):
        monkeypatch.setattr(module, "run_jobs", lambda make, jobs, **_: [make(job) for job in jobs])
    return path


def test_a_dataset_of_others_is_counted_by_the_ray_that_expands_it(strange, tmp_path, monkeypatch):
    began, ran = [], []

    @contextlib.contextmanager
    def session(*_, **__):
        began.append(len(ran))
        yield
        began.append(len(ran))

    def run_jobs(make, jobs, *, on_ray, verb, **_):
        ran.append((verb, on_ray))
        return [make(job) for job in jobs]

    monkeypatch.setattr(command, "session", session)
    for module in (dataset, manifest):
        monkeypatch.setattr(module, "run_jobs", run_jobs)
    command.expand(strange, tmp_path / "sets")
    verbs = ["checked ids", "checked ids", "counted shards"]
    verbs += ["joined counts", "sampled shards", "found quantiles"]
    assert ran == [(verb, True) for verb in verbs]
    assert began == [0, 6]
    assert {path.name for path in tmp_path.iterdir()} == {"in", "sets"}
    ran.clear()
    command.expand(strange, tmp_path / "here", on_ray=False)
    assert ran == [(verb, False) for verb in verbs]


def values(output, code):
    found = pq.read_table(output / "held_out/0.parquet").to_pandas()
    return found[(found["variable"] == code) & ~found["is_carry"]]["value"].tolist()


def test_scales_are_standard_unless_told(strange, tmp_path):
    mean, std = np.mean([2, 1, 2, 3, 4, 1000]), np.std([2, 1, 2, 3, 4, 1000])
    command.expand(strange, tmp_path / "a")
    assert values(tmp_path / "a", "LAB")[1] == pytest.approx((3 - mean) / std)
    command.expand(strange, tmp_path / "b", scale="robust")
    iqr = np.subtract(*np.quantile([2, 1, 2, 3, 4, 1000], [0.75, 0.25]))
    assert values(tmp_path / "b", "LAB")[1] == pytest.approx((3 - 2.5) / iqr * 1.349)
    with pytest.raises(InputError, match="another expansion"):
        command.expand(strange, tmp_path / "a", scale="robust")


def test_shards_scaled_by_other_statistics_are_not_mixed(synthetic_cohort, tmp_path):
    """Whether the note says the statistics, or is of an earlier version, which did not."""
    cohort, output = shutil.copytree(synthetic_cohort, tmp_path / "cohort"), tmp_path / "sets"
    codes, note = cohort / "metadata" / "codes.parquet", output / "_expand.json"
    before = pq.read_table(codes)
    command.expand(cohort, output, on_ray=False)
    made = {path: path.read_bytes() for path in output.rglob("*.parquet")}
    record = json.loads(note.read_text())
    former = {name: value for name, value in record.items() if name != "codes"}
    mean = pa.array([m if m is None else m + 1000 for m in before["mean"].to_pylist()])
    moved = before.set_column(before.column_names.index("mean"), "mean", mean)
    shard = next((output / "held_out").glob("*.parquet"))
    for noted in (record, former):
        note.write_text(json.dumps(noted))
        shard.unlink()
        pq.write_table(moved, codes)
        with pytest.raises(InputError, match="another expansion"):
            command.expand(cohort, output, on_ray=False)
        assert (output / "codes.parquet").read_bytes() == made[output / "codes.parquet"]
        pq.write_table(before, codes)
        command.expand(cohort, output, on_ray=False)
        assert {path: path.read_bytes() for path in output.rglob("*.parquet")} == made
        assert json.loads(note.read_text()) == record


def test_values_of_codes_that_train_has_not_are_as_measured_and_counted(strange, tmp_path):
    result = command.expand(strange, tmp_path / "a")
    assert values(tmp_path / "a", "NEW") == [250.0, 1.0]
    assert values(tmp_path / "a", "X") == [1.0]
    # Live in one set, carried into the next until the one without a value ends it.
    assert result.unscaled == 1
    stats = tmp_path / "stats.csv"
    stats.write_text("code,mean,std\nNEW,200,50\n")
    given = command.expand(strange, tmp_path / "b", value_stats=stats)
    assert values(tmp_path / "b", "NEW") == [1.0, 0.0]
    assert given.unscaled > result.unscaled  # LAB has none now
    with pytest.raises(InputError, match="--scale robust: --value-stats gives mean and std"):
        command.expand(strange, tmp_path / "c", value_stats=stats, scale="robust")


def test_an_event_without_a_value_of_a_code_with_values_is_at_its_location(strange, tmp_path):
    command.expand(strange, tmp_path / "a")
    assert values(tmp_path / "a", "LAB")[-1] == 0.0


def test_the_origin_of_a_dataset_as_it_stands_may_be_named(strange, tmp_path):
    def times(output):
        return pq.read_table(output / "held_out/0.parquet")["time"].to_numpy()

    command.expand(strange, tmp_path / "a")
    command.expand(strange, tmp_path / "b", origin="ENCOUNTER")
    assert (times(tmp_path / "a").max(), times(tmp_path / "b").max()) == (90, 30)
    found = set(pq.read_table(tmp_path / "b/held_out/0.parquet")["variable"].to_pylist())
    assert "ENCOUNTER" not in found
    with pytest.raises(InputError, match=r"--origin STAY: no such code"):
        command.expand(strange, tmp_path / "c", origin="STAY")


def test_a_smoke_test_expands_one_shard_and_keeps_nothing(strange, tmp_path, monkeypatch, capsys):
    seen = []
    write = command.ShardExpander.__call__
    monkeypatch.setattr(
        command.ShardExpander, "__call__", lambda self, job: seen.append(job) or write(self, job)
    )
    main(["expand", str(strange), "--output", str(tmp_path / "sets" / "a"), "--smoke"])
    (job,) = seen
    assert job["shard"] == str(strange / "data/train/0.parquet")
    assert "a: 9 tokens of 1 patients in 1 shards" in capsys.readouterr().err
    assert not list((tmp_path / "sets").iterdir())
    with pytest.raises(SystemExit):  # what is wrong with a run is wrong with its trial
        main(
            ["expand", str(strange), "--output", str(tmp_path / "b"), "--smoke", "--origin", "STAY"]
        )
