import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from ehr_ray.commands.benchmark.peers import preparing
from ehr_ray.commands.benchmark.peers.timing import in_turn
from ehr_ray.errors import RunError
from ehr_ray.events.patients import splits_of

RATIO = "loader, here over meds-torch-data"


def test_without_meds_torch_data_it_is_left_out(synthetic_cohort, tmp_path, monkeypatch):
    monkeypatch.setattr(preparing, "library", lambda name: f"left out: {name}")
    found = preparing.preparing(synthetic_cohort, tmp_path / "place")
    assert found == {"MEDS to model-ready, meds-torch-data": "left out: meds_torchdata"}


class Dataset:
    """What is asked of theirs: a loader of batches with codes, 0 where there is none."""

    def __init__(self, config, split):
        assert split == "train"
        assert config["max_seq_len"] == preparing.LENGTH

    def get_dataloader(self, **given):
        assert given == {"batch_size": preparing.BATCH, "shuffle": True}
        return [SimpleNamespace(code=torch.tensor([[1, 2, 3], [4, 0, 0]]), PAD_INDEX=0)]


@pytest.fixture
def there(monkeypatch):
    """Their program and library, made up; the test says how many events are lost on the way."""
    lost = [0]
    fake = SimpleNamespace(MEDSTorchDataConfig=lambda **given: given, MEDSPytorchDataset=Dataset)
    monkeypatch.setattr(preparing, "library", lambda _: fake)

    def run(target, command):
        if command[0] != "MTD_preprocess":
            return  # rows of ours are made where they are asked for
        source = Path(command[1].removeprefix("MEDS_dataset_dir="))
        for shard in splits_of(source)["train"]:
            ids = pq.read_table(shard, columns=["subject_id"])["subject_id"].value_counts()
            pairs = [(row["values"], row["counts"]) for row in ids.to_pylist()]
            schema = {
                "subject_id": [subject for subject, _ in pairs],
                "static_code": pa.array([[7], *[None] * (len(pairs) - 1)], pa.list_(pa.int64())),
                "measurements_per_event": [
                    [count - (i == 0)] for i, (_, count) in enumerate(pairs)
                ],
            }
            schema["measurements_per_event"][0][0] -= lost[0]
            folder = target / "tokenization" / "schemas" / "train"
            folder.mkdir(parents=True, exist_ok=True)
            pq.write_table(pa.table(schema), folder / Path(shard).name)

    monkeypatch.setattr(preparing, "from_nothing", run)
    return lost


def test_both_see_the_same_patients_and_events(synthetic_cohort, tmp_path, there):
    found = preparing.preparing(synthetic_cohort, tmp_path / "place")
    patients = sum(
        len(set(pq.read_table(shard)["subject_id"].to_pylist()))
        for shard in splits_of(synthetic_cohort)["train"]
    )
    assert found["patients of train, both"] == patients
    key = "events of train in meds-torch-data (admissions, the origin of time here, too)"
    assert 0 < found["events of train here"] <= found[key]
    assert found["tokens an epoch of the loader in meds-torch-data"] == 4
    assert found[RATIO] > 0


def test_an_event_less_is_refused(synthetic_cohort, tmp_path, there):
    there[0] = 1
    with pytest.raises(RunError, match=r"meds-torch-data prepared .* patients and .* events"):
        preparing.preparing(synthetic_cohort, tmp_path / "place")


def test_nothing_prepared_is_refused(synthetic_cohort, tmp_path, there, monkeypatch):
    monkeypatch.setattr(preparing, "from_nothing", lambda *_: None)
    with pytest.raises(RunError, match="wrote no schema of train under"):
        preparing.preparing(synthetic_cohort, tmp_path / "place")


def test_a_command_begins_anew_and_its_failure_is_told_in_a_line(tmp_path):
    (tmp_path / "old").mkdir()
    preparing.from_nothing(tmp_path / "old", [sys.executable, "-c", "print()"])
    assert not (tmp_path / "old").exists()
    with pytest.raises(RunError, match=r"python[0-9.]* ended with 1: no such thing$"):
        preparing.from_nothing(
            tmp_path, [sys.executable, "-c", "raise SystemExit('no such thing')"]
        )


def test_meds_torch_data_itself_sees_the_same(synthetic_cohort, tmp_path, monkeypatch):
    pytest.importorskip("meds_torchdata", reason="in the extra ehr_ray[peers]")
    monkeypatch.setattr(preparing, "in_turn", partial(in_turn, rounds=1))
    found = preparing.preparing(synthetic_cohort, tmp_path / "place")
    assert found["patients of train, both"] > 0
    assert found[RATIO] > 0
