"""Rules of the package's imports; each test names all that break its rule at once."""

import ast
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

from ehr_ray.registry import FAMILIES

ROOT = Path(__file__).parents[2]
SERVES_RAY = {
    "ehr_ray.runtime.progress": "how rank 0 of Ray's workers speaks to the driver: a file",
    "ehr_ray.runtime.screen": "what a person sees of Ray's work; `--help` and errors import no Ray",
    "ehr_ray.runtime.training.sending": "the reports of Ray's rank 0 on their way to a store",
    "ehr_ray.runtime.training.start_log": "notes that Ray's workers leave for a benchmark",
}
"""Modules of runtime/ that import neither ray nor what does, and why they stand there."""
FAMILY_NAMES = {
    "ehr_ray/commands/quickstart.py": "the config of the first run is data",
    "ehr_ray/commands/benchmark/ddp.py": "the config that is measured is data",
    "ehr_ray/commands/benchmark/faults.py": "the config that is measured is data",
    "ehr_ray/commands/benchmark/gpu.py": "the config that is measured is data",
    "ehr_ray/commands/benchmark/gpu_models.py": "the configs that are measured are data",
    "ehr_ray/commands/benchmark/overhead.py": "the config that is measured is data",
    "ehr_ray/commands/benchmark/scaling.py": "the config that is measured is data",
    "ehr_ray/commands/benchmark/size.py": "the config that is measured is data",
    "ehr_ray/commands/benchmark/search.py": "the config that is measured is data",
    "ehr_ray/commands/benchmark/peers/phrases.py": "the phrases of its events are measured",
    "ehr_ray/commands/benchmark/peers/preparing.py": "the rows of its events are measured",
    "ehr_ray/commands/benchmark/peers/published_steps.py": "what is measured is data",
    "ehr_ray/commands/benchmark/published_vitals.py": "a published model beside the family's own",
    "ehr_ray/config/published_keys.py": "a published config names no family: its keys tell it",
    "ehr_ray/config/published_vae.py": "a published config names no family: its keys tell it",
}
"""Files outside families/ and registry.py that name a family, and why they may."""


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {name_of(path): path for path in sorted((ROOT / "ehr_ray").rglob("*.py"))}
TESTS = sorted((ROOT / "tests").rglob("*.py"))


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


@cache
def imports(path: Path) -> list[tuple[str, str, int]]:
    """Return module, name and line of every import, of those in functions too."""
    found = []
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            found += [(alias.name, "", node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found += [(node.module or "", alias.name, node.lineno) for alias in node.names]
    return found


@cache
def imported(path: Path) -> set[str]:
    """Return the modules of the package that a file imports."""
    both = {m if f"{m}.{n}" not in MODULES else f"{m}.{n}" for m, n, _ in imports(path)}
    return both & MODULES.keys()


def reachable(start: str, within: str = "ehr_ray") -> set[str]:
    """Return the modules of a package that one imports, directly or through others of it."""
    found: set[str] = set()
    waiting = [start]
    while waiting:
        new = {n for n in imported(MODULES[waiting.pop()]) if n.startswith(within)} - found
        found |= new
        waiting += new
    return found


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


def test_no_modules_import_each_other_in_a_circle():
    assert sorted(name for name in MODULES if name in reachable(name)) == []


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def test_nobody_uses_the_private_name_of_another_module():
    found = []
    for path in [*MODULES.values(), *TESTS]:
        aliases = set()
        for module, name, line in imports(path):
            if module.split(".")[0] not in ("ehr_ray", "tests"):
                continue
            if any(map(is_private, [*module.split("."), name])):
                found.append(f"{path.relative_to(ROOT)}:{line}: {module} {name}")
            if f"{module}.{name}" in MODULES:
                aliases.add(name)
        found += [
            f"{path.relative_to(ROOT)}:{node.lineno}: {node.value.id}.{node.attr}"
            for node in ast.walk(tree_of(path))
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
            if node.value.id in aliases and is_private(node.attr)
        ]
    assert found == []


def test_a_module_of_runtime_uses_ray_or_mlflow_itself_or_through_another_one():
    inside = [n for n, p in MODULES.items() if n.startswith("ehr_ray.runtime.")]
    inside = [n for n in inside if MODULES[n].name != "__init__.py"]
    uses = {
        name
        for name in inside
        if any(m.split(".")[0] in ("ray", "mlflow") for m, _, _ in imports(MODULES[name]))
    }
    strangers = {n for n in inside if n not in uses and not reachable(n, "ehr_ray.runtime.") & uses}
    assert strangers == SERVES_RAY.keys(), "move it out of runtime/, or say above whom it serves"


WRITTEN_ONCE = {
    "os.replace": "ehr_ray/storage/files.py",
    "os.fsync": "ehr_ray/storage/files.py",
    "fcntl.flock": "ehr_ray/storage/lock.py",
    "ray.data.from_items": "ehr_ray/runtime/data/tasks.py",
}
"""Calls that one file makes for all others, since each alone forgets something."""
NEVER = {"ray.remote", "tempfile.NamedTemporaryFile", "tempfile.mkstemp"}
"""Calls that none makes beside those."""


def test_files_are_replaced_and_locked_and_jobs_run_in_one_place_each():
    wrong = [
        f"{path.relative_to(ROOT)}:{node.lineno}: {call}"
        for path in MODULES.values()
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.Attribute)
        for call in [ast.unparse(node)]
        if call in NEVER
        or WRITTEN_ONCE.get(call, str(path.relative_to(ROOT))) != str(path.relative_to(ROOT))
    ]
    assert wrong == []


def test_the_auroc_is_written_once():
    wrong = [
        str(path.relative_to(ROOT))
        for path in MODULES.values()
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.ImportFrom)
        if "roc_auc_score" in {alias.name for alias in node.names}
    ]
    assert wrong == []


def families_named(path: Path) -> set[str]:
    """Return the lines of a file that import or name a family.

    A name within a path, as in `configs/<name>.yaml`, is that of a file. Docstrings may name one.
    """
    names = "|".join(FAMILIES)
    # `[^/\w]` before: a path's last part, `ehr_ray.families.x` and a plain word differ by it. The
    # example of `new-family` is nobody's name; the verb itself refuses what this would find.
    pattern = re.compile(
        rf"ehr_ray\.families\.|(?<!new-family )(?<![/\w])({names})(?!\w)", re.IGNORECASE
    )
    found = {f"line {n}" for m, _, n in imports(path) if m.startswith("ehr_ray.families.")}
    texts = {
        id(node.value)
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in texts:
            found |= {f"line {node.lineno}"} if pattern.search(node.value) else set()
    return found


def test_a_family_is_named_by_its_folder_and_the_registry_alone():
    named = {
        str(path.relative_to(ROOT)): families_named(path)
        for name, path in MODULES.items()
        if not name.startswith("ehr_ray.families") and name != "ehr_ray.registry"
    }
    named = {path: lines for path, lines in named.items() if lines}
    new = {path: lines for path, lines in named.items() if path not in FAMILY_NAMES}
    assert new == {}, "let the family's record say it"
    assert FAMILY_NAMES.keys() - named.keys() == set(), "names none now: take it off the list"
