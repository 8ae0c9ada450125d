"""What is wrong with a config, in one line for each value: its dotted path, itself, the remedy."""

import dataclasses
import difflib
import math
import re
import types
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, Union, get_args, get_origin, get_type_hints

from ehr_ray.config.schedules import Schedule

MAX_DEPTH: Final = 20

SCHEDULES: Final = {
    get_args(get_type_hints(kind)["kind"])[0]: [f.name for f in dataclasses.fields(kind)]
    for kind in get_args(Schedule)
}
"""The fields of each kind of schedule, for the remedy of an unknown one."""


def message(kind: type, item: Any, at: str) -> str:
    """Return a line about one entry of `ValidationError.errors()` of `kind`, a section at `at`."""
    location = [str(part) for part in item["loc"]]
    if "schedules" in location and len(location) > 2:
        location.pop(2)  # the discriminator's tag is no part of the path
    # What pydantic calls the branch of a union, as in `literal['none']`, is no part either.
    plain = [part for part in location if re.fullmatch(r"[\w*\\.]+", part)]
    location = [*plain, location[-1]] if location[-1:] != plain[-1:] and not plain else plain
    path = _joined(at, location)
    if item["type"] == "unexpected_keyword_argument":
        tag = item["loc"][2] if location[0] == "schedules" else None
        known = SCHEDULES.get(tag) or _fields_at(kind, location[:-1])
        return unknown(path, location[-1], known)
    for field in (location, location[:-1]):
        if example := _fixed_example(kind, field):
            wrong = "" if len(field) < len(location) else f" (got {item['input']!r})"
            if not wrong and item["type"] != "missing":
                break  # an entry of the list that is wrong in itself
            return f"{_joined(at, field)}: must be a list of {len(example)}, as in {example}{wrong}"
    if item["type"] in ("missing", "missing_argument"):
        return f"{path}: missing; give it in the YAML or as {path}=..."
    if item["type"] == "tuple_type":
        return f"{path}: must be a list, as in [{item['input']}]"
    pattern = item.get("ctx", {}).get("pattern", "")
    if pattern.startswith("^[A-Za-z0-9][A-Za-z0-9"):
        dot = ", ." if "._" in pattern else ""
        return (
            f"{path}: must be of letters A to Z or a to z, digits, _, -{dot}, and begin with a "
            f"letter or digit (got {item['input']!r})"
        )
    text = re.sub(r"^Value error, ", "", item["msg"])
    text += ", as in {key: value}" if item["type"] == "dict_type" else ""
    # What a section's own check says names its values; the whole section would only bury it.
    whole = isinstance(item["input"], Mapping) and item["type"] == "value_error"
    got = "" if whole else f" (got {item['input']!r})"
    if whole and text.split(" ", 1)[0] in _fields_at(kind, location):
        return f"{_joined(path, [text])}{got}"  # it begins with the field it is about
    return f"{path}: {text[0].lower()}{text[1:]}{got}"


def unknown(path: str, key: str, known: Iterable[str]) -> str:
    """Return a line about a key that is none, with the nearest of the known ones."""
    close = difflib.get_close_matches(key, list(known), 1)
    hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(known)}"
    return f"{path}: unknown key; {hint}"


def not_names(value: Any, at: str = "", depth: int = 0) -> Iterator[str]:
    """Yield a line for each key of nested mappings that is no text; YAML has numbers and dates."""
    if depth > MAX_DEPTH:
        yield f"{at[:40]}...: nested more than {MAX_DEPTH} deep; a config is not"
    elif isinstance(value, Mapping):
        for key, child in value.items():
            if isinstance(key, str) and key.strip():
                yield from not_names(child, _joined(at, [key]), depth + 1)
            else:
                yield f"{_joined(at, [repr(key)])}: a key must be text, as in `lr: 0.001`"
    elif isinstance(value, (list, tuple)):
        for index, child in enumerate(value):
            yield from not_names(child, _joined(at, [str(index)]), depth + 1)


def not_finite(value: Any, at: str = "") -> Iterator[str]:
    """Yield a line for each number in plain data that is infinite or none at all."""
    if isinstance(value, Mapping):
        for key, child in value.items():
            yield from not_finite(child, _joined(at, [str(key)]))
    elif isinstance(value, (list, tuple)):
        for index, child in enumerate(value):
            yield from not_finite(child, _joined(at, [str(index)]))
    elif isinstance(value, float) and not math.isfinite(value):
        yield f"{at}: must be a finite number (got {value})"


def outside(
    schedules: Mapping[str, Schedule], limits: Mapping[str, tuple[float, float]]
) -> Iterator[str]:
    """Yield a line for each value a schedule reaches that is not within its family's limits."""
    for name, (low, high) in limits.items():
        for end in ("value", "start", "end"):
            value = getattr(schedules.get(name), end, low)
            if not low <= value <= high:
                path = f"schedules.{name}" + ("" if end == "value" else f".{end}")
                yield f"{path}: must be between {low:g} and {high:g} (got {value:g})"


def _joined(at: str, location: list[str]) -> str:
    return ".".join(([at] if at else []) + location)


def _fields_at(kind: Any, location: list[str]) -> list[str]:
    for part in location:
        kind = _hint(kind, part)
        kind = next((a for a in get_args(kind) if dataclasses.is_dataclass(a)), kind)
    return [f.name for f in dataclasses.fields(kind)] if dataclasses.is_dataclass(kind) else []


def _fixed_example(kind: Any, location: list[str]) -> list[Any]:
    """Return the default of a field whose list has a fixed length; [] for any other."""
    if not location:
        return []
    for part in location[:-1]:
        kind = _hint(kind, part)
    hint, defaults = _hint(kind, location[-1]), getattr(kind, "__dataclass_fields__", {})
    options = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    for option in options:
        if get_origin(option) is tuple and Ellipsis not in get_args(option):
            default = defaults[location[-1]].default
            return list(default) if isinstance(default, tuple) else []
    return []


def _hint(kind: Any, name: str) -> Any:
    return get_type_hints(kind).get(name) if dataclasses.is_dataclass(kind) else None
