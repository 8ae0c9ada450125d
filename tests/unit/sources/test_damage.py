"""Every source on damaged input: a clear refusal or a quarantine, never a traceback."""

import io
import json
import random
import shutil
import tarfile
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from made_up import eicu, omop

from ehr_ray.commands.ingest import ingest
from ehr_ray.errors import UserError
from ehr_ray.events.modality_h5 import write_modality
from ehr_ray.events.options import VITALS
from ehr_ray.sources.source import SOURCES, get_source

ROUNDS = 14
"""Damaged copies of each source's input: the seeds 0, 1, ..."""


def text(path, *lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


def table(path, **columns):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)


def stay(record):
    return (
        f"Time,Parameter,Value\n00:00,RecordID,{record}\n00:00,Age,60\n01:10,HR,80\n02:00,HR,82\n"
    )


def physionet2012(path):
    text(path / "a" / "132539.txt", stay(132539))
    text(path / "a" / "132540.txt", stay(132540))
    header = "RecordID,SAPS-I,SOFA,Length_of_stay,Survival,In-hospital_death"
    text(path / "Outcomes-a.txt", header, "132539,6,1,5,-1,0", "132540,16,8,8,-1,1")
    with tarfile.open(path / "set-b.tar.gz", "w:gz") as archive:
        data = stay(142000).encode()
        member = tarfile.TarInfo("set-b/142000.txt")
        member.size = len(data)
        archive.addfile(member, io.BytesIO(data))


def mimic_iv(path):
    for name, columns, *rows in (
        (
            "hosp/patients",
            "subject_id gender anchor_age anchor_year anchor_year_group dod",
            "1,F,60,2150,2011 - 2013,",
            "2,M,40,2120,2020 - 2022,2121-01-20",
        ),
        (
            "hosp/admissions",
            "subject_id hadm_id admittime dischtime deathtime admission_type admission_location "
            "discharge_location insurance language marital_status race edregtime edouttime "
            "hospital_expire_flag",
            "1,11,2151-01-01 08:00:00,2151-01-05 12:00:00,,URGENT,CLINIC,HOME,,,,,,,0",
            "2,21,2121-01-10 00:00:00,2121-01-20 16:00:00,2121-01-20 15:30:00,URGENT,,DIED,,,,,,,1",
        ),
        (
            "hosp/labevents",
            "subject_id hadm_id itemid charttime storetime value valuenum valueuom comments",
            "1,11,50912,2151-01-02 06:00:00,,1.2,1.2,mg/dL,",
            "2,21,50880,2121-01-11 06:00:00,,x,,,",
        ),
        ("hosp/d_labitems", "itemid label fluid category", "50912,Creatinine,Blood,Chemistry"),
        ("hosp/diagnoses_icd", "subject_id hadm_id seq_num icd_code icd_version", "1,11,1,4019,9"),
    ):
        text(path / f"{name}.csv", columns.replace(" ", ","), *rows)


def meds(path):
    time = pa.array([None, 10**9, 2 * 10**9, 5], pa.timestamp("us"))
    table(
        path / "data" / "train" / "0.parquet",
        subject_id=[1, 1, 1, 2],
        time=time,
        code=["SEX", "HR", "HR", "HR"],
        numeric_value=pa.array([None, 1, 2, 3], pa.float32()),
    )
    table(path / "data" / "held_out" / "0.parquet", subject_id=[3], time=time[1:2], code=["HR"])
    table(
        path / "labels" / "death.parquet",
        subject_id=[1, 3],
        prediction_time=time[1:3],
        boolean_value=[True, False],
    )
    table(path / "metadata" / "codes.parquet", code=["HR"], description=["heart"])
    table(
        path / "metadata" / "subject_splits.parquet",
        subject_id=[1, 2, 3],
        split=["train", "train", "held_out"],
    )


def patient_parquet(path):
    for i, split in enumerate(("train", "train", "valid", "test")):
        table(
            path / split / f"{i}.parquet",
            variable=["HR", "Age"],
            value=[80.0, 60.0 + i],
            minute=[5.0, None],
        )


def table_csv(path):
    text(
        path / "a.csv",
        "pid,at,what,amount",
        "1,2020-01-01 10:00,HR,80",
        "2,2020-01-02,HR,81",
        '3,,"Age",60',
    )
    table(path / "b.parquet", pid=["4"], at=["2020-01-01"], what=["HR"], amount=["3"])
    text(path.parent / "labels.csv", "pid,death,time", "1,1,2020-01-03", "2,0,2020-01-03")


def tokenised(path):
    words = ["<start>", "<end>", "LAB//WBC", "7.25", "10*9/L"]
    text(path / "vocab.csv", "token,str,count", *(f"{i},{w},5" for i, w in enumerate(words)))
    text(
        path / "labels.csv",
        "subject_id,is_case,site,cancerdate",
        "1,1,lung,1970-02-10",
        "2,0,,",
        "3,0,,",
    )
    for split, subject in (("train", 1), ("tuning", 2), ("held_out", 3)):
        record = {"subject_id": subject, "tokens": [2, 3, 4], "timestamps": [86400] * 3}
        if split == "train":
            text(path / split / "0.json", json.dumps([record]))
        elif split == "tuning":
            text(path / split / "0.jsonl", json.dumps(record))
        else:
            (path / split).mkdir()
            pq.write_table(pa.Table.from_pylist([record]), path / split / "0.parquet")


