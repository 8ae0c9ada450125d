"""tests/unit mirrors the package path for path; what it lacks is listed, with the file instead."""

import ast
import re
from functools import cache
from pathlib import Path

from ehr_ray.sources.source import SOURCES

ROOT = Path(__file__).parents[2]
PACKAGE = sorted(path.relative_to(ROOT) for path in (ROOT / "ehr_ray").rglob("*.py"))


def name_of(path: Path) -> str:
    """Return the dotted name of a module."""
    return ".".join(path.with_suffix("").parts).removesuffix(".__init__")


FILES = {name_of(path): path for path in PACKAGE}
MODULES = [
    path
    for path in PACKAGE
    if path.name != "__init__.py"  # near-empty
    and path.parts[-1] != "family.py"  # records: contract/test_family.py and test_record.py
]
ELSEWHERE = {
    "commands/benchmark/published_vitals.py": "ray/test_benchmark.py",
    "commands/benchmark/scaling.py": "ray/test_benchmark.py",
    "commands/benchmark/search.py": "ray/test_benchmark.py",
    "commands/evaluate/predicted_splits.py": "ray/test_inference.py",
    "commands/evaluate/report_content.py": "ray/test_inference.py",
    "commands/export_pt.py": "unit/cli/test_actions.py",
    "commands/ingest.py": "ray/test_ingest.py",
    "commands/phrases.py": "unit/cli/test_actions.py",
    "commands/prepare.py": "ray/test_vitals.py",
    "commands/train/fallback.py": "ray/test_vitals.py",
    "commands/train/pipeline.py": "ray/test_pipeline.py",
    "runtime/inference/parts.py": "ray/test_inference.py",
    "runtime/inference/shards.py": "ray/test_inference.py",
    "runtime/training/placement.py": "ray/test_faults.py",
    "runtime/tuning/launch.py": "ray/test_tune.py",
}
"""What only a cluster, or a whole verb, shows: the file in tests/ that does."""
TOGETHER = {
    "cli/verb.py": "unit/cli/test_verbs.py",
    "commands/benchmark/gpu_models.py": "unit/commands/benchmark/test_gpu.py",
    "commands/benchmark/ranks.py": "unit/commands/benchmark/test_gpu.py",
    "commands/crossval/fold.py": "unit/commands/crossval/test_command.py",
    "commands/evaluate/few_labels.py": "unit/commands/evaluate/test_command.py",
    "commands/evaluate/explain.py": "unit/commands/evaluate/test_command.py",
    "commands/evaluate/written.py": "unit/commands/evaluate/test_command.py",
    "commands/evaluate/other_cohort.py": "unit/commands/evaluate/test_command.py",
    "runtime/inference/embeddings.py": "unit/commands/test_embed.py",
    "runtime/inference/trajectories.py": "unit/commands/evaluate/test_zero_shot.py",
    "config/crossval.py": "unit/commands/crossval/test_plan.py",
    "config/schema.py": "unit/test_registry.py",
    "config/sections.py": "unit/test_experiment.py",
    "config/types.py": "unit/test_experiment.py",
    "evaluation/plotting.py": "unit/evaluation/report/test_figures.py",
    "evaluation/report/content.py": "unit/evaluation/report/test_write.py",
    "events/options.py": "unit/events/test_outcomes.py",
    "events/sample_folder.py": "unit/sources/building/test_statistics.py",
    "events/schema.py": "unit/sources/building/test_cohort.py",
}
"""Parts of a whole, tested with it: the file in tests/ of the module that is made of them."""
WHOLES = {
    "unit/sources/test_damage.py": "damaged input of every source",
    "unit/cli/test_imports.py": "what a command imports before it has something to do",
    "unit/runtime/test_tracking_server.py": "an MLflow server that is slow, away or refuses",
    "unit/families/*/test_training.py": "a family trained until it has learned what is plain",
}
"""Files of tests/unit that belong to no one module, and what they are about."""
REACH = 3
"""Imports from a test file to the module it is listed for, at most. By `main` every verb is
reached: of a verb's story it counts that the file gives that verb."""


