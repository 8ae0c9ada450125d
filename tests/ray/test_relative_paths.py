"""Second stages from relative paths, in a folder that is not the repository.

Ray's workers have other working folders, so that a path that reaches one as it was typed is lost.
Without Ray that is shown here by a training that has another working folder than its command.
Second stages of the READMEs, which jobs/test_readme.py runs on Ray, are not here.
"""

import csv
import shutil
import zlib
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from ehr_ray.cli.main import main
from ehr_ray.commands.ingest import ingest
from ehr_ray.commands.train.command import train
from ehr_ray.config.yaml_files import read_yaml
from ehr_ray.experiment import load
from ehr_ray.sources.parsing import csv_ranges

CONFIGS = Path(__file__).parents[2] / "configs"
WIDTH = 32


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory):
    """The folder of a user: configs, a cohort, tables, and the runs of the tests one by one."""
    path = tmp_path_factory.mktemp("user")
    (path / "configs").symlink_to(CONFIGS)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(path)
        patients = {"options": {"patients": 60}, "splits": "0.7,0.2,0.1", "cpus": 1}
        ingest("synthetic", None, Path("cohorts/synthetic"), **patients)
        codes = pq.read_table("cohorts/synthetic/metadata/codes.parquet")["code"].to_pylist()
        with Path("embeddings.csv").open("w") as file:
            rows = csv.writer(file)
            rows.writerow(["code", *range(WIDTH)])
            rows.writerows(
                [code, *(zlib.crc32(f"{code} {i}".encode()) % 7 for i in range(WIDTH))]
                for code in codes
            )
        Path("terms.csv").write_text("code,term\nHR,heart rate\n")
        yield path


def typed(name, *overrides, workers=0):
    """Return what a user types after the config, for one step of training."""
    settings = {"name": name, "cluster.num_workers": workers, "tracking.experiment": "null"}
    settings |= {"train.max_steps": 1, "train.warmup_steps": 0}
    return [*(f"{key}={value}" for key, value in settings.items()), *overrides]


@pytest.fixture
def second(tmp_path, monkeypatch):
    """Train a second stage, its config read in the user's folder, in another folder."""

    def run(config, name, *overrides):
        experiment = load(Path(f"configs/tiny/{config}.yaml"), typed(name, *overrides))
        with monkeypatch.context() as patch:
            patch.chdir(tmp_path)
            train(experiment)
        assert not any(tmp_path.iterdir())
        return Path("runs") / name

    return run


@pytest.fixture(scope="module")
def phrases():
    """The folder of embedded phrases, as a user would type it."""
    changes = ["cluster.num_workers=0", "model.medical_lookup=terms.csv"]
    main(["phrases", "configs/tiny/event_decoder.yaml", *changes])
    (made,) = Path("runs/.cache").glob("phrases-*")
    return made


FIRST = {
    "set_vae": ["model.embedding_csv=embeddings.csv"],
    "event_decoder": ["model.medical_lookup=terms.csv"],
    "vitals_vae": [],
    "hcat": [],
    "visit_jepa": [],
}


@pytest.fixture(scope="module")
def first():
    """Train the first stage of a config, without Ray, once."""
    made = {}

    def of(config):
        if config not in made:
            name, path = f"first_{config}", Path(f"configs/tiny/{config}.yaml")
            made[config] = Path("runs") / name
            train(load(path, typed(name, *FIRST[config])))
        return made[config]

    return of


def check(folder, run, before):
    stored = read_yaml(run / "experiment.yaml")
    assert stored["output"] == str(folder / "runs")
    assert stored["init_from"] == str(folder / before)
    assert stored["data"]["cohort"] == str(folder / "cohorts" / "synthetic")
    assert ": copied" in (run / "init_from.txt").read_text()
    assert (run / "checkpoint" / "model.safetensors").is_file()


@pytest.mark.ray
def test_a_sequence_starts_from_sets_with_embeddings_of_its_own_on_ray(cluster, folder, first):
    sets, table = first("set_vae"), "model.embedding_csv=embeddings.csv"
    command = ["train", "configs/tiny/seqset_poe.yaml"]
    main([*command, *typed("on_ray", f"init_from={sets}", table, workers=1)])
    check(folder, Path("runs/on_ray"), sets)


