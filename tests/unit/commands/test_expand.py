import pandas as pd
import pyarrow.parquet as pq

from ehr_ray.commands.expand import ShardExpander
from ehr_ray.commands.ingest import ingest
from ehr_ray.events.vocabulary import Vocabulary

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
