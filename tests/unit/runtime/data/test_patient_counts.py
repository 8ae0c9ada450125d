import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ehr_ray.events.manifest import FOLDER, Manifest, describe_shard, write_manifest
from ehr_ray.events.patient_features import MAX_CODES
from ehr_ray.events.schema import EVENTS
from ehr_ray.events.vocabulary import Vocabulary
from ehr_ray.runtime.data.patient_counts import feature_codes


def write(path, events):
    subject, minute, code = zip(*events, strict=True)
    time = pa.array([None if m is None else m * 60_000_000 for m in minute], pa.int64())
    columns = [
        pa.array(subject, pa.int64()),
        time.cast(pa.timestamp("us")),
        pa.array(code, pa.string()),
        pa.array([1.0] * len(subject), pa.float32()),
    ]
    pq.write_table(pa.Table.from_arrays(columns, schema=EVENTS), path)
    return path


def chosen(shards, codes, allowed=None):
    size = len(codes)
    quantiles = np.ones((size, 7))
    vocabulary = Vocabulary(
        tuple(codes), np.ones(size, np.int64), np.zeros(size), np.ones(size), quantiles
    )
    folder = shards[0].parent / FOLDER
    write_manifest([describe_shard(path, path.name, "train") for path in shards], folder)
    write_manifest([describe_shard(shards[0], "other", "tuning")], folder / "other")
    files = (*folder.glob("*.parquet"), *folder.glob("other/*.parquet"))
    return feature_codes(Manifest(files), vocabulary, allowed)


def test_codes_with_many_events_of_one_patient_do_not_crowd_out_what_all_have(tmp_path):
    """One monitored patient has thousands of events of codes of his own; everybody has a sex."""
    own = [f"MONITOR//{i:03d}" for i in range(MAX_CODES)]
    loud = [(1, minute, code) for code in own for minute in range(20)]
    quiet = [(subject, 5, "SEX//F") for subject in range(1, 6)]
    parts = sorted([*loud, *(e for e in quiet if e[0] == 1)], key=lambda e: e[0])
    shards = [
        write(tmp_path / "0.parquet", parts),
        write(tmp_path / "1.parquet", [e for e in quiet if e[0] > 1]),
    ]
    codes = sorted([*own, "SEX//F"])
    found = chosen(shards, codes)
    assert codes.index("SEX//F") in found.simple
    assert codes.index("SEX//F") in found.measured
    assert len(found.simple) == MAX_CODES


def test_a_static_event_is_no_measurement(tmp_path):
    shard = write(tmp_path / "0.parquet", [(1, None, "AGE"), (1, 3, "HR"), (2, None, "AGE")])
    found = chosen([shard], ["AGE", "HR"])
    assert found.simple == (0, 1)
    assert found.measured == (1,)


def test_codes_that_a_family_keeps_from_baselines_are_left_out(tmp_path):
    shard = write(tmp_path / "0.parquet", [(1, 1, "A"), (1, 2, "B"), (1, 2, "UNKNOWN")])
    found = chosen([shard], ["A", "B"], allowed=np.array([False, True]))
    assert found.simple == (1,)
