import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODULES = sorted(
    path.relative_to(ROOT).with_suffix("")
    for path in (ROOT / "ehr_ray").rglob("*.py")
    if path.name != "__init__.py"
)
OUTSIDE = [".".join(path.parts) for path in MODULES if path.parts[1] not in ("runtime", "cli")]
UNTESTED = {
    "ehr_ray/errors": "pure records",
    "ehr_ray/family": "a record of functions; contract/test_family.py checks every instance",
    "ehr_ray/events/schema": "names and Arrow schemas, checked where they are read and written",
    "ehr_ray/evaluation/report/content": "pure records",
    "ehr_ray/evaluation/report/page": "tested with report",
    "ehr_ray/evaluation/report/comparison": "tested with report",
    "ehr_ray/evaluation/report/html": "tested with report",
    "ehr_ray/evaluation/report/style": "a style sheet",
}
"""Modules without a mirrored test file, and why."""


def test_nothing_outside_runtime_imports_ray_or_mlflow():
    code = (
        "import importlib, sys\n"
        f"for name in {OUTSIDE!r}: importlib.import_module(name)\n"
        "print(sorted({m.split('.')[0] for m in sys.modules} & {'ray', 'mlflow'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert len(OUTSIDE) > 30


@pytest.mark.parametrize("package", ["events", "sources"])
def test_events_and_sources_import_no_torch(package):
    names = [name for name in OUTSIDE if name.split(".")[1] == package]
    code = (
        "import importlib, sys\n"
        f"for name in {names!r}: importlib.import_module(name)\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
    assert names


def test_the_import_contracts_are_kept():
    code = (
        "import sys; from importlinter.cli import lint_imports; "
        "sys.exit(lint_imports(no_cache=True))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stdout
    assert "0 broken" in done.stdout


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_every_module_has_its_test_file(module):
    name = f"test_{module.name}.py"
    mirrored = ROOT / "tests" / "unit" / Path(*module.parts[1:-1]) / name
    if str(module) in UNTESTED:
        assert not mirrored.is_file(), "has a test file now: take it off the list"
    elif module.parts[1] == "runtime":  # on a Ray cluster, by what a user sees
        assert any((ROOT / "tests" / "ray").glob("test_*.py"))
    else:
        assert mirrored.is_file(), f"write {mirrored.relative_to(ROOT)}"
