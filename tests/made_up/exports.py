"""What a hospital's own export may look like: a MEDS dataset, and a folder of tables."""

import datetime as dt

import pyarrow as pa
import pyarrow.parquet as pq

ADMITTED = dt.datetime(2150, 1, 1, 8, 0)
SPLITS = ("train", "tuning", "held_out")


def write_meds(folder, subjects=12):
    """Write a MEDS dataset with codes as those of MIMIC-IV: a heart rate, a temperature in °C."""
    shards = {split: [] for split in SPLITS}
    for subject in range(1, subjects + 1):
        rows = shards[SPLITS[subject % 3]]
        rows.append((subject, None, "GENDER//F", None))
        rows.append((subject, ADMITTED, "HOSPITAL_ADMISSION//EW EMER.", None))
        for hour in range(6):
            time = ADMITTED + dt.timedelta(hours=hour)
            rows.append((subject, time, "LAB//220045//bpm", 70.0 + subject + hour))
            rows.append((subject, time, "LAB//223761//°C", 36.5 + hour / 10))
    names = ("subject_id", "time", "code", "numeric_value")
    types = (pa.int64(), pa.timestamp("us"), pa.string(), pa.float32())
    for split, rows in shards.items():
        columns = [pa.array(c, t) for c, t in zip(zip(*rows, strict=True), types, strict=True)]
        (folder / "data" / split).mkdir(parents=True)
        pq.write_table(pa.table(columns, names=names), folder / "data" / split / "0.parquet")
    (folder / "metadata").mkdir()
    subjects_of = [(s, SPLITS[s % 3]) for s in range(1, subjects + 1)]
    columns = [pa.array(c) for c in zip(*subjects_of, strict=True)]
    table = pa.table(columns, names=["subject_id", "split"])
    pq.write_table(table, folder / "metadata" / "subject_splits.parquet")


def write_tables(folder, ranges):
    """Write two tables with semicolons, decimal commas and Latin-1, and a table of ranges."""
    folder.mkdir()
    for part in range(2):
        rows = [
            f"{subject};2150-01-01 {hour:02d}:00;Größe;1,7{hour}"
            for subject in range(10 * part, 10 * part + 10)
            for hour in range(3)
        ]
        text = "\n".join(["subject_id;time;code;numeric_value", *rows, rows[-1]]) + "\n"
        (folder / f"{part}.csv").write_text(text, encoding="latin-1")
    ranges.write_text("code,low,high,unit\nGröße,0.3,2.6,m\n", encoding="utf-8")
