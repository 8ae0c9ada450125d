"""Locations of data: paths, and URIs of object stores with the copy of each on this machine.

`s3://bucket/runs/a` has its copy at `<staging>/s3/bucket/runs/a`, so either is found from the other
and the code between works on paths alone. Options are part of a folder's name, percent-encoded:
every copy lies inside the staging folder, and no two URIs share one. What is copied, and when, is
for `sync.py` to say.
"""

import os
import re
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Final
from urllib.parse import quote, unquote

from ehr_ray.errors import InputError, RunError

STAGING: Final = "EHR_RAY_STAGING"
"""Environment variable: folder of the copies; default is the user's cache folder."""
PARTS: Final = ".parts"
"""In a run: what `evaluate` makes on its way; the one folder there that no training writes to."""
OUTLINE: Final = ".outline"
"""In the folder of copies: stand-ins of files of URIs, which `sync.outline` makes."""
_URI: Final = re.compile(r"([a-z][a-z0-9+.-]*)://([^/?#]*)(/[^?#]*)?(?:\?([^#]*))?")
_BUCKET: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,221}")
"""What S3 and Google Cloud Storage take together."""
_LONGEST: Final = 255
"""Bytes of a name in a folder, as filesystems have it."""
COHORT_FOLDERS: Final = ("data", "metadata", "labels")
"""Folders in which all files of a cohort lie: what stands beside them is not its own."""
GIVE_A_RUN: Final = "give the folder of a run that has been trained"
_CHECKPOINTS: Final = ("checkpoint", ".checkpoint.old", "model.safetensors")
"""What a run, the one before a checkpoint was replaced, and a checkpoint or a model have."""
_SECRETS: Final = ("access_key", "secret", "session_token", "password")


def is_uri(location: str | Path) -> bool:
    """Whether a location is a URI; `file://` is one too, and is copied like any other."""
    return isinstance(location, str) and "://" in location


def staging() -> Path:
    """Return the folder of the copies on this machine."""
    names = (STAGING, "XDG_CACHE_HOME", "HOME")
    return _staging(*map(os.environ.get, names)).absolute()


# The home is there to be a key: `Path.home` reads it.
@lru_cache(maxsize=4)
def _staging(given: str | None, cache: str | None, _home: str | None) -> Path:
    """Return it by what the environment says: it is asked for once a shard, and more."""
    if given:
        return Path(given)
    return Path(cache or Path.home() / ".cache") / "ehr_ray" / "staging"


def parts_of(uri: str) -> tuple[str, str, str, str]:
    """Return scheme, bucket (or host), path without slashes at its ends, and options of a URI.

    Raises InputError for what is no URI, leads out of its folder, or carries credentials: it
    would end in configs, logs and MLflow.
    """
    match = _URI.fullmatch(uri)
    if match is None or not uri.isprintable():
        raise InputError(f"{_masked(uri)!r}: not a URI; write it as in s3://bucket/folder")
    scheme, bucket, path, options = (part or "" for part in match.groups())
    if "@" in bucket or any(name in unquote(options).lower() for name in _SECRETS):
        raise InputError(
            f"{_masked(uri)}: holds credentials; give them in the environment instead, such as "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )
    if scheme == "file" and bucket:
        raise InputError(f"{uri}: names a host; write the whole path, as in file:///{bucket}{path}")
    if scheme != "file" and not _BUCKET.fullmatch(bucket):
        raise InputError(f"{uri}: {bucket!r} is no name of a bucket; write s3://bucket/folder")
    names = [name for name in path.split("/") if name]
    if ".." in names or "." in names:
        raise InputError(f"{uri}: . and .. have no meaning in a store; write the whole path")
    if any(len(name.encode()) > _LONGEST for name in [*names, _root(bucket, options)]):
        raise InputError(f"{uri}: a name in it is longer than {_LONGEST} bytes; shorten it")
    return scheme, bucket, "/".join(names), options


