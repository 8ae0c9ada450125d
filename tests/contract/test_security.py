"""What the package may never do: unpickle, build objects from YAML, unpack archives to paths."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted(
    path.relative_to(ROOT) for top in ("ehr_ray", "jobs") for path in (ROOT / top).rglob("*.py")
)
MODULES = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
CALLS = {
    "yaml.load",
    "yaml.load_all",
    "yaml.full_load",
    "yaml.unsafe_load",
    "torch.save",
    "pandas.read_pickle",
    "pd.read_pickle",
    "shutil.unpack_archive",
    "eval",
    "exec",
    "os.system",
}
METHODS = {"extract", "extractall", "read_pickle", "to_pickle"}
"""Of archives, which would write where a member's name says, and of tables."""
ALLOWED = {
    "ehr_ray/commands/export_pt.py": {"torch.save": "writes the format that others read"},
    "ehr_ray/runtime/data/tasks.py": {
        "pickle": "outcomes between processes of one run, in Ray's own store, which pickles itself"
    },
}
"""What else would be refused, and why it is none of it."""


def name_of(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{name_of(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def is_true(call: ast.Call, keyword: str) -> bool:
    values = [k.value for k in call.keywords if k.arg == keyword]
    return bool(values) and isinstance(values[0], ast.Constant) and values[0].value is True


def findings(code: str) -> set[str]:
    """Return what a file does that it may not."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names} & MODULES
        elif isinstance(node, ast.ImportFrom):
            found |= {(node.module or "").split(".")[0]} & MODULES
        elif isinstance(node, ast.Call):
            name = name_of(node.func)
            method = name.rpartition(".")[2]
            # Of pandas, `str.extract` is of another kind.
            if name in CALLS or (method in METHODS and ".str." not in name):
                found.add(name)
            if name == "torch.load" and not is_true(node, "weights_only"):
                found.add(name)
            if is_true(node, "allow_pickle") or is_true(node, "trust_remote_code"):
                found.add(f"{name}(allow_pickle or trust_remote_code)")
            if method == "run" and is_true(node, "shell"):
                found.add(f"{name}(shell)")
    return found


def test_no_file_reads_what_could_run_code():
    """Safetensors, safe YAML and Parquet only."""
    found = {str(path): findings((ROOT / path).read_text()) for path in FILES}
    assert {path: calls for path, calls in found.items() if calls} == {
        path: set(calls) for path, calls in ALLOWED.items()
    }


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from joblib import load",
        "import yaml; yaml.load(x)",
        "yaml.unsafe_load(x)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path, allow_pickle=True)",
        "tarfile.open(path).extractall(to)",
        "archive.extract(member)",
        "subprocess.run(x, shell=True)",
        "eval(text)",
    ],
)
def test_the_search_finds_what_it_seeks(code):
    assert findings(code)


def test_the_search_passes_what_is_safe():
    safe = "torch.load(p, weights_only=True); yaml.safe_load(t); np.load(p); model.eval()"
    assert findings(safe) == set()


def test_no_clock_that_jumps_is_asked_for_a_duration_or_an_order():
    """The wall clock only dates what MLflow shows; durations are of a clock that cannot jump."""
    asked = {
        (str(path), name_of(node.func))
        for path in FILES
        for node in ast.walk(ast.parse((ROOT / path).read_text()))
        if isinstance(node, ast.Call)
        and name_of(node.func).rpartition(".")[2] in {"time", "now", "utcnow", "today"}
        and name_of(node.func).startswith(("time.", "datetime.", "date."))
    }
    starts = ("tracking.py", "verb_tracking.py")  # when a run of MLflow began, in its own units
    assert asked == {(f"ehr_ray/runtime/{name}", "time.time") for name in starts}


def test_a_ray_started_here_has_no_dashboard(monkeypatch):
    import ray

    from ehr_ray.runtime.session import session

    given = {}
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda **options: given.update(options))
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 2.0})
    with session():
        pass
    assert given["include_dashboard"] is False


def test_nothing_is_opened_to_every_address():
    """The README has `mlflow ui`, which listens on 127.0.0.1 unless told otherwise."""
    pages = [path.relative_to(ROOT) for path in ROOT.glob("ehr_ray/**/README.md")]
    opened = [
        str(path)
        for path in [*FILES, *pages, Path("cluster.yaml"), Path("README.md")]
        if re.search(
            r"0\.0\.0\.0|--host\b|host=",
            (ROOT / path).read_text().replace("--dashboard-host=127.0.0.1", ""),
        )
    ]
    assert opened == []