@cache
def imported(path: Path) -> set[str]:
    """Return the modules, and names in modules, that a file imports, in functions too."""
    found = set()
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module or ""} | {f"{node.module}.{a.name}" for a in node.names}
    return found


def reached(test: Path) -> set[str]:
    """Return the modules a test file imports, with those they import, `REACH` imports deep.

    What the folder's own `conftest.py` imports makes the file's fixtures.
    """
    fixtures = test.with_name("conftest.py")
    found = new = imported(test) | (imported(fixtures) if (ROOT / fixtures).is_file() else set())
    for _ in range(REACH - 1):
        new = {name for module in new & FILES.keys() for name in imported(FILES[module])} - found
        found = found | new
    return found


def gives_verb(test: Path, inside: str) -> bool:
    """Whether a test file gives `main` the verb whose story a module of commands/ is."""
    folder, _, rest = inside.partition("/")
    verb = rest.partition("/")[0].removesuffix(".py").replace("_", "-")
    given = f'"{verb}"' in (ROOT / test).read_text()
    return folder == "commands" and given and "ehr_ray.cli.main" in imported(test)


def takes_source(test: Path, name: str) -> bool:
    """Whether a test file names the source that a module is, as `ingest` takes it."""
    text = (ROOT / test).read_text()
    return any(module == name and f'"{source}"' in text for source, module in SOURCES.items())


def why_untested(test: Path, inside: str) -> str:
    """Return why a file in tests/ does not test a module; "" where it may."""
    if not (ROOT / test).is_file():
        return f"{test}: no such file"
    if not re.search(r"^ *def test_\w", (ROOT / test).read_text(), re.MULTILINE):
        return f"{test}: has no test"
    name = name_of(Path("ehr_ray", inside))
    if name in reached(test) or gives_verb(test, inside) or takes_source(test, name):
        return ""
    return f"{test}: does not reach {name}"


def mirror_of(inside: str) -> Path:
    """Return where a module's own test file stands."""
    path = Path("tests", "unit", inside)
    return path.with_name(f"test_{path.name}")


def test_every_module_has_its_test_file_or_is_listed_with_the_one_that_tests_it():
    listed = ELSEWHERE | TOGETHER
    known = {str(module.relative_to("ehr_ray")) for module in MODULES}
    has = {inside for inside in known if (ROOT / mirror_of(inside)).is_file()}
    wrong = [f"{mirror_of(inside)}: has one now, off the list" for inside in has & listed.keys()]
    wrong += [f"{inside}: no such module" for inside in listed.keys() - known]
    tests = {inside: mirror_of(inside) for inside in known}
    tests |= {inside: Path("tests", test) for inside, test in listed.items()}
    wrong += filter(None, (why_untested(test, inside) for inside, test in tests.items()))
    assert sorted(wrong) == []


def test_a_file_without_tests_or_of_another_module_would_be_found(tmp_path):
    for text, why in (
        ("", ": has no test"),
        ("from ehr_ray.events.carry import carry_forward", ": has no test"),
        ("def test_x(): pass", ": does not reach ehr_ray.events.carry"),
        ("from ehr_ray.events.carry import carry_forward\ndef test_x(): pass", ""),
        ("from ehr_ray.commands.expand import expand\ndef test_x(): pass", ""),
    ):
        test = tmp_path / f"test_{len(text)}.py"
        test.write_text(text)
        assert why_untested(test, "events/carry.py") == (f"{test}{why}" if why else "")


def test_every_file_of_unit_tests_mirrors_a_module():
    wrong = []
    for path in sorted((ROOT / "tests" / "unit").rglob("test_*.py")):
        inside = path.relative_to(ROOT / "tests")
        if any(inside.match(pattern) for pattern in WHOLES):
            continue
        module = Path("ehr_ray", *inside.parts[1:-1], inside.name.removeprefix("test_"))
        if module not in MODULES:
            wrong.append(f"{inside}: mirrors no module")
    assert wrong == []