def local(location: str | Path) -> Path:
    """Return where a location lies on this machine: the copy of a URI, else the path itself."""
    if not is_uri(location):
        return Path(location)
    scheme, bucket, path, options = parts_of(str(location))
    return staging() / scheme / _root(bucket, options) / path


def outlined(uri: str) -> Path:
    """Return where the stand-in of a file or folder of a store lies on this machine."""
    return staging() / OUTLINE / local(uri).relative_to(staging())


def is_outlined(location: str | Path) -> bool:
    """Whether a path is of a stand-in, which holds nothing of its file."""
    return not is_uri(location) and Path(location).absolute().is_relative_to(staging() / OUTLINE)


def uri_of(location: str | Path) -> str | None:
    """Return the URI of a location, None for other paths.

    That is its own, or the one that it is the copy or the stand-in of.
    """
    if is_uri(location):
        parts_of(str(location))
        return str(location)
    path = location if isinstance(location, Path) else Path(location)
    path, copies = path.absolute(), staging()
    if not str(path).startswith(str(copies)):  # most, of which nothing more is made
        return None
    try:
        parts = path.relative_to(copies).parts
        if parts[:1] == (OUTLINE,):
            parts = parts[1:]
            path = copies.joinpath(*parts)
        scheme, root, *names = parts
    except ValueError:
        return None
    bucket, _, options = root.partition(",")
    uri = _written(scheme, bucket, "/".join(names), unquote(options))
    try:
        return uri if local(uri) == path else None  # what only lies there has no URI
    except InputError:
        return None


def uri_above(path: str | Path) -> tuple[str | None, str]:
    """Return the URI of the next folder above a path that has one, and the path's name below it.

    Names with # or ? are in no URI. None, and the whole path, where no folder has one.
    """
    path = Path(path)
    for folder in path.parents:
        if uri := uri_of(folder):
            return uri, path.relative_to(folder).as_posix()
    return None, str(path)


def inside(path: Path) -> Path:
    """Return a path to be written or removed; RunError unless it lies in the staging folder.

    Links are followed, but not the last name's: that is replaced or removed itself.
    """
    root = staging().resolve()
    if path.name == ".." or not path.parent.resolve().is_relative_to(root):
        raise RunError(
            f"{path}: leads out of {root}, the folder of copies; remove the link in it, or name "
            f"another folder by {STAGING}"
        )
    return path


def canonical(location: str | Path) -> str:
    """Return the one name by which every machine finds a location: its URI if it has one."""
    return uri_of(location) or str(location)


def written(location: str | Path) -> str:
    """Return `canonical` of a file to be written; InputError for a name that no URI can have.

    It would stay on this machine, and its store would lack it without a word.
    """
    uri = uri_of(location)
    if uri is None and not is_uri(location) and (above := uri_above(location))[0] is not None:
        raise InputError(
            f"{above[0]}: no name in a store may hold ? or #, as {above[1]} does; rename what it "
            "is made of, or give a folder"
        )
    return uri or str(location)


def canonicals(locations: Iterable[str | Path]) -> list[str]:
    """Return `canonical` of many paths, at the cost of strings where their folders are no copies.

    Whether one is, is asked once a folder.
    """
    copies: dict[str, bool] = {}
    found = []
    for path in locations:
        text = str(path)
        folder = os.path.dirname(text)
        if folder not in copies:
            copies[folder] = uri_of(Path(folder, "file")) is not None
        found.append(canonical(path) if copies[folder] else text)
    return found


def absolute(location: str | Path) -> str:
    """Return the name of a location that also holds in another working folder."""
    return uri_of(location) or str(Path(location).absolute())


