"""`new-family`: the files of a new model family, in a checkout of this repository."""

import ast
import keyword
import re
from collections.abc import Mapping
from pathlib import Path
from string import Template

from ehr_ray.errors import InputError
from ehr_ray.registry import FAMILIES
from ehr_ray.storage import files

PACKAGE = Path(__file__).parents[2]
TEMPLATES = Path(__file__).parent / "templates"
"""A file of a family each, at its place in a checkout; `NAME` in a path is the family's."""
REGISTRY = Path("ehr_ray", "registry.py")
CHECKOUT = (REGISTRY, Path("configs", "tiny"), Path("tests", "contract", "test_family.py"))
"""What a checkout has and an installed package has not."""
LONGEST = 24
"""Letters of a name: lines that hold it stay within the length that ruff allows."""


def new_family(root: Path, name: str) -> list[Path]:
    """Write the files of a family and its line in the registry; return their paths below `root`.

    All of them or none. Raises InputError for a root that is no checkout or not the one that runs,
    and for a name that cannot be one or is taken; ResourcesUnavailableError where the disk refuses.
    """
    _check_place(root)
    _check_name(name)
    texts = {root / path: text for path, text in rendered(name).items()}
    for path in (*texts, root / "ehr_ray" / "families" / name):
        if path.exists():
            raise InputError(f"{path.relative_to(root)}: there already; take another name")
    texts[root / REGISTRY] = _registered((root / REGISTRY).read_text(), name)
    _write_all(texts)
    return [path.relative_to(root) for path in texts]


def rendered(name: str) -> dict[Path, str]:
    """Return the text of each file of a family, by its path in a checkout."""
    found = {}
    for template in sorted(TEMPLATES.rglob("*.tmpl")):
        path = str(template.relative_to(TEMPLATES)).removesuffix(".tmpl").replace("NAME", name)
        found[Path(path)] = Template(template.read_text()).substitute(name=name)
    return found


def _check_place(root: Path) -> None:
    missing = [path for path in CHECKOUT if not (root / path).exists()]
    if missing:
        raise InputError(
            f"{root}: no checkout of ehr_ray, it has no {missing[0]}; give the command at the top "
            "of a clone of the repository"
        )
    if not (root / "ehr_ray").samefile(PACKAGE):
        raise InputError(
            f"{root}: a checkout, but the ehr_ray that runs is {PACKAGE}; run `pip install -e .` "
            "here first"
        )


def _check_name(name: str) -> None:
    if not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", name) or keyword.iskeyword(name):
        raise InputError(f"{name}: no name of a family; use small letters, digits and single _")
    if not 3 <= len(name) <= LONGEST:
        raise InputError(f"{name}: no name of a family; use 3 to {LONGEST} letters")
    if name in FAMILIES:
        raise InputError(f"{name}: a family of this name is there; take another name")
    if place := _text_with(name):
        raise InputError(
            f"{name}: a word of {place}, which a contract test would take for the family; take "
            f"another name, as {name[: LONGEST - 6]}_model"
        )


def _text_with(name: str) -> str | None:
    """Return where a text of the code outside families/ has a word: `ehr_ray/x.py:7`.

    `tests/contract/test_layers.py` lets no code but a family's own name it.
    """
    word = re.compile(rf"(?<!new-family )(?<![/\w]){name}(?!\w)", re.IGNORECASE)
    for path in sorted(PACKAGE.rglob("*.py")):
        inside = path.relative_to(PACKAGE.parent)
        if inside == REGISTRY or "families" in inside.parts:
            continue
        text = path.read_text()
        if not word.search(text):
            continue
        nodes = list(ast.walk(ast.parse(text)))
        docstrings = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
        for node in nodes:
            if not isinstance(node, ast.Constant) or id(node) in docstrings:
                continue
            if isinstance(node.value, str) and word.search(node.value):
                return f"{inside}:{node.lineno}"
    return None


def _registered(text: str, name: str) -> str:
    """Return the text of the registry with the family's line at the end of `FAMILIES`."""
    start = text.find("FAMILIES = {\n")
    end = text.find("\n}\n", start)
    if start < 0 or end < 0:
        raise InputError(f"{REGISTRY}: no `FAMILIES = {{` with a line for each family; restore it")
    line = f'    "{name}": "{PACKAGE.name}.families.{name}",\n'
    return text[: end + 1] + line + text[end + 1 :]


def _write_all(texts: Mapping[Path, str]) -> None:
    """Write files, the last of which may exist; take back what was written where one fails."""
    made: list[Path] = []
    try:
        for path, text in texts.items():
            made += [folder for folder in reversed(path.parents) if not folder.exists()]
            made += [] if path.exists() else [path]
            files.write_text(path, text)
    except BaseException:
        for path in reversed(made):
            if path.is_dir():
                path.rmdir()
            else:
                path.unlink(missing_ok=True)
        raise
