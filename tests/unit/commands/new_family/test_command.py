"""A family that `new-family` makes is whole at once: the contract tests run over it and pass."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ehr_ray.commands.new_family import command
from ehr_ray.errors import InputError, ResourcesUnavailableError

ROOT = Path(__file__).parents[4]
NAME = "a_family_of_24_letters_x"
CONTRACTS = ("family", "record", "configs", "locations", "mirror", "layers")
"""Those that look at families."""
RULES = "has_its_test_file or mirrors_a_module or named_by or tiny_twin"
"""Their tests of all families at once."""


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A copy of this checkout, which the verb takes for the one that runs."""
    for name in ("ehr_ray", "configs", "jobs", "tests"):
        shutil.copytree(ROOT / name, tmp_path / name)
    for name in ("README.md", "pyproject.toml"):
        shutil.copy2(ROOT / name, tmp_path)
    monkeypatch.setattr(command, "PACKAGE", tmp_path / "ehr_ray")
    return tmp_path


def printed_output():
    """What the page on families says that the command says."""
    page = (ROOT / "ehr_ray" / "families" / "README.md").read_text()
    printed = page.split("```bash\nehr-ray new-family my_family\n```\n\n```text\n")[1]
    return [line for line in printed.split("```")[0].splitlines() if line != "..."]


def contents(root):
    return {p: p.read_bytes() if p.is_file() else None for p in root.rglob("*")}


def test_a_new_family_passes_every_contract_test_and_its_own(checkout):
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    made, checked, linted = (
        subprocess.run(
            [sys.executable, *words],
            cwd=checkout,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        for words in (
            ("jobs/new-family.py", NAME),
            (
                *("-m", "pytest", "-q", "-p", "no:cacheprovider", "--update-golden"),
                *("-k", f"{NAME} or {RULES}"),
                *(f"tests/contract/test_{name}.py" for name in CONTRACTS),
                f"tests/unit/families/{NAME}",
            ),
            ("-m", "ruff", "check", "--no-cache", ".", "--output-format", "concise"),
        )
    )
    assert made.returncode == 0, made.stderr
    assert made.stderr.splitlines()[-1].startswith("next: pytest tests/contract/test_family.py -k")
    for line in printed_output():
        assert line.replace("my_family", NAME) in made.stderr.splitlines()
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert (checkout / "tests" / "contract" / "golden" / f"{NAME}.json").is_file()
    assert linted.returncode == 0, linted.stdout


@pytest.mark.parametrize("name", ["abc", NAME])
def test_what_is_made_is_formatted_whatever_the_length_of_the_name(name, tmp_path):
    for path, text in command.rendered(name).items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    settings = ("--no-cache", "--config", str(ROOT / "pyproject.toml"))
    words = [sys.executable, "-m", "ruff", "format", "--check", *settings, "."]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("set_vae", "a family of this name is there"),
        ("event_decoder", "configs/event_decoder.yaml: there already"),
        ("linear", "a word of ehr_ray/commands/"),
        ("Sleep", "small letters"),
        ("../sleep", "small letters"),
        ("class", "small letters"),
        ("sl", "3 to 24 letters"),
        (f"{NAME}y", "3 to 24 letters"),
    ],
)
def test_a_name_that_cannot_be_is_refused_and_nothing_is_written(checkout, name, words):
    before = contents(checkout)
    with pytest.raises(InputError, match=words):
        command.new_family(checkout, name)
    assert contents(checkout) == before


def test_a_place_that_is_no_checkout_or_not_the_one_that_runs_is_refused(checkout, monkeypatch):
    with pytest.raises(InputError, match=r"no checkout of ehr_ray, it has no ehr_ray.registry"):
        command.new_family(checkout / "configs", "sleep")
    shutil.rmtree(checkout / "tests")
    with pytest.raises(InputError, match=r"it has no tests/contract/test_family.py"):
        command.new_family(checkout, "sleep")
    monkeypatch.undo()
    shutil.copytree(ROOT / "tests" / "contract", checkout / "tests" / "contract")
    with pytest.raises(InputError, match="but the ehr_ray that runs is"):
        command.new_family(checkout, "sleep")


def test_all_files_are_written_or_none(checkout, monkeypatch):
    before, write_text = contents(checkout), command.files.write_text

    def full(path, text):
        if path.name == "registry.py":
            raise ResourcesUnavailableError(f"{path}: No space left on device")
        write_text(path, text)

    monkeypatch.setattr(command.files, "write_text", full)
    with pytest.raises(ResourcesUnavailableError, match="No space left"):
        command.new_family(checkout, "sleep")
    assert contents(checkout) == before
