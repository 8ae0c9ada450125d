"""Sets that were made before: the same rows and losses as from the cohort, or refused by name."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ehr_ray.commands.expand import expand
from ehr_ray.commands.train.command import train
from ehr_ray.errors import ConfigError, InputError
from ehr_ray.events.schema import EVENTS
from ehr_ray.experiment import load
from ehr_ray.families.set_vae.embedding import embedding_table
from ehr_ray.registry import FAMILIES, get_family, get_schema
from ehr_ray.runtime.data.prepared import prepared
from ehr_ray.sources.expanded import CODES, RECORD
from ehr_ray.train import history

CONFIGS = Path(__file__).parents[3] / "configs" / "tiny"
MINUTES = 90
CARRIED = ("HR",)


@pytest.fixture(scope="module")
def cohort(synthetic_cohort, tmp_path_factory):
    """The synthetic cohort with subjects of whom nothing is known, first, between and last."""
    path = tmp_path_factory.mktemp("cohorts") / "untidy"
    shutil.copytree(synthetic_cohort, path)
    for number, shard in enumerate(sorted((path / "data").glob("*/*.parquet"))):
        events = pq.read_table(shard).to_pandas()
        second = int(np.argmax(events["subject_id"] != events["subject_id"].iloc[0]))
        first, between, last = (
            pd.DataFrame({"subject_id": [1000 + 3 * number + place], "code": "ADMISSION"})
            for place in range(3)
        )
        events = pd.concat([first, events[:second], between, events[second:], last])
        pq.write_table(pa.Table.from_pandas(events[EVENTS.names], EVENTS), shard)
    return path


@pytest.fixture(scope="module")
def folder(cohort, tmp_path_factory):
    path = tmp_path_factory.mktemp("expanded") / "sets"
    expand(cohort, path, lvcf_minutes=MINUTES, always_carry=CARRIED, on_ray=False)
    return path


@pytest.fixture
def make(cohort, tmp_path):
    """Make a tiny experiment without Ray: make("set_vae", **{path: value})."""

    def build(config="set_vae", **changes):
        settings = {
            "data.cohort": cohort,
            "output": tmp_path / "runs",
            "tracking.experiment": "null",
            "cluster.num_workers": 0,
            "init_from": "null",
            **changes,
        }
        return load(CONFIGS / f"{config}.yaml", [f"{k}={v}" for k, v in settings.items()])

    return build


MADE_WITH = {
    "data.scale": "standard",
    "model.carry_minutes": MINUTES,
    "model.always_carry": list(CARRIED),
}


def rows_of(experiment):
    family = get_family(experiment.family)
    with prepared(experiment, family, on_ray=False) as data:
        return {s: data.store(s).rows(range(len(data.store(s)))) for s in ("train", "tuning")}


def assert_same(ours, theirs):
    for split in ("train", "tuning"):
        assert len(ours[split]) == len(theirs[split]) > 0
        for one, other in zip(ours[split], theirs[split], strict=True):
            assert one.keys() == other.keys()
            for name, values in one.items():
                assert values.dtype == other[name].dtype
                np.testing.assert_array_equal(values, other[name], name)


@pytest.mark.parametrize("least", [1, 60])
def test_rows_are_those_of_the_cohort_also_without_rare_codes_and_of_who_has_none(
    make, cohort, folder, least
):
    theirs = rows_of(make(**MADE_WITH, **{"data.min_code_count": least}))
    ours = rows_of(make(**{"data.expanded": folder, "data.min_code_count": least}))
    assert_same(ours, theirs)
    sizes = [len(row["code"]) for row in ours["train"]]
    assert min(sizes) == 0 < max(sizes)
    codes = pq.read_table(cohort / "metadata" / "codes.parquet")["count"].to_numpy()
    assert least == 1 or (codes < least).any()


@pytest.mark.parametrize("config", ["set_vae", "seqset_poe"])
def test_losses_are_those_of_the_cohort(make, folder, config):
    steps = {"train.max_steps": 3, "train.report_steps": 1}
    there = train(make(config, name="there", **MADE_WITH, **steps)).run
    here = train(make(config, name="here", **{"data.expanded": folder}, **steps)).run
    clocks = ["seconds", "data_wait"]
    ours, theirs = (history.read(run).drop(columns=clocks) for run in (here, there))
    assert len(ours) == 3
    pd.testing.assert_frame_equal(ours, theirs, check_exact=True)


def test_what_it_was_made_with_is_believed_and_nothing_else_is(make, folder, cohort, tmp_path):
    experiment = make(**{"data.expanded": folder})
    assert experiment.model.carry_minutes == MINUTES
    assert experiment.model.always_carry == CARRIED
    assert experiment.data.scale == "standard"
    other = tmp_path / "other"
    shutil.copytree(cohort, other)
    next((other / "data" / "train").glob("*.parquet")).unlink()
    (other / "metadata" / "ingest.json").unlink()
    for changes, message in [
        ({"model.carry_minutes": 2880}, r"model.carry_minutes=2880: .* for 90 minutes; give that"),
        ({"model.always_carry": "[]"}, r"model.always_carry=\[\]: .* has \['HR'\]"),
        ({"data.origin": "[SURGERY]"}, r"data.origin=\['SURGERY'\]: .* counts minutes from"),
        ({"data.scale": "robust"}, r"data.scale=robust: the values of .* are standard"),
        ({"data.value_stats": "s.csv"}, r"data.value_stats=.*: .* has those it was made with"),
        ({"data.cohort": other}, r"data.cohort=.*: .* is not of it but of"),
    ]:
        with pytest.raises(ConfigError, match=message):
            rows_of(make(**{"data.expanded": folder, **changes}))


def test_a_folder_that_is_not_whole_or_not_there_is_refused(make, folder, tmp_path):
    with pytest.raises(InputError, match="no such folder; make it with `ehr-ray expand`"):
        rows_of(make(**{"data.expanded": tmp_path / "nowhere"}))
    part = tmp_path / "part"
    shutil.copytree(folder, part)
    next((part / "tuning").glob("*.parquet")).unlink()
    with pytest.raises(InputError, match=r"files are there; run `ehr-ray expand` again"):
        rows_of(make(**{"data.expanded": part}))
    (part / RECORD).write_text('{"cohort": "x"}')
    with pytest.raises(InputError, match="does not say what it was made with"):
        make(**{"data.expanded": part})


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_reads_sets_or_refuses_them_by_name(family, folder, make):
    reads = get_schema(family).takes_sets
    assert reads == (get_family(family).files.from_sets is not None)
    path = next(p for p in sorted(CONFIGS.glob("*.yaml")) if f"family: {family}\n" in p.read_text())
    if not reads:
        with pytest.raises(ConfigError, match=f"data.expanded: family {family} reads events"):
            make(path.stem, **{"data.expanded": folder})


def test_what_only_events_can_answer_is_refused(make, folder):
    with pytest.raises(ConfigError, match=r"task: data\.expanded cannot be cut"):
        make(**{"data.expanded": folder, "task.name": "outcome"})
    with pytest.raises(ConfigError, match=r"tune\.rank=probe"):
        make(**{"data.expanded": folder, "tune.rank": "probe"})


@pytest.fixture(scope="module")
def published(folder, tmp_path_factory):
    """The same sets as the published program writes them, with vectors and a stats CSV."""
    path = tmp_path_factory.mktemp("published")
    codes = pq.read_table(folder / CODES).to_pandas().set_index("code")
    codes[["mean", "std"]].to_csv(path / "stats.csv", index_label="variable")
    vectors = np.random.default_rng(0).normal(size=(len(codes), 5)).astype(np.float32)
    columns = [f"v{i}" for i in range(5)]
    table = pd.DataFrame(vectors, columns=columns, index=codes.index)
    for split, name in (("train", "train"), ("tuning", "valid"), ("held_out", "test")):
        rows = pd.concat(pd.read_parquet(p) for p in sorted((folder / split).glob("*.parquet")))
        (path / "sets" / name).mkdir(parents=True)
        for subject, own in rows.groupby("subject_id"):
            own = own.drop(columns="subject_id").astype(
                {"set_index": np.int64, "is_carry": np.float64}
            )
            own[columns] = table.loc[own["variable"]].to_numpy()
            own.to_parquet(path / "sets" / name / f"{subject}.parquet", index=False)
    return path, table


def test_the_published_layout_is_read_with_its_statistics_and_its_vectors(
    make, folder, published, tmp_path
):
    path, vectors = published
    stats = {"data.expanded": path / "sets", "data.value_stats": path / "stats.csv"}
    statics = {"model.carry_minutes": 99999}  # what is static is carried for ever
    experiment = make(**stats, **statics)
    family = get_family("set_vae")
    with prepared(experiment, family, on_ray=False) as data:
        store = data.store("train")
        ours = {int(row["subject_id"]): row for row in store.rows(range(len(store)))}
        made = embedding_table(experiment.model, data.vocabulary).numpy()
        np.testing.assert_array_equal(made, vectors.loc[list(data.vocabulary.codes)].to_numpy())
        scale = pq.read_table(folder / CODES).to_pandas().set_index("code")
        known = scale.loc[list(data.vocabulary.codes)]
        np.testing.assert_array_equal(data.vocabulary.mean, known["mean"])
    rows = rows_of(make(**{"data.expanded": folder}))["train"]
    theirs = {int(row["subject_id"]): row for row in rows}
    assert {s for s, row in theirs.items() if len(row["code"])} == ours.keys()
    for subject, row in ours.items():
        for name in ("value", "age", "carried", "set_size", "minute"):
            np.testing.assert_array_equal(row[name], theirs[subject][name])
    with pytest.raises(ConfigError, match=r"give its CSV of variable, mean and std as data\.value"):
        rows_of(make(**{"data.expanded": path / "sets"}))
    with pytest.raises(InputError, match=r"beyond model\.carry_minutes=30; give the window"):
        rows_of(make(**stats, **{"model.carry_minutes": 30}))
    broken = tmp_path / "sets"
    shutil.copytree(path / "sets", broken)
    file = sorted((broken / "train").glob("*.parquet"))[0]
    whole = pd.read_parquet(file)
    for column, value in [("is_carry", 0.5), ("value", np.nan), ("age", -1.0)]:
        whole.assign(**{column: value}).to_parquet(file, index=False)
        with pytest.raises(InputError, match=rf"{file.name}: {column} is {value} in a row"):
            rows_of(make(**{**stats, "data.expanded": broken}, **statics))