def join(location: str | Path, *names: str) -> str:
    """Return the location of a name in a folder."""
    if not is_uri(location):
        return str(Path(location, *names))
    scheme, bucket, path, options = parts_of(str(location))
    uri = _written(scheme, bucket, "/".join([*([path] if path else []), *names]), options)
    if parts_of(uri)[3] != options:
        raise InputError(f"{uri}: no name in a store may hold ? or #; choose another")
    return uri


def with_uris(text: str) -> str:
    """Return a message with locations named as a user would type them here.

    Paths of copies are replaced by their URIs, and those in the working folder by relative ones.
    """
    copies = re.compile(re.escape(str(staging())) + r"/[^\s;'\")]*[^\s;'\"):,.]")
    text = copies.sub(lambda match: canonical(match.group()), text)
    if (here := working_folder()) is None:
        return text
    return re.sub(rf"(?<![\w./~-]){re.escape(str(here))}/(?=[^\s/])", "", text)


def working_folder() -> Path | None:
    """Return the folder that a command is given in; None where it was removed meanwhile."""
    try:
        return Path.cwd()
    except FileNotFoundError:
        return None


def location(text: str) -> str | Path:
    """Return what a word of the command line names: a URI as it is, else an absolute path."""
    return text if is_uri(text) else Path(text).absolute()


def check_folder(given: str | Path, option: str, remedy: str) -> None:
    """Raise InputError where a folder that a command reads is not there; of a URI its store says.

    Commands ask it of what was fetched, and the command line before it imports them.
    """
    if not is_uri(given) and not Path(given).is_dir():
        what = "is a file, where a folder is wanted" if Path(given).exists() else "no such folder"
        raise InputError(f"{option}{given}: {what}; {remedy}")


def check_output(given: str | Path, option: str, *, file: bool = False) -> None:
    """Raise InputError where a folder, or a `file`, that a command writes cannot be.

    That is where the path is the other of both, or one of its parents is a file. Commands ask it
    before they begin, and the command line before it imports them; of a URI its store says.
    """
    if is_uri(given):
        return
    path = Path(given).absolute()
    if file and os.path.isdir(path):
        raise InputError(f"{option}{given}: is a folder; name a file")
    if not file and os.path.lexists(path) and not os.path.isdir(path):
        raise InputError(f"{option}{given}: is a file; name a folder")
    parent = next(one for one in path.parents if os.path.lexists(one))
    if not os.path.isdir(parent):
        raise InputError(f"{option}{given}: {parent} is a file; name a place in a folder")


def is_vacant(folder: Path) -> bool:
    """Whether a folder is not there, or has but hidden names: what a killed command had begun."""
    return not folder.is_dir() or all(path.name.startswith(".") for path in folder.iterdir())


def check_cohort_folder(given: str | Path, option: str = "data.cohort=") -> None:
    """`check_folder` of a cohort."""
    check_folder(given, option, "make it with `ehr-ray ingest`")


def check_run_folder(given: str | Path) -> None:
    """Raise InputError where the run that a command reads is not there; of a URI its store says.

    Nor is it where a folder has no part of a checkpoint; whether one is whole is told by reading.
    """
    if is_uri(given):
        return
    folder = Path(given)
    if not folder.exists():
        raise InputError(f"{given}: no such folder, so no checkpoint here; {GIVE_A_RUN}")
    if folder.is_dir() and not any((folder / name).exists() for name in _CHECKPOINTS):
        raise InputError(f"{given}: no checkpoint here; {GIVE_A_RUN}")


def _written(scheme: str, bucket: str, path: str, options: str) -> str:
    return f"{scheme}://{bucket}/{path}{'?' if options else ''}{options}"


def _root(bucket: str, options: str) -> str:
    """Return the folder of a bucket's copies; only options follow a comma, which no bucket has."""
    return f"{bucket},{quote(options, safe='=&:')}" if options else bucket or ","


def _masked(uri: str) -> str:
    scheme, _, rest = uri.partition("://")
    return f"{scheme}://...{rest.partition('?')[0].rpartition('@')[2]}" if rest else "..."
