"""Whether the files of a checkpoint are what was written: checksums, ends, and no pickles."""

import functools
import os
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, uint8

from ehr_ray.config.yaml_files import read_yaml
from ehr_ray.errors import ConfigError, InputError
from ehr_ray.storage import files

CHECKSUM: Final = "crc32"
"""Key of the checksum in the header of a safetensors file."""
PICKLES: Final = (b"\x80", b"PK")
"""How a pickle begins, and the archive of pickles that torch writes."""
BEGIN, END = "---\n", "...\n"
"""Around a YAML document, so that one cut short is seen."""


def document(text: str) -> str:
    """Return YAML between marks: half of a mapping is a mapping too, and would be believed."""
    return f"{BEGIN}{text}{END}"


def tensors_of(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return copies of the tensors on CPU, each with memory of its own."""
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}


def save_tensors(state: Mapping[str, Tensor], path: Path, **header: str) -> None:
    """Write a safetensors file with the checksum of its tensors in its header, and more texts."""
    tensors = tensors_of(state)
    try:
        save_file(tensors, path, metadata={CHECKSUM: checksum(tensors), **header})
    except SafetensorError as error:
        raise _as_os_error(error) from error
    umask = os.umask(0)
    os.umask(umask)
    path.chmod(0o666 & ~umask)  # the library makes it private; runs lie on shared storage


def checksum(state: Mapping[str, Tensor]) -> str:
    """Return the CRC-32 of names, types, shapes and bytes."""
    found = 0
    for name in sorted(state):
        tensor = state[name]
        found = zlib.crc32(f"{name} {tensor.dtype} {list(tensor.shape)}".encode(), found)
        if tensor.numel():
            found = zlib.crc32(tensor.reshape(-1).view(uint8).numpy().data, found)
    return f"{found:08x}"


def header_of(path: Path) -> dict[str, str]:
    """Return the texts in the header of a safetensors file."""
    with safe_open(path, "pt") as file:
        return dict(file.metadata() or {})


def damage_of(folder: Path, names: Sequence[str]) -> str:
    """Return what is wrong with the first bad file of a folder, "" where nothing is."""
    for name in names:
        path = folder / name
        try:
            status = path.stat()
            _check(path, status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)
        except FileNotFoundError:
            return f"{path}: missing"
        except (InputError, ConfigError, SafetensorError, ValueError, OSError) as error:
            reason = str(error).removeprefix(f"{path}: ").partition("; ")[0]
            return f"{path}: damaged ({reason})"
    return ""


@functools.lru_cache(maxsize=256)
def _check(path: Path, *_stamp: int) -> None:
    """Raise if a file is not what it was written as; once a process for the same file."""
    if path.suffix == ".parquet":
        files.read_parquet(path)
    elif path.suffix == ".yaml":
        read_yaml(path)
        text = path.read_text()
        if text.startswith(BEGIN) and not text.endswith(END):
            raise ValueError("its end is missing")
    elif starts_as_pickle(path):
        raise ValueError("a pickle, which runs code when it is read")
    else:
        stored = header_of(path).get(CHECKSUM)
        if stored is not None and stored != checksum(load_file(path)):
            raise ValueError("its tensors are not those that were written")


def starts_as_pickle(path: Path) -> bool:
    """Whether a file begins as a pickle does, and not as safetensors."""
    with path.open("rb") as file:
        head = file.read(9)
    return head.startswith(PICKLES) and head[8:] != b"{"  # where the header of safetensors begins


def _as_os_error(error: SafetensorError) -> OSError:
    """Return what the system said: the library puts it in text, as in `(os error 28)`."""
    text = str(error)
    number = text.rpartition("(os error ")[2].partition(")")[0]
    return OSError(int(number), os.strerror(int(number))) if number.isdigit() else OSError(text)
