import importlib

from matplotlib.figure import Figure

from ehr_ray.evaluation.suite import SUITES, SuiteResult, get_suite, merged
from ehr_ray.evaluation.table import Table
from ehr_ray.registry import FAMILIES, get_family


def test_every_suite_can_be_found() -> None:
    for name in SUITES:
        assert callable(get_suite(name))


def test_families_name_suites_that_exist() -> None:
    for family in FAMILIES:
        assert set(get_family(family).suites) <= set(SUITES)


def test_merged_keeps_everything_and_of_equal_keys_the_later() -> None:
    first = SuiteResult(metrics={"a": 1.0, "b": 1.0}, lines=("one",), artifacts=("x",))
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
    assert found.sections["Two"] is table
    assert found.figures["f"] is figure


def test_importing_suites_loads_none() -> None:
    module = importlib.import_module("ehr_ray.evaluation.suite")
    assert all(isinstance(place, str) and ":" in place for place in module.SUITES.values())