@pytest.mark.ray
def test_ranks_that_share_models_start_from_a_whole_one_and_go_on_alone(
    cluster, folder, first, capsys
):
    encoder = first("visit_jepa")
    command = ["train", "configs/tiny/visit_jepa_finetune.yaml"]
    task = ["train.seeds=2", "train.max_steps=2", "train.report_steps=1"]
    shared = typed("shared", f"init_from={encoder}", *task, "cluster.strategy=fsdp", workers=2)
    main([*command, *shared])
    check(folder, Path("runs/shared"), encoder)
    fates = Path("runs/shared/init_from.txt").read_text().splitlines()
    for name in ("members.0.base.", "members.1.base."):
        assert any(line.startswith(name) and line.endswith(": copied") for line in fates)
    history = pq.read_table("runs/shared/history.parquet").to_pydict()
    assert history["step"] == [1, 2]
    shutil.rmtree("runs/shared/state/000000000002")  # as a run that was killed before it
    capsys.readouterr()
    main([*command, *typed("shared", f"init_from={encoder}", *task, "cluster.strategy=ddp")])
    assert "resuming at step 1" in "".join(capsys.readouterr())
    again = pq.read_table("runs/shared/history.parquet").to_pydict()
    assert again["step"] == [1, 2]
    assert again["val/objective"] == pytest.approx(history["val/objective"], rel=1e-3)


@pytest.mark.ray
def test_ranks_learn_future_values_of_a_dataset_of_others(cluster, folder):
    others = Path("cohorts/d'été à l'hôpital")
    for part in ("data", "metadata/subject_splits.parquet"):  # no manifest, no codes, no statistics
        source, target = Path("cohorts/synthetic") / part, others / part
        target.parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if source.is_dir() else shutil.copy)(source, target)
    before = {path: path.read_bytes() for path in others.rglob("*") if path.is_file()}
    command = ["train", "configs/tiny/event_decoder.yaml", f"data.cohort={others}"]
    main([*command, *typed("others", "model.future_value_weight=1", workers=2)])
    stored = read_yaml("runs/others/experiment.yaml")
    assert stored["data"]["cohort"] == str(folder / others)
    history = pq.read_table("runs/others/history.parquet").to_pydict()
    assert history["train/future_value"][-1] > 0
    main(["embed", "runs/others", "--cohort", str(others), "--output", "embeddings d'été"])
    assert list(Path("embeddings d'été").rglob("*.parquet"))
    assert before == {path: path.read_bytes() for path in others.rglob("*") if path.is_file()}


@pytest.mark.ray
def test_tasks_read_one_file_by_ranges_of_its_lines(cluster, folder, monkeypatch):
    monkeypatch.setattr(csv_ranges, "RANGE_BYTES", 2_000)
    monkeypatch.setattr(csv_ranges, "SCAN_BYTES", 500)
    rows = [f"{i // 6},{i % 6},HR,{60 + i % 40}" for i in range(600)]
    Path("events.csv").write_text("\n".join(["stay,hours,item,reading", *rows]))
    columns = "--id-column stay --time-column hours --code-column item --value-column reading"
    command = ["ingest", "--source", "table", "--input", "events.csv", "--time-unit", "hours"]
    said = {}
    for name, cpus in (("here", "1"), ("tasks", "2")):
        main([*command, *columns.split(), "--output", f"cohorts/{name}", "--cpus", cpus])
        path = Path("cohorts") / name
        said[name] = {p.relative_to(path): p.read_bytes() for p in path.rglob("*") if p.is_file()}
    assert said["here"] == said["tasks"]
    monkeypatch.undo()
    main([*command, *columns.split(), "--output", "cohorts/whole", "--cpus", "1"])
    whole = Path("cohorts/whole")
    differs = [str(p) for p, b in said["tasks"].items() if (whole / p).read_bytes() != b]
    assert differs == ["metadata/ingest.json"]  # which knows what was read


def test_an_encoder_starts_from_a_decoder_with_phrases_and_terms_of_its_own(
    folder, first, second, phrases
):
    before = first("event_decoder")
    tables = [f"model.phrases={phrases}", "model.medical_lookup=terms.csv"]
    run = second("event_encoder", "encoder", f"init_from={before}", *tables)
    check(folder, run, before)
    model = read_yaml(run / "experiment.yaml")["model"]
    assert model["phrases"] == str(folder / phrases)
    assert model["medical_lookup"] == str(folder / "terms.csv")


@pytest.mark.parametrize("config", ["vitals_vae", "hcat"])
def test_a_run_starts_from_another_of_its_family(folder, first, second, config):
    before = first(config)
    check(folder, second(config, f"second_{config}", f"init_from={before}"), before)
