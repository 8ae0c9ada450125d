"""The object stores that URIs name: how they are reached, and what they say when they refuse."""

import contextlib
import functools
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.fs as pafs

from ehr_ray.errors import AwayError, InputError, MissingError, StoreUnavailableError
from ehr_ray.storage.paths import parts_of, staging, uri_of

GOOGLE: Final = ("gs", "gcs")
SCHEMES: Final = ("s3", *GOOGLE, "file")
GOOGLE_SECONDS: Final = 60
"""How long Google's library asks a store that does not answer; a quarter of an hour by itself."""


def filesystem(uri: str) -> tuple[Any, str]:
    """Return the filesystem of a URI, and its path there."""
    scheme, bucket, path, options = parts_of(uri)
    if scheme not in SCHEMES:
        raise InputError(f"{uri}: no storage of this kind; use {', '.join(SCHEMES)} or a path")
    if scheme == "s3":
        options = endpoint(options)
    if scheme in GOOGLE and "retry_limit_seconds" not in options:
        options += f"{'&' if options else ''}retry_limit_seconds={GOOGLE_SECONDS}"
    store, root = _connected(f"{scheme}://{bucket}", options)
    return store, f"/{path}" if scheme == "file" else f"{root}/{path}".rstrip("/")


def endpoint(options: str) -> str:
    """Add to the options of an S3 URI what the usual environment variables say of the endpoint.

    Not every version of the library reads them itself.
    """
    settings = _settings(options)
    url = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if url and "endpoint_override" not in settings:
        parts = urlsplit(url)
        settings["endpoint_override"] = parts.netloc or parts.path
        settings.setdefault("scheme", parts.scheme or "https")
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    if "endpoint_override" in settings:  # a store of one's own has no regions to look up
        region = region or "us-east-1"
    if region:
        settings.setdefault("region", region)
    return "&".join(f"{name}={value}" for name, value in settings.items())


def lies_in(location: str | Path, folder: str | Path) -> bool:
    """Whether a location is a folder or lies in it, by whichever names, and links, each is given.

    Stores are one if scheme, bucket and endpoint are. Nothing is asked of a store.
    """
    (store, path), (other, above) = _identity(location), _identity(folder)
    return store == other and path.is_relative_to(above)


def _identity(location: str | Path) -> tuple[tuple[str, ...], Path]:
    """Return the store of a location, and its path there; of a folder of this machine as a URI."""
    if (uri := uri_of(location)) is None:
        return ("file",), Path(location).resolve()
    scheme, bucket, path, options = parts_of(uri)
    if scheme == "file":
        return ("file",), Path("/", path).resolve()
    settings = _settings(endpoint(options) if scheme == "s3" else options)
    scheme = GOOGLE[0] if scheme in GOOGLE else scheme
    return (scheme, bucket, settings.get("endpoint_override", "")), Path(path)


def _settings(options: str) -> dict[str, str]:
    return dict(item.partition("=")[::2] for item in options.split("&") if item)


@functools.lru_cache(maxsize=64)
def _connected(root: str, options: str) -> tuple[Any, str]:
    """Return the filesystem of a bucket and the path of it; one connection a process."""
    if root.startswith("file:"):
        return pafs.LocalFileSystem(), ""
    if root.startswith("s3:"):  # a small file is one request, not three
        with contextlib.suppress(pa.ArrowInvalid):  # older versions of the library know no such
            return _at(root, "&".join(filter(None, (options, "allow_delayed_open=true"))))
    return _at(root, options)


def _at(root: str, options: str) -> tuple[Any, str]:
    store, path = pafs.FileSystem.from_uri(f"{root}{'?' if options else ''}{options}")
    return store, path


def check_bucket(store: Any, path: str, uri: str) -> None:
    """Raise InputError where the bucket of a path is missing."""
    bucket = path.strip("/").partition("/")[0]
    if store.type_name == "local" or store.get_file_info(bucket).type != pafs.FileType.NotFound:
        return
    raise InputError(f"{uri}: no bucket {bucket} there; check its name and AWS_ENDPOINT_URL")


@contextlib.contextmanager
def explained(uri: str, *, copied: bool = True) -> Iterator[None]:
    """Turn what a store's library raises into one line with the remedy, without its details.

    Not `copied`: it is read where it lies, so that an error of a disk is that of its own.
    """
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        text = str(error)
        if isinstance(error, OSError) and error.errno is not None and not _names_library(text):
            if isinstance(error, FileNotFoundError):
                raise MissingError(f"{uri}: {os.strerror(error.errno)}; check the URI") from error
            remedy = "see that its disk is there and may be read; run the same command again"
            if copied:
                remedy = "free some space, or name another folder by EHR_RAY_STAGING"
            where = f" in its copy below {staging()}" if copied else ""
            what = f"{uri}: {os.strerror(error.errno)}{where}; {remedy}"
            raise StoreUnavailableError(what) from error
        for pattern, kind, remedy in _REASONS:
            if re.search(pattern, text, re.IGNORECASE):
                raise kind(f"{uri}: {remedy}") from None
        if isinstance(error, pa.ArrowInvalid):  # of the URI itself, before any store is asked
            raise InputError(f"{uri}: {text.rstrip('.')[:200]}; check it") from None
        code = re.search(r"AWS Error (\w+)|google::cloud::Status\((\w+)", text)
        reason = next(filter(None, code.groups())) if code else text.partition(". Detail")[0][:200]
        raise StoreUnavailableError(
            f"{uri}: the store answered {reason}; run the same command again to go on"
        ) from None


def of_store(error: OSError) -> bool:
    """Whether it is a store that failed, or the disk that stands for one, not a file's content."""
    return error.errno is not None or _names_library(str(error))


def _names_library(text: str) -> bool:
    return any(name in text for name in _LIBRARIES)


_LIBRARIES: Final = ("AWS Error", "google::cloud")
"""What is in the errors of stores; of a disk of this machine it is not, which have numbers too."""
_REASONS: Final = (
    (
        r"NO_SUCH_BUCKET|Bucket '[^']*' not found|NoSuchBucket",
        AwayError,
        "no such bucket; check its name and AWS_ENDPOINT_URL",
    ),
    (
        r"Status\(NOT_FOUND",  # Google says so of either, and names neither
        AwayError,
        "no such bucket or object; check their names",
    ),
    (
        r"ACCESS_DENIED|INVALID_ACCESS_KEY|SIGNATURE|HTTP status 40[13]|INVALID_CLIENT_TOKEN|"
        r"EXPIRED|MISSING_AUTHENTICATION|PERMISSION_DENIED|Unauthenticated",
        AwayError,
        "no access; give credentials in the environment (AWS_ACCESS_KEY_ID and "
        "AWS_SECRET_ACCESS_KEY, or GOOGLE_APPLICATION_CREDENTIALS), on every node",
    ),
    (
        r"NETWORK_CONNECTION|resolve host|Could not connect|timed? ?out|UNAVAILABLE",
        StoreUnavailableError,
        "no store answers there; check AWS_ENDPOINT_URL or GOOGLE_APPLICATION_CREDENTIALS, the "
        "region and the network",
    ),
)
