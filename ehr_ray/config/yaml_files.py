"""YAML files as plain data: read, override, compare."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from ehr_ray.config.messages import not_names
from ehr_ray.errors import ConfigError

Raw = dict[str, Any]


class _Loader(yaml.SafeLoader):
    """YAML's safe loader, which would silently take the last of two values of one key."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        """Return the mapping; ConstructorError where a key is given twice."""
        seen: set[str] = set()
        for key, _ in node.value:
            name = str(key.value) if isinstance(key, yaml.ScalarNode) else None
            if name in seen and name != "<<":
                raise yaml.constructor.ConstructorError(
                    None, None, f"{name} is given twice", key.start_mark
                )
            seen |= {name} if name is not None else set()
        return super().construct_mapping(node, deep)


def read_yaml(path: str | Path) -> Raw:
    """Return the mapping in a YAML file."""
    try:
        raw = _Loader(Path(path).read_text()).get_single_data()
    except FileNotFoundError as error:
        here = "" if Path(path).is_absolute() else f" in {Path.cwd()}"
        raise ConfigError(
            f"{path}: no such config{here}; examples are in configs/ of the repository"
        ) from error
    except IsADirectoryError as error:
        raise ConfigError(f"{path}: is a folder; name a YAML file, such as one in it") from error
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split()).replace('in "<unicode string>", ', "at ")
        raise ConfigError(f"{path}: not readable YAML: {reason}") from error
    if raw is None:
        raise ConfigError(f"{path}: is empty; see configs/ for examples")
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: expected `key: value` lines, got {type(raw).__name__}")
    if bad := list(not_names(raw)):
        raise ConfigError(f"{path}: {'; '.join(bad[:4])}")
    return raw


def parse_override(text: str) -> tuple[str, Any]:
    """Split `a.b=value` into its path and its value, read as YAML."""
    path, equals, value = text.partition("=")
    if not equals or not path:
        raise ConfigError(f"{text}: not an override; write key=value, as in train.lr=0.001")
    try:
        return path, _Loader(value).get_single_data()
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        raise ConfigError(f"{path!r}: value {value[:80]!r} is not YAML") from error


def override(raw: Mapping[str, Any], changes: Mapping[str, Any]) -> Raw:
    """Return a copy with the value at each dotted path replaced."""
    result = _copy(raw)
    for path, value in changes.items():
        node = result
        *parents, last = path.split(".")
        for key in parents:
            child = node.get(key)
            if child is None:
                child = node[key] = {}
            if not isinstance(child, dict):
                raise ConfigError(f"{path}: {key} is a value here, not a section")
            node = child
        node[last] = value
    return result


def differences(old: Mapping[str, Any], new: Mapping[str, Any], at: str = "") -> Iterator[str]:
    """Yield `path: old -> new` for every value two dumps do not share."""
    for key in sorted({*old, *new}):
        a, b, path = old.get(key), new.get(key), f"{at}{key}"
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            yield from differences(a, b, f"{path}.")
        elif a != b:
            told = ["null" if value is None else str(value) for value in (a, b)]
            yield (
                f"{path}: {' -> '.join(told)}"
                if key in old and key in new
                else (f"{path}: new, {told[1]}" if key in new else f"{path}: gone, was {told[0]}")
            )


def _copy(raw: Mapping[str, Any]) -> Raw:
    return {k: _copy(v) if isinstance(v, Mapping) else v for k, v in raw.items()}