def hourly_h5(path):
    path.mkdir(parents=True)
    with h5py.File(path / "x.h5", "w") as file:
        file["values"] = np.full((2, 48, 7), 80, np.float32)
        file["masks"] = np.ones((2, 48, 7), np.int8)
        file["patient_index"] = np.array(["3", "P-1"], "S")
        file["vital_index"] = np.array([v.name for v in VITALS], "S")
        file["hour_index"] = np.arange(-24, 24, dtype=np.int32)


def hancock(path):
    header = "patient_id,recurrence,days_to_recurrence,survival_status,survival_status_with_cause"
    rows = [f"{i:03d},no,,living,living,{500 + i}" for i in range(1, 12)]
    text(path / "targets.csv", f"{header},days_to_last_information", *rows)
    text(
        path / "clinical.csv",
        "patient_id,sex,age_at_initial_diagnosis",
        *(f"{i:03d},{i % 2},{50 + i}" for i in range(1, 12)),
    )
    text(path / "blood.csv", "patient_id,Hb", *(f"{i:03d},1{i}.5" for i in range(1, 12)))
    np.savez(path / "tma_tile_dtr_256_HE.npz", **{"001": np.ones(512, np.float32)})


def modality_h5(path):
    rng = np.random.default_rng(0)
    write_modality(
        path / "clinical.h5",
        {
            "patient_id": ["001", "002", "003"],
            "embedding_512": rng.normal(size=(3, 512)),
            "surv_5yr_label": np.array([1, 0, -1], np.int8),
        },
    )
    write_modality(
        path / "temporal.h5", {"patient_id": ["1", "2"], "embedding_512": rng.normal(size=(2, 512))}
    )


def embedded_pt(path):
    for number, split in enumerate(("train", "train", "tuning", "held_out")):
        content = {"embeddings": torch.eye(3), "token_ids": torch.arange(3), "label": number % 2}
        (path / split).mkdir(parents=True, exist_ok=True)
        torch.save(content, path / split / f"{number}.pt")
    rows = ("train,0.pt,5", "train,1.pt,6", "tuning,2.pt,7", "held_out,3.pt,8")
    text(path / "subjects.csv", "split,file,subject_id", *rows)


COLUMNS = {"id_column": "pid", "time_column": "at", "code_column": "what", "value_column": "amount"}
INPUTS = {
    "physionet2012": (physionet2012, {}),
    "mimic-iv": (mimic_iv, {}),
    "eicu": (eicu.write, {}),
    "omop": (omop.write, {}),
    "meds": (meds, {}),
    "patient-parquet": (patient_parquet, {}),
    "table": (table_csv, COLUMNS),
    "tokenised": (tokenised, {"cutoff_months": 1}),
    "hourly-h5": (hourly_h5, {}),
    "hancock": (hancock, {}),
    "modality-h5": (modality_h5, {}),
    "embedded-pt": (embedded_pt, {}),
}


def damage(path: Path, rng: random.Random) -> str:
    """Cut, flip, fill, swap, empty or remove one file; return what was done."""
    how = rng.choice(("cut", "flip", "flips", "insert", "zero", "empty", "gone", "words"))
    content = bytearray(path.read_bytes())
    at = rng.randrange(len(content))
    if how == "cut":
        del content[at:]
    elif how in ("flip", "flips"):
        for _ in range(1 if how == "flip" else 20):
            content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    elif how == "insert":
        content[at:at] = rng.randbytes(30)
    elif how == "zero":
        content[at : at + 40] = bytes(len(content[at : at + 40]))
    elif how == "empty":
        content = bytearray()
    elif how == "words":
        content = bytearray(
            rng.choice((b"{}", b"[]", b"[1]", b'"', b"a,b\n1,2\n", b"\xff\xfe\x00"))
        )
    path.write_bytes(content)
    if how == "gone":
        path.unlink()
    return f"{how} {path.name}"


def test_every_source_that_reads_files_is_damaged_here():
    assert set(INPUTS) == {name for name in SOURCES if get_source(name).needs_input}


@pytest.mark.parametrize("source", INPUTS)
def test_damaged_input_is_refused_in_one_line_or_read(source, tmp_path):
    write, options = INPUTS[source]
    write(tmp_path / "whole")
    ingest(source, entry(tmp_path / "whole"), tmp_path / "cohort", options=options, cpus=1)
    seen = 0
    for seed in range(ROUNDS):
        rng = random.Random(seed)
        path = tmp_path / f"in{seed}"
        shutil.copytree(tmp_path / "whole", path)
        files = sorted(p for p in path.rglob("*") if p.is_file())
        what = damage(files[seed % len(files)], rng)
        try:
            summary = ingest(
                source,
                entry(path),
                tmp_path / f"out{seed}",
                options=options,
                cpus=1,
                max_rejected=1.0,
            )
        except UserError as error:
            seen += 1
            message = str(error)
        except BaseException as error:
            pytest.fail(f"{what}: {type(error).__name__}: {error}")
        else:
            message = ""
            seen += bool(summary.rejected_rows + summary.rejected_files)
        assert "\n" not in message, what
        assert not list(tmp_path.glob(".out*"))
    assert seen > ROUNDS / 4


def entry(path):
    """Return what `--input` is: the folder, or the one file in it."""
    files = list(path.iterdir())
    return files[0] if [file.suffix for file in files] == [".h5"] else path
