"""tests/unit mirrors the package path for path; what it lacks is listed, with the file instead."""

import ast
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
MODULES = sorted(
    path.relative_to(ROOT)
    for path in (ROOT / "ehr_ray").rglob("*.py")
    if path.name != "__init__.py"  # near-empty
    and path.parts[-1] != "family.py"  # records: contract/test_family.py and test_record.py
)
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
    "commands/quickstart.py": "jobs/test_readme.py",
    "commands/train/fallback.py": "ray/test_vitals.py",
    "commands/train/pipeline.py": "ray/test_pipeline.py",
    "runtime/inference/parts.py": "ray/test_inference.py",
    "runtime/inference/shards.py": "ray/test_inference.py",
    "runtime/training/placement.py": "ray/test_faults.py",
    "runtime/tuning/launch.py": "ray/test_tune.py",
}
"""What only a cluster, or a whole verb, shows: the file in tests/ that does."""
TOGETHER = {
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
    """Return the modules a test file imports, with those they import, `REACH` imports deep."""
    files = {".".join(path.with_suffix("").parts): path for path in MODULES}
    found = new = imported(test)
    for _ in range(REACH - 1):
        new = {name for module in new & files.keys() for name in imported(files[module])} - found
        found = found | new
    return found


def gives_verb(test: Path, inside: str) -> bool:
    """Whether a test file gives `main` the verb whose story a module of commands/ is."""
    folder, _, rest = inside.partition("/")
    verb = rest.partition("/")[0].removesuffix(".py").replace("_", "-")
    given = f'"{verb}"' in (ROOT / test).read_text()
    return folder == "commands" and given and "ehr_ray.cli.main" in imported(test)


def test_every_module_has_its_test_file_or_is_listed_with_the_one_that_tests_it():
    listed = ELSEWHERE | TOGETHER
    wrong = []
    for module in MODULES:
        inside = str(module.relative_to("ehr_ray"))
        mirrored = Path("tests", "unit", inside).with_name(f"test_{module.name}")
        has = (ROOT / mirrored).is_file()
        if has == (inside in listed):
            wrong.append(f"{mirrored}: {'has one now, off the list' if has else 'write it'}")
    known = {str(module.relative_to("ehr_ray")) for module in MODULES}
    wrong += [f"{inside}: no such module" for inside in listed.keys() - known]
    assert wrong == []


def test_what_is_listed_is_imported_by_the_file_that_tests_it():
    wrong = []
    for inside, test in (ELSEWHERE | TOGETHER).items():
        path = Path("tests", test)
        name = ".".join(Path("ehr_ray", inside).with_suffix("").parts)
        if not (ROOT / path).is_file():
            wrong.append(f"{path}: no such file")
        elif inside == "commands/quickstart.py":
            # The file runs what README.md has, and README.md begins with this.
            if "ehr-ray quickstart" not in (ROOT / "README.md").read_text():
                wrong.append("README.md: no quickstart")
        elif name not in reached(path) and not gives_verb(path, inside):
            wrong.append(f"{path}: does not reach {name}")
    assert wrong == []


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
