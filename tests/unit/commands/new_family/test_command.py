"""A family that `new-family` makes is whole at once: the contract tests run over it and pass."""

import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ehr_ray.commands.new_family import command
from ehr_ray.errors import InputError, ResourcesUnavailableError

ROOT = Path(__file__).parents[4]
NAME = "a_family_of_24_letters_x"
BARE = "bare_family"
"""One of its own functions alone, without the groups and the search space of the others."""
CONTRACTS = ("family", "record", "configs", "fields", "locations", "mirror", "layers")
"""Those that look at families; the second device comes after them, as it stays for a process."""
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


def in_checkout(checkout, *words):
    return subprocess.run(
        [sys.executable, *words],
        cwd=checkout,
        env={**os.environ, "PYTHONPATH": str(checkout)},
        capture_output=True,
        text=True,
        check=False,
    )


def add_bare_family(checkout):
    command.new_family(checkout, BARE)
    record = checkout / "ehr_ray" / "families" / BARE / "family.py"
    text = record.read_text()
    for left_out in (r"    search_space=\{.*?\n    \},\n", r"    training=.*?\n"):
        text, count = re.subn(left_out, "", text, flags=re.DOTALL)
        assert count == 1
    record.write_text(text)


def test_a_new_family_passes_every_contract_test_and_its_own(checkout):
    """One with all that is made, and one that leaves out what may be left out."""
    made = in_checkout(checkout, "jobs/new-family.py", NAME)
    assert made.returncode == 0, made.stderr
    assert made.stderr.splitlines()[-1].startswith("next: pytest tests/contract/test_family.py -k")
    for line in printed_output():
        assert line.replace("my_family", NAME) in made.stderr.splitlines()
    linted = in_checkout(
        checkout, "-m", "ruff", "check", "--no-cache", ".", "--output-format", "concise"
    )
    assert linted.returncode == 0, linted.stdout
    add_bare_family(checkout)
    checked = in_checkout(
        checkout,
        *("-m", "pytest", "-q", "-p", "no:cacheprovider", "--update-golden"),
        *("-k", f"{NAME} or {RULES} or {BARE} and (record or configs or second_device)"),
        *(f"tests/contract/test_{name}.py" for name in CONTRACTS),
        f"tests/unit/families/{NAME}",
        "tests/contract/second_device_cases.py",
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert (checkout / "tests" / "contract" / "golden" / f"{NAME}.json").is_file()


def test_commands_of_the_pages_train_the_family_they_name_once_it_is_there(checkout):
    """Else the family's own page would evaluate a run that nobody has trained."""
    line = "ehr-ray train configs/tiny/my_family.yaml data.cohort=cohorts/synthetic"
    pages = checkout / "tests" / "jobs" / "test_readme.py"
    assert line not in runpy.run_path(str(pages))["SHELL"]
    command.new_family(checkout, "my_family")
    found = runpy.run_path(str(pages))
    assert found["SHELL"].count(line) == 2
    assert "ehr-ray evaluate runs/tiny_my_family" in found["SHELL"]


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
