"""What the product was asked for, a row a feature: it works, or a user is told how it differs.

`features/FAMILY.csv` names each feature of the document that asked for the family, and what shows
it: tests that would fail without it, as `tests/FILE.py::test_name`, or words of a README, as
`README:FILE.md#words`, for what documentation alone can show. Here it is seen that what a row
points at is there.
"""

import ast
import csv
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TABLES = sorted((Path(__file__).parent / "features").glob("*.csv"))
COLUMNS = ["feature", "status", "shown_by", "note"]
NEVER_RUN = ("skip", "xfail")


def rows(table):
    """Return the rows of a table, each as a dict of its columns."""
    with table.open(newline="") as file:
        reader = csv.DictReader(file, strict=True)
        found = list(reader)
    assert reader.fieldnames == COLUMNS
    return found


def called(node):
    """Return the dotted name of a decorator, of a call or of a name, and its first argument."""
    argument = node.args[0] if isinstance(node, ast.Call) and node.args else None
    name = ast.unparse(node.func if isinstance(node, ast.Call) else node)
    return name.rpartition(".")[2], argument


def never_runs(nodes):
    """Whether a mark or a call among nodes skips whatever the machine: `skip`, `skipif(True)`."""
    for node in nodes:
        name, argument = called(node)
        always = isinstance(argument, ast.Constant) and bool(argument.value)
        if name in NEVER_RUN or (name == "skipif" and always):
            return True
    return False


def calls(body):
    """Return the expressions that stand in a body as statements of their own."""
    return [step.value for step in body if isinstance(step, ast.Expr)]


def marks(body):
    """Return what a module's `pytestmark` holds."""
    return [
        mark
        for step in body
        if isinstance(step, ast.Assign) and ast.unparse(step.targets[0]) == "pytestmark"
        for mark in (step.value.elts if isinstance(step.value, ast.List) else [step.value])
    ]


@cache
def run_in(path):
    """Return the names of a file's tests that are run somewhere; None without such a file."""
    if not (ROOT / path).is_file():
        return None
    body = ast.parse((ROOT / path).read_text()).body
    if never_runs(marks(body) + calls(body)):
        return set()
    functions = [step for step in body if isinstance(step, ast.FunctionDef)]
    return {f.name for f in functions if not never_runs(f.decorator_list + calls(f.body))}


def missing(pointer):
    """Return what is wrong with one pointer of `shown_by`; nothing where it leads somewhere."""
    if match := re.fullmatch(r"(tests/\S+\.py)::(test_\w+)", pointer):
        path, name = match.groups()
        found = run_in(path)
        return "" if found is not None and name in found else f"{pointer}: no such test is run"
    if match := re.fullmatch(r"README:(\S+?\.md)#(.+)", pointer):
        path, words = match.groups()
        text = (ROOT / path).read_text() if (ROOT / path).is_file() else ""
        return "" if " ".join(words.split()) in " ".join(text.split()) else f"{pointer}: not there"
    return f"{pointer}: neither a test nor a README"


def wrong(row):
    """Return what is wrong with a row, a sentence each."""
    found = [] if row["status"] in ("works", "differs") else [f"status {row['status']!r}"]
    if row["status"] == "differs" and not row["note"].strip():
        found.append("differs, and no note says how")
    if not row["feature"].strip():
        found.append("no feature")
    pointers = re.split(r"\s+(?=tests/|README:)", row["shown_by"].strip())
    return found + [problem for problem in map(missing, pointers) if problem]


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.stem)
def test_every_feature_points_at_what_shows_it(table):
    found = rows(table)
    assert found
    assert {row["feature"]: wrong(row) for row in found if wrong(row)} == {}


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.stem)
def test_no_feature_stands_twice(table):
    names = [" ".join(row["feature"].lower().split()) for row in rows(table)]
    assert sorted(names) == sorted(set(names))


HERE = "tests/contract/test_features.py::test_no_feature_stands_twice"


@pytest.mark.parametrize(
    "change",
    [
        {"status": "planned"},
        {"status": "differs"},
        {"feature": ""},
        {"shown_by": ""},
        {"shown_by": f"{HERE} {HERE}_at_all"},
        {"shown_by": "tests/contract/test_nothing.py::test_nothing"},
        {"shown_by": "README:README.md#words that no page of a product has"},
        {"shown_by": f"{HERE} README:NOTHING.md#ehr_ray"},
        {"shown_by": "seen by eye"},
    ],
)
def test_a_row_that_points_nowhere_is_found(change):
    row = {"feature": "a table", "status": "works", "shown_by": HERE, "note": ""}
    assert wrong(row) == []
    assert wrong(row | change) != []


@pytest.mark.parametrize(
    "source",
    [
        "@pytest.mark.skip(reason='later')\ndef test_it(): pass",
        "@pytest.mark.skipif(True, reason='later')\ndef test_it(): pass",
        "def test_it():\n    pytest.skip('later')",
        "pytestmark = [pytest.mark.skip]\ndef test_it(): pass",
        "pytest.skip('later', allow_module_level=True)\ndef test_it(): pass",
    ],
)
def test_a_test_that_never_runs_shows_nothing(tmp_path, source):
    path = tmp_path / "test_it.py"
    path.write_text(source)
    assert run_in(str(path)) == set()
    path = tmp_path / "test_run.py"
    path.write_text("@pytest.mark.skipif(os.name == 'nt', reason='')\ndef test_it(): pass")
    assert run_in(str(path)) == {"test_it"}
