import subprocess
import sys

from matplotlib.figure import Figure

from ehr_ray.evaluation.suite import SuiteResult, get_suite, merged
from ehr_ray.evaluation.table import Table
from ehr_ray.registry import FAMILIES, get_family


def test_every_suite_a_family_names_can_be_found() -> None:
    paths = {path for name in FAMILIES for path in get_family(name).evaluation.suites}
    assert len(paths) == 7
    assert all(callable(get_suite(path)) for path in paths)


def test_merged_keeps_everything_and_of_equal_keys_the_later() -> None:
    first = SuiteResult(
        metrics={"a": 1.0, "b": 1.0}, lines=("one",), artifacts=("x",), notes=("n",)
    )
    table, figure = Table(("", "n"), (("row", 1.0),)), Figure()
    second = SuiteResult(
        metrics={"b": 2.0},
        sections={"Two": table},
        figures={"f": figure},
        captions={"f": ("F", "")},
        lines=("two",),
    )
    found = merged([first, second])
    assert found.metrics == {"a": 1.0, "b": 2.0}
    assert (found.lines, found.artifacts) == (("one", "two"), ("x",))
    assert found.notes == ("n",)
    assert found.sections["Two"] is table
    assert found.figures["f"] is figure


def test_a_record_is_read_without_its_suites() -> None:
    code = (
        "import sys; from ehr_ray.registry import FAMILIES, get_family\n"
        "paths = [path for name in FAMILIES for path in get_family(name).evaluation.suites]\n"
        "print(sorted({path.split(':')[0] for path in paths} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
