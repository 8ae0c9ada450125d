"""Rules of the package's imports; each test names all that break its rule at once."""

import ast
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

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
    "ehr_ray/commands/benchmark/gpu_runs.py": "the configs that are compared are data",
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
            assert node.level == 0, f"{path}:{node.lineno}: import by the whole name"
            found += [(node.module or "", alias.name, node.lineno) for alias in node.names]
    return found


@cache
def aliases_of(path: Path) -> set[str]:
    """Return the names that stand for modules of the package in a file."""
    found = set()
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            above = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
            found |= {a.asname or a.name for a in node.names if above + a.name in MODULES}
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
        for module, name, line in imports(path):
            if module.split(".")[0] not in ("ehr_ray", "tests"):
                continue
            if any(map(is_private, [*module.split("."), name])):
                found.append(f"{path.relative_to(ROOT)}:{line}: {module} {name}")
        found += [
            f"{path.relative_to(ROOT)}:{node.lineno}: {ast.unparse(node)}"
            for node in ast.walk(tree_of(path))
            if isinstance(node, ast.Attribute) and is_private(node.attr)
            if ast.unparse(node.value) in aliases_of(path)
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


WHOLE_FOLDER = "in a folder that is on the disk before it gets its name"
SCRATCH = "in a folder of its own, which ends with the block or with the measurement"
BARE = {
    "ehr_ray/storage/files.py": "where it is done for all others",
    "ehr_ray/storage/lock.py": "the content of a lock file means nothing",
    "ehr_ray/storage/transfers.py": "a stand-in holds nothing, and is made again after a crash",
    "ehr_ray/commands/benchmark/ddp.py": SCRATCH,
    "ehr_ray/commands/benchmark/peers/preparing.py": SCRATCH,
    "ehr_ray/commands/benchmark/ranks.py": SCRATCH,
    "ehr_ray/commands/export/command.py": WHOLE_FOLDER,
    "ehr_ray/commands/export_pt.py": "into the name that `files.new_file` gives",
    "ehr_ray/events/folds.py": WHOLE_FOLDER,
    "ehr_ray/runtime/progress.py": "lines for the screen, which nobody reads after the command",
    "ehr_ray/runtime/training/start_log.py": "a line a step, of which a kill leaves those before",
    "ehr_ray/runtime/tuning/trial.py": "a scratch folder, and copies that are on the disk by then",
    "ehr_ray/sources/building/cohort.py": WHOLE_FOLDER,
    "ehr_ray/sources/building/keyed.py": WHOLE_FOLDER,
    "ehr_ray/sources/building/sharing.py": SCRATCH,
    "ehr_ray/sources/building/staging.py": WHOLE_FOLDER,
    "ehr_ray/train/checkpoint.py": WHOLE_FOLDER,
}
"""Files that write or rename without `storage/files.py`, and why nothing is half there then."""


def bare_write(node: ast.AST) -> bool:
    """Whether a call writes to a file under its own name, or renames one."""
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name | ast.Attribute):
        return False
    name = node.func.id if isinstance(node.func, ast.Name) else node.func.attr
    owner = "" if isinstance(node.func, ast.Name) else ast.unparse(node.func.value)
    if name == "open":  # of a database or an image, without a mode, nothing is written
        texts = [
            a.value
            for a in (*node.args, *(k.value for k in node.keywords if k.arg == "mode"))
            if isinstance(a, ast.Constant) and isinstance(a.value, str)
        ]
        return any(re.fullmatch(r"[wax][bt+]*|r[bt]*\+[bt]*", text) for text in texts)
    if name == "rename":  # of a file, not of columns
        return owner == "os" or (len(node.args) == 1 and not node.keywords)
    return name in ("write_text", "write_bytes") and owner not in ("", "files")


def test_what_is_written_or_renamed_apart_is_never_half_there():
    found = {
        str(path.relative_to(ROOT)): [n.lineno for n in ast.walk(tree_of(path)) if bare_write(n)]
        for path in MODULES.values()
    }
    found = {path: lines for path, lines in found.items() if lines}
    new = {path: lines for path, lines in found.items() if path not in BARE}
    assert new == {}, "write by storage/files.py, or say above why nothing is half there"
    assert BARE.keys() - found.keys() == set(), "writes no such file now: take it off the list"


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


AUROC = "ehr_ray/events/auroc.py"
RANKING = {"argsort", "lexsort", "searchsorted", "cumsum", "sort", "trapezoid", "trapz", "auc"}
"""By which the area under a curve is computed."""
AUROCS = {"roc_auc_score", "rankdata", "mannwhitneyu", "ranksums"}
"""What others have to compute it by."""
BY_THE_ONE = {"auroc", "_auroc", "statistics"}
"""What computes it by the one, as modules call it."""


def names_in(node: ast.AST) -> set[str]:
    """Return the names, attributes and imported names of a piece of code."""
    return {
        name
        for part in ast.walk(node)
        for name in (
            getattr(part, "id", ""),
            getattr(part, "attr", ""),
            part.name if isinstance(part, ast.alias) else "",
        )
        if name
    }


def aurocs_in(text: str) -> list[int]:
    """Return the lines at which one is computed: by a library, from a curve, or by hand.

    By hand: in a function that is named after it and does not call the one. One under another
    name is not seen.
    """
    if not re.search("|".join(["auc|auroc|roc_curve", *AUROCS]), text):
        return []
    lines = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom | ast.Attribute):
            taken = names_in(node) & AUROCS
        elif isinstance(node, ast.FunctionDef):
            used = names_in(node)
            own = re.search("auroc|auc(?![a-z])", node.name) and used.isdisjoint(BY_THE_ONE)
            taken = own or ("roc_curve" in used and used & RANKING)
        else:
            continue
        if taken:
            lines.append(node.lineno)
    return lines


def test_the_auroc_is_written_once():
    wrong = [
        f"{path.relative_to(ROOT)}:{line}"
        for path in MODULES.values()
        if str(path.relative_to(ROOT)) != AUROC
        for line in aurocs_in(path.read_text())
    ]
    assert wrong == [], f"take it from {AUROC}"


@pytest.mark.parametrize(
    "code",
    [
        "from sklearn.metrics import roc_auc_score",
        "import sklearn.metrics as m\nAREA = m.roc_auc_score(Y, P)",
        "area = scipy.stats.rankdata",
        "def column_auroc(y, p):\n    return (p[y][:, None] > p[~y]).mean()",
        "def auroc(y, p):\n    order = np.argsort(p)\n    return y[order].mean()",
        "def column_aucs(y, p): return (scipy.stats.rankdata(p) * y).sum()",
        "def area(y, p): return scipy.stats.mannwhitneyu(p[y], p[~y]).statistic",
        "def area(y, p):\n    x, z, _ = roc_curve(y, p)\n    return np.trapezoid(z, x)",
        "def area(y, p):\n    x, z, _ = metrics.roc_curve(y, p)\n    return metrics.auc(x, z)",
    ],
)
def test_another_auroc_would_be_found(code):
    assert aurocs_in(code)


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
