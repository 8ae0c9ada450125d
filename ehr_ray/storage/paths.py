"""Places of data: paths, and URIs of object stores with the copy of each on this machine.

`s3://bucket/runs/a` has its copy at `<staging>/s3/bucket/runs/a`, so either is found from the other
and the code between works on paths alone. What is copied, and when, is `runtime/storage.py`'s.
"""

import os
import re
from pathlib import Path
from typing import Final

from ehr_ray.errors import InputError

STAGING: Final = "EHR_RAY_STAGING"
"""Environment variable: folder of the copies; default is the user's cache folder."""
_URI: Final = re.compile(r"([a-z][a-z0-9+.-]*)://([^/?#]*)(/[^?#]*)?(?:\?([^#]*))?")
_SECRETS: Final = ("access_key", "secret", "session_token", "password")


def is_uri(place: str | Path) -> bool:
    """Whether a place is a URI; `file://` is one too, and is copied like any other."""
    return isinstance(place, str) and "://" in place


def staging() -> Path:
    """Return the folder of the copies on this machine."""
    if given := os.environ.get(STAGING):
        return Path(given).absolute()
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache).absolute() / "ehr_ray" / "staging"


def parts_of(uri: str) -> tuple[str, str, str, str]:
    """Return scheme, bucket (or host), path without slashes at its ends, and options of a URI.

    Raises InputError for what is no URI, leads out of its folder, or carries credentials: it
    would end in configs, logs and MLflow.
    """
    match = _URI.fullmatch(uri)
    if match is None:
        raise InputError(f"{_masked(uri)}: not a URI; write it as in s3://bucket/folder")
    scheme, bucket, path, options = (part or "" for part in match.groups())
    if "@" in bucket or any(name in options.lower() for name in _SECRETS):
        raise InputError(
            f"{_masked(uri)}: holds credentials; give them in the environment instead, such as "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )
    names = [name for name in path.split("/") if name]
    if ".." in names or "." in names:
        raise InputError(f"{uri}: . and .. have no meaning in a store; write the whole path")
    return scheme, bucket, "/".join(names), options


def local(place: str | Path) -> Path:
    """Return where a place lies on this machine: the copy of a URI, else the path itself."""
    if not is_uri(place):
        return Path(place)
    scheme, bucket, path, options = parts_of(str(place))
    root = f"{bucket},{options}" if options else bucket or ","
    return staging() / scheme / root / path


def uri_of(place: str | Path) -> str | None:
    """Return the URI of a place: its own, or the one it is the copy of; None for other paths."""
    if is_uri(place):
        parts_of(str(place))
        return str(place)
    try:
        names = Path(place).absolute().relative_to(staging()).parts
    except ValueError:
        return None
    if len(names) < 2:
        return None
    bucket, _, options = names[1].partition(",")
    path = "/".join(names[2:])
    return f"{names[0]}://{bucket}/{path}{'?' if options else ''}{options}"


def named(place: str | Path) -> str:
    """Return the name by which every machine finds a place: its URI if it has one."""
    return uri_of(place) or str(place)


def absolute(place: str | Path) -> str:
    """Return the name of a place that also holds in another working folder."""
    return uri_of(place) or str(Path(place).absolute())


def below(place: str | Path, *names: str) -> str:
    """Return the place of a name in a folder."""
    if not is_uri(place):
        return str(Path(place, *names))
    scheme, bucket, path, options = parts_of(str(place))
    path = "/".join([*([path] if path else []), *names])
    return f"{scheme}://{bucket}/{path}{'?' if options else ''}{options}"


def spoken(text: str) -> str:
    """Return a message with places named as a user would type them here.

    Paths of copies are replaced by their URIs, and those in the working folder by relative ones.
    """
    root, here = (re.escape(str(folder)) for folder in (staging(), Path.cwd()))
    copies = re.compile(root + r"/[^\s;'\")]*[^\s;'\"):,.]")
    text = copies.sub(lambda match: named(match.group()), text)
    return re.sub(rf"(?<![\w./~-]){here}/(?=[^\s/])", "", text)


def location(text: str) -> str | Path:
    """Return what a word of the command line names: a URI as it is, else an absolute path."""
    return text if is_uri(text) else Path(text).absolute()


def _masked(uri: str) -> str:
    scheme, _, rest = uri.partition("://")
    return f"{scheme}://...{rest.partition('?')[0].rpartition('@')[2]}" if rest else "..."
