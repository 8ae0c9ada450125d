"""What is imported before there is something to do: start-up time is made of it."""

import subprocess
import sys
from pathlib import Path

import pytest

from ehr_ray.cli.verbs import VERBS
from ehr_ray.config.yaml_files import read_yaml
from ehr_ray.registry import FAMILIES

ROOT = Path(__file__).parents[3]
HEAVY = {"torch", "ray", "mlflow", "pandas", "sklearn", "scipy", "matplotlib", "h5py", "skfda"}
CONFIGS = {  # of each family the last one
    read_yaml(path)["family"]: path
    for path in sorted((ROOT / "configs" / "tiny").glob("*.yaml"))
    if "family" in read_yaml(path)
}
ARRAYS = {"numpy", "pyarrow"}
"""Lighter, and still as much as all else that an error in a config needs."""


def imported(code: str, said: str = "") -> set[str]:
    """Return the top-level packages that a process has imported at its end, having said that."""
    done = subprocess.run(
        [sys.executable, "-c", f"import sys\n{code}\nprint(*sys.modules, file=sys.stdout)"],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    assert said in done.stderr
    return {name.split(".")[0] for name in done.stdout.splitlines()[-1].split()}


def main(*words: str) -> str:
    return f"from ehr_ray.cli.main import main\ntry: main({list(words)!r})\nexcept SystemExit: pass"


def test_help_imports_nothing_of_weight():
    assert not imported(main("--help")) & (HEAVY | ARRAYS | {"pydantic", "yaml"})


@pytest.mark.parametrize("family", FAMILIES)
def test_a_config_is_checked_without_what_trains_it(family):
    code = (
        f"from ehr_ray.experiment import parse\nfrom ehr_ray.errors import ConfigError\n"
        f"raw = {{'family': {family!r}, 'name': 'x', 'data': {{'cohort': 'c'}}}}\nparse(raw)"
    )
    assert not imported(code) & (HEAVY | ARRAYS)


@pytest.mark.parametrize("verb", ["train", "tune", "crossval", "prepare", "phrases"])
def test_an_error_in_a_config_comes_before_the_heavy_imports(verb):
    found = imported(main(verb, "configs/tiny/set_vae.yaml", "model.latnt=3"), "latnt")
    assert not found & (HEAVY | ARRAYS)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_error_in_a_config_of_any_family_comes_before_them(family):
    found = imported(main("train", str(CONFIGS[family]), "model.latnt=3"), "latnt")
    assert not found & (HEAVY | ARRAYS)


@pytest.mark.parametrize(
    "words",
    [
        *[(verb, "configs/tiny/set_vae.yaml") for verb in ("train", "tune", "crossval", "prepare")],
        ("phrases", "configs/tiny/event_decoder.yaml"),
        ("export-pt", "configs/tiny/event_decoder.yaml", "--output", "nowhere/pt"),
    ],
)
def test_a_missing_cohort_is_told_before_the_heavy_imports(words):
    code = main(*words[:2], "data.cohort=nowhere/cohort", *words[2:])
    assert not imported(code, "data.cohort=nowhere/cohort: no such folder") & HEAVY


@pytest.mark.parametrize(
    "words", [("evaluate",), ("embed", "--cohort", "c", "--output", "e"), ("export", "nowhere/m")]
)
def test_a_missing_run_is_told_before_the_heavy_imports(words):
    found = imported(main(words[0], "nowhere/run", *words[1:]), "nowhere/run: no such folder")
    assert not found & HEAVY


@pytest.mark.parametrize(
    "words", [("evaluate",), ("embed", "--cohort", "c", "--output", "e"), ("export", "nowhere/m")]
)
def test_a_run_without_a_checkpoint_is_told_before_the_heavy_imports(words, tmp_path):
    (tmp_path / "history.parquet").touch()
    found = imported(main(words[0], str(tmp_path), *words[1:]), f"{tmp_path}: no checkpoint here")
    assert not found & HEAVY


def test_a_training_worker_imports_no_tracking_figures_or_trees():
    found = imported("import ehr_ray.runtime.training.worker")
    assert {"torch", "ray"} <= found
    assert not found & {"mlflow", "sklearn", "matplotlib", "optuna"}


def test_the_actor_that_gives_room_back_imports_no_torch():
    assert "torch" not in imported("import ehr_ray.runtime.training.placement")


def test_shards_are_expanded_without_torch():
    assert "torch" not in imported("import ehr_ray.commands.expand")


def test_rows_are_prepared_without_importing_ray_where_it_has_no_part(synthetic_cohort, tmp_path):
    code = main(
        *("prepare", "configs/tiny/event_decoder.yaml", f"data.cohort={synthetic_cohort}"),
        *(f"data.cache_dir={tmp_path}", "cluster.num_workers=0"),
    )
    assert not imported(code) & {"ray", "mlflow", "sklearn", "matplotlib"}
    assert list(tmp_path.rglob("*.arrow"))


AT_ONCE = {"new-family", "ingest"}
"""Verbs whose imports take a second at most."""


def test_a_verb_gives_a_sign_of_life_before_the_first_heavy_import(synthetic_cohort, tmp_path):
    """In one process, in which no heavy import comes to its end."""
    (tmp_path / "run" / "checkpoint").mkdir(parents=True)
    set_vae, decoder = (f"configs/tiny/{name}.yaml" for name in ("set_vae", "event_decoder"))
    here = [f"data.cohort={synthetic_cohort}", f"output={tmp_path / 'runs'}"]
    run, cohort = str(tmp_path / "run"), str(synthetic_cohort)
    out = ["--output", str(tmp_path / "out")]
    commands = [
        ["quickstart", *out],
        ["expand", cohort, *out],
        ["labels", "task.yaml", "--cohort", cohort],
        ["phrases", decoder, *here],
        ["export-pt", decoder, *here, *out],
        *([verb, set_vae, *here] for verb in ("prepare", "train", "tune", "crossval")),
        ["train", set_vae, *here, "--smoke"],
        ["evaluate", run],
        ["embed", run, "--cohort", cohort, *out],
        ["export", run, str(tmp_path / "model")],
        ["benchmark", *out],
        ["doctor"],
    ]
    assert {verb.name for verb in VERBS} - AT_ONCE == {verb for verb, *_ in commands}
    code = (
        f"import os, sys\nHEAVY = {HEAVY!r}\n"
        "class Stop:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name in HEAVY: raise SystemExit(f'first of weight: {name}')\n"
        "sys.meta_path.insert(0, Stop())\n"
        "from ehr_ray.cli.main import main\n"
        "sys.stderr.isatty = lambda: True\n"
        "os.get_terminal_size = lambda _: os.terminal_size((80, 24))\n"
        f"for words in {commands!r}:\n"
        "    try: main(words)\n"
        "    except SystemExit as end: print('', end, sep='\\n', file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    said = [line for line in done.stderr.replace("\x1b[K", "").splitlines() if line]
    assert said[::2] == [f"{verb}: starting, a few seconds" for verb, *_ in commands], said
    assert all(line.startswith("first of weight: ") for line in said[1::2]), said
    assert done.stdout == ""
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
