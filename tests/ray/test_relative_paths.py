"""Second stages on Ray from relative paths, in a folder that is not the repository.

Ray's workers have other working folders, so that a path that reaches one as it was typed is lost.
"""

import csv
import zlib
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from ehr_ray.cli.main import main
from ehr_ray.commands.ingest import ingest
from ehr_ray.config.yaml_files import read_yaml

pytestmark = pytest.mark.ray
CONFIGS = Path(__file__).parents[2] / "configs"
WIDTH = 32


@pytest.fixture(scope="module", autouse=True)
def folder(cluster, tmp_path_factory):
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


def train(config, name, *overrides, workers=1):
    """Train a tiny config for two steps as a user does; return the run's folder."""
    settings = {"name": name, "cluster.num_workers": workers, "tracking.experiment": "null"}
    settings |= {"train.max_steps": 2, "train.warmup_steps": 0}
    changes = [*(f"{key}={value}" for key, value in settings.items()), *overrides]
    main(["train", f"configs/tiny/{config}.yaml", *changes])
    return Path("runs") / name


@pytest.fixture(scope="module")
def phrases():
    """The folder of embedded phrases, as a user would type it."""
    changes = ["cluster.num_workers=0", "model.medical_lookup=terms.csv"]
    main(["phrases", "configs/tiny/event_decoder.yaml", *changes])
    (made,) = Path("runs/.cache").glob("phrases-*")
    return made


FIRST = {
    "set_vae": ["model.embedding_csv=embeddings.csv"],
    "visit_jepa": [],
    "event_decoder": ["model.medical_lookup=terms.csv"],
    "vitals_vae": [],
    "hcat": [],
}


@pytest.fixture(scope="module")
def first():
    """Train the first stage of a config, without Ray, once."""
    made = {}

    def of(config):
        if config not in made:
            made[config] = train(config, f"first_{config}", *FIRST[config], workers=0)
        return made[config]

    return of


def check(folder, run, before):
    stored = read_yaml(run / "experiment.yaml")
    assert stored["output"] == str(folder / "runs")
    assert stored["init_from"] == str(folder / before)
    assert stored["data"]["cohort"] == str(folder / "cohorts" / "synthetic")
    assert ": copied" in (run / "init_from.txt").read_text()
    assert (run / "checkpoint" / "model.safetensors").is_file()


def test_a_sequence_starts_from_sets_and_is_fine_tuned(folder, first):
    sets, table = first("set_vae"), "model.embedding_csv=embeddings.csv"
    sequence = train("seqset_poe", "sequence", f"init_from={sets}", table, workers=2)
    check(folder, sequence, sets)
    tuned = train("seqset_finetune", "tuned", f"init_from={sequence}", table)
    check(folder, tuned, sequence)


@pytest.mark.parametrize("config", ["visit_jepa_finetune", "visit_jepa_probe"])
def test_a_head_starts_from_a_pretrained_jepa(folder, first, config):
    before = first("visit_jepa")
    check(folder, train(config, config, f"init_from={before}"), before)


def test_an_encoder_starts_from_a_decoder_with_phrases_and_terms_of_its_own(folder, first, phrases):
    before = first("event_decoder")
    tables = [f"model.phrases={phrases}", "model.medical_lookup=terms.csv"]
    run = train("event_encoder", "encoder", f"init_from={before}", *tables)
    check(folder, run, before)
    model = read_yaml(run / "experiment.yaml")["model"]
    assert model["phrases"] == str(folder / phrases)
    assert model["medical_lookup"] == str(folder / "terms.csv")


@pytest.mark.parametrize("config", ["vitals_vae", "hcat"])
def test_a_run_starts_from_another_of_its_family(folder, first, config):
    before = first(config)
    check(folder, train(config, f"second_{config}", f"init_from={before}"), before)
