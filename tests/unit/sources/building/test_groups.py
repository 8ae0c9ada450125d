import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ehr_ray.commands.ingest import ingest
from ehr_ray.errors import InputError
from ehr_ray.events.schema import EVENTS, SPLITS


@pytest.fixture
def write(tmp_path):
    """Write a MEDS dataset of two shards: 300 subjects of 30 sites, and one without."""

    def run(site="SITE//{}", static=True, number=None):
        for shard in range(2):
            ids = range(1 + shard, 301, 2)
            when = None if static else 0
            rows = [(i, when, site.format(i % 30), number and number(i)) for i in ids]
            rows += [(i, 60_000_000 * i, "HR", float(i)) for i in ids]
            rows += [(999, 5, "HR", 1.0)] if shard else []
            rows.sort(key=lambda row: (row[0], row[1] or 0))
            path = tmp_path / "meds" / "data" / "train" / f"{shard}.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            columns = zip(*rows, strict=True)
            arrays = [pa.array(c, f.type) for c, f in zip(columns, EVENTS, strict=True)]
            pq.write_table(pa.table(arrays, schema=EVENTS), path)
        return tmp_path / "meds"

    return run


@pytest.fixture
def divided(tmp_path):
    def run(source, code="SITE", **how):
        name = f"cohort{len(list(tmp_path.iterdir()))}"
        summary = ingest("meds", source, tmp_path / name, split_by=code, cpus=1, **how)
        table = pq.read_table(tmp_path / name / "metadata" / "subject_splits.parquet")
        return summary, dict(zip(*table.to_pydict().values(), strict=True))

    return run


def test_everybody_of_a_group_is_in_one_split_of_about_the_share_asked_for(write, divided):
    summary, split = divided(write(), splits="0.6,0.2,0.2")
    by_site = {}
    for subject, name in split.items():
        by_site.setdefault(subject % 30, set()).add(name)
    assert {frozenset(v) for k, v in by_site.items() if k != 999 % 30} == {
        frozenset([name]) for name in SPLITS
    }
    counts = [sum(v == name for v in split.values()) for name in SPLITS]
    assert [abs(n - share) <= 11 for n, share in zip(counts, (180, 60, 60), strict=True)] == [
        True
    ] * 3
    assert summary.notes == ("--split-by SITE: 1 subjects have no value of it: divided by hash",)
    folders = {
        subject: name
        for name in SPLITS
        for path in (summary.cohort / "data" / name).glob("*.parquet")
        for subject in pq.ParquetFile(path).read()["subject_id"].to_pylist()
    }
    assert folders == split
    assert summary.events == 601


def test_the_seed_changes_who_is_where_and_nothing_else_does(write, divided):
    source = write()
    first, second, other = (divided(source, seed=seed)[1] for seed in (0, 0, 1))
    assert first == second != other


def test_a_code_with_a_number_groups_by_the_number(write, divided):
    _, split = divided(write("WARD", number=lambda i: float(i % 5)), "WARD")
    assert all(len({split[i] for i in range(r or 5, 301, 5)}) == 1 for r in range(5))
    assert len(set(split.values())) > 1


def test_too_few_groups_for_a_split_are_told(write, divided):
    summary, _ = divided(write("WARD", number=lambda i: float(i % 2)), "WARD")
    assert any("too few or too large for 0.1 of the subjects in tuning" in n for n in summary.notes)


@pytest.mark.parametrize(
    ("how", "code", "more", "message"),
    [
        (
            {"site": "SITES//{}"},
            "SITE",
            {},
            "--split-by SITE: no static event of the input is SITE",
        ),
        ({"static": False}, "SITE", {}, "no static event"),
        ({"site": "SITE"}, "SITE", {}, "all 300 subjects share one value"),
        ({}, " ", {}, "--split-by: no code"),
    ],
)
def test_what_divides_nobody_is_refused(write, divided, how, code, more, message):
    with pytest.raises(InputError, match=message):
        divided(write(**how), code, **more)


def test_a_table_of_splits_beside_it_is_refused(write, divided, tmp_path):
    table = tmp_path / "splits.csv"
    table.write_text("subject_id,split\n1,train\n")
    with pytest.raises(InputError, match="divides already; give one of them"):
        divided(write(), splits=str(table))
