"""What is written to a copy and pushed is kept from any fetch between both."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[2]
OF_A_RUN = "whoever fetches leaves what lies below a run that another process holds"
OF_A_JOB = "a folder of this command alone, whose files no job fetches before all are sent"
HELD_OTHERWISE = {
    "runtime/training/sending.py:finish": OF_A_RUN,
    "runtime/training/sending.py:_push": OF_A_RUN,
    "runtime/training/ranking.py:report": OF_A_RUN,
    "commands/train/command.py:_train": OF_A_RUN,
    "storage/runs.py:push_run": OF_A_RUN,
    "commands/train/command.py:_tell": OF_A_RUN,
    "runtime/data/mapped.py:mapped_cohort": OF_A_JOB,
    "runtime/data/mapped.py:__call__": OF_A_JOB,
    "runtime/data/manifest.py:_fitted": OF_A_JOB,
    "runtime/data/manifest.py:__call__": OF_A_JOB,
    "sources/dataset_check.py:_keyed": OF_A_JOB,
    "sources/building/sharing.py:share": "staging of an ingest, which a lease holds",
    "sources/building/sharing.py:publish": "a cohort of an ingest, which a lease holds",
}
"""Pushes outside a block of `copies.unsent`, and why."""


def pushes(node, function="", *, is_kept=False):
    """Yield of each `sync.push` in a tree the function, and whether `unsent` keeps its block."""
    if isinstance(node, ast.FunctionDef):
        function, is_kept = node.name, False
    if isinstance(node, ast.With):
        is_kept |= any("copies.unsent(" in ast.unparse(item) for item in node.items)
    if isinstance(node, ast.Call) and ast.unparse(node.func) == "sync.push":
        yield function, is_kept
    for child in ast.iter_child_nodes(node):
        yield from pushes(child, function, is_kept=is_kept)


def test_what_is_pushed_is_written_where_no_fetch_can_come_between():
    bare = set()
    for path in (ROOT / "ehr_ray").rglob("*.py"):
        for function, is_kept in pushes(ast.parse(path.read_text())):
            if not is_kept:
                bare.add(f"{path.relative_to(ROOT / 'ehr_ray').as_posix()}:{function}")
    assert bare == {*HELD_OTHERWISE}
