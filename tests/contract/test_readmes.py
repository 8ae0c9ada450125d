"""What a README points at is there: links, headings, the tree, the entries of a family's record."""

import dataclasses
import re
import tomllib
from pathlib import Path

import pytest

from ehr_ray.config.schema import ConfigSchema
from ehr_ray.family import Evaluation, Family, Files, Training, Transfer

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "ehr_ray"
READMES = sorted(
    path.relative_to(ROOT)
    for top in (".", "configs", "ehr_ray", "jobs", "tests")
    for path in (ROOT / top).glob("*.md" if top == "." else "**/*.md")
)
SET_BY_OTHERS = dict.fromkeys(
    ("task_scores", "task_metrics", "task_width"), "train/task.py sets it"
)
"""Entries of a record that no family gives."""


def slugs(path):
    """The names by which GitHub links to the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).strip().replace(" ", "-") for h in headings}


@pytest.mark.parametrize("readme", READMES, ids=str)
def test_every_relative_link_leads_to_a_file_and_to_a_heading_in_it(readme):
    wrong = []
    for link in re.findall(r"\]\(([^)\s]+)\)", (ROOT / readme).read_text()):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, heading = link.partition("#")
        path = (ROOT / readme).parent / name if name else ROOT / readme
        if not path.exists() or (heading and heading not in slugs(path)):
            wrong.append(link)
    assert wrong == []


@pytest.mark.parametrize("readme", READMES, ids=str)
def test_every_path_from_the_top_or_from_the_page_is_there(readme):
    named = re.findall(r"`((?:ehr_ray|configs|jobs|tests)/[\w./-]+)`", (ROOT / readme).read_text())
    folders = (ROOT, (ROOT / readme).parent)
    assert [path for path in named if not any((at / path).exists() for at in folders)] == []


def test_the_tree_names_what_is_there_and_every_folder_of_the_package():
    text = (ROOT / "README.md").read_text().split("## The tree\n", 1)[1]
    tree = re.search(r"```text\n(.*?)```", text, re.DOTALL).group(1)
    named, wrong, folder = set(), [], PACKAGE
    for line in tree.splitlines():
        names = re.findall(r"(?<![\w/])[\w.]+(?:/|\.py|\.yaml)(?![\w/])", line)
        if re.match(r"  \w+/ ", line):
            folder = PACKAGE / names[0]
        near = (ROOT, PACKAGE, folder)
        wrong += [name for name in names if not any((at / name).exists() for at in near)]
        named |= {name.rstrip("/") for name in names}
    assert wrong == []
    folders = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert folders - named == set()


def test_the_tree_goes_down_the_layers():
    text = (ROOT / "README.md").read_text().split("## The tree\n", 1)[1].split("jobs/", 1)[0]
    shown = re.findall(r"^  (\w+)(?:/|\.py)|  (\w+)\.py(?=  )", text, re.MULTILINE)
    shown = [first or second for first, second in shown]
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    (layers,) = (c["layers"] for c in contracts["contracts"] if c["type"] == "layers")
    place = {name: at for at, layer in enumerate(layers) for name in layer.split(" | ")}
    assert sorted(shown) == sorted(place)
    assert [place[name] for name in shown] == sorted(place.values())


def test_the_first_page_has_at_most_200_lines():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 200


def test_every_entry_of_a_familys_record_is_told_and_no_other():
    text = (PACKAGE / "families" / "README.md").read_text().split("## Add a family\n", 1)[1]
    told = set(re.findall(r"`(\w+)(?:\([\w, ]*\))?`", text))
    entries = {
        field.name
        for kind in (ConfigSchema, Family, Training, Evaluation, Transfer, Files)
        for field in dataclasses.fields(kind)
    }
    assert entries - told - SET_BY_OTHERS.keys() == set()
    rows = re.findall(r"^\| `(training|evaluation|transfer|files)` \| (.*) \|$", text, re.MULTILINE)
    for group, row in rows:
        kind = {f.name: f for f in dataclasses.fields(Family)}[group].default
        known = {field.name for field in dataclasses.fields(kind)} | {"init_from"}
        assert set(re.findall(r"`(\w+)`", row)) <= known, group
    assert len(rows) == 4


FITS_TREES = re.compile(
    r"\blightgbm\.(train|cv)\(|(LGBM|Boosting|Forest|Trees?)(Classifier|Regressor)\("
)


def test_the_page_names_every_file_in_which_trees_are_fitted():
    said = (ROOT / "README.md").read_text().split("trees are fitted in", 1)[1]
    fitting = {
        str(path.relative_to(ROOT))
        for path in PACKAGE.rglob("*.py")
        if FITS_TREES.search(path.read_text())
    }
    assert set(re.findall(r"\]\(([\w/]+\.py)\)", said)) == fitting
