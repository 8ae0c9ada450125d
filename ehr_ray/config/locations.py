"""Paths in a config: told from other text by the type of their field, made absolute by it.

A relative path means the folder the command was given in, which neither Ray's workers nor a later
command share. So `config.load` makes every value of these types absolute, once.
"""

import os
import re
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from functools import partial
from typing import Annotated, Any, Final

from ehr_ray.events.hashed_text import HASHING
from ehr_ray.storage.paths import absolute, is_uri

_JOB_COPY = re.compile(r".*/working_dir_files/[^/]+/")
_NO_NAME = re.compile(r"[./~]|.*/.*/")
_TRACKING_NAME = re.compile(r"(databricks|databricks-uc|uc)$|[a-z][a-z0-9+.-]*:", re.IGNORECASE)


def _model(name: str) -> str:
    """Return a model's folder as an absolute path, or its name as it is."""
    if name != HASHING and not is_uri(name) and (_NO_NAME.match(name) or os.path.isdir(name)):
        return absolute(name)
    return name


def absolute_uri(uri: str) -> str:
    """Return MLflow's URI as it is; a path, with or without `file:`, as an absolute one."""
    path = uri.removeprefix("file:")
    if path != uri and not path.startswith("/"):
        return absolute(path)
    return uri if _TRACKING_NAME.match(uri) else absolute(uri)


@dataclass(frozen=True)
class Mark:
    """Marks the type of a field that holds a path."""

    absolute: Callable[[str], str]
    """The same place, named so that it holds in another working folder; itself if it does."""


Location = Annotated[str, Mark(absolute)]
"""A path or a URI."""
ModelName = Annotated[str, Mark(_model)]
"""The folder of a sentence transformer, or the name of one.

It is a folder where there is one of that name in the working folder, and where it cannot be a name:
it begins with `.`, `/` or `~`, or has more than one slash.
"""
TrackingURI = Annotated[str, Mark(absolute_uri)]
"""What MLflow calls a tracking URI: a path, a URI, or `databricks`."""
Marks = Mapping[str, Mark]
"""Dotted config path to the mark of its field."""


VARIANTS: Final = "crossval.variants."
"""Where a config's variants stand, by name."""


def marks_of(kind: type, at: str = "") -> Iterator[tuple[str, Mark]]:
    """Yield (dotted path, mark) of every field of a config's dataclass that holds paths."""
    hints = typing.get_type_hints(kind, include_extras=True)
    for field in fields(kind):
        for part in parts_of_hint(hints[field.name]):
            if isinstance(part, Mark):
                yield f"{at}{field.name}", part
            elif isinstance(part, type) and is_dataclass(part):
                yield from marks_of(part, f"{at}{field.name}.")


def parts_of_hint(hint: Any) -> Iterator[Any]:
    """Yield the types a hint is made of, and what they are annotated with."""
    inner = () if typing.get_origin(hint) is typing.Literal else typing.get_args(hint)
    if not inner:
        yield hint
    for part in inner:
        yield from parts_of_hint(part)


def located(
    plain: Mapping[str, Any],
    marks: Marks,
    change: Callable[[str, Mark], str] = lambda text, mark: mark.absolute(text),
) -> dict[str, Any]:
    """Return a config as plain data with every path absolute, also in a search and in variants."""
    return _located(plain, marks, change, "", searching=False)


def _located(plain: Any, marks: Marks, change: Any, at: str, *, searching: bool) -> dict[str, Any]:
    result = {}
    own_keys = {"search", *(f"{VARIANTS}{key}" for key in plain if at == VARIANTS)}
    for key, value in plain.items():
        path, mark = f"{at}{key}", marks.get(f"{at}{key}")
        if mark is not None and not (searching and isinstance(value, str)):  # `default`
            result[key] = _each(value, partial(change, mark=mark))
        elif isinstance(value, Mapping):
            # Keys of a search, and of each variant, are paths of the config themselves.
            own = path in own_keys
            inner, within = (path == "search", "") if own else (searching, f"{path}.")
            result[key] = _located(value, marks, change, within, searching=inner)
        else:
            result[key] = value
    return result


def _each(value: Any, change: Callable[[str], str]) -> Any:
    """Return a value, or a list or mapping of some, with each text changed; "" is no path."""
    if isinstance(value, str):
        return change(value) if value else value
    if isinstance(value, (list, tuple)):
        return [_each(part, change) for part in value]
    if isinstance(value, Mapping):
        return {key: _each(part, change) for key, part in value.items()}
    return value


def same_place(text: str, mark: Mark) -> str:
    """Return the one name of a place that several paths lead to, links followed.

    A job has a copy of its working folder (`ray job submit --working-dir`), another one each time
    it is submitted; a place in it is the one of that name in any of them.
    """
    name = mark.absolute(text)
    return _JOB_COPY.sub("", os.path.realpath(name)) if os.path.isabs(name) else name
