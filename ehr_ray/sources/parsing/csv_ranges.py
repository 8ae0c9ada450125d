"""Large CSV files, cut into ranges of bytes that several tasks read.

A range is a run of whole lines, and gives the rows, and their lines, that it gives in the whole
file. A file where that cannot be told from its lines alone stays whole. A compressed file can only
be read from its beginning: it is unpacked once, into a file for each range of its text.
"""

import codecs
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa

from ehr_ray.sources.parsing.csv_files import PIECE_CODEC, Dialect
from ehr_ray.sources.source import Unit
from ehr_ray.storage import in_place

RANGE_BYTES: Final = 32 << 20
"""A range has at least so many, the last one less; a file of less than two of them stays whole."""
GZIP_RATIO: Final = 16
"""How many times smaller a compressed text is at most, to be looked at whether it is large."""
SCAN_BYTES: Final = 8 << 20
LONGEST_LINE: Final = 1 << 20
"""A longer line might not fit in a block of the reader, which then refuses the file."""
_BYTEWISE: Final = ("utf-8", "ascii", "iso8859", "cp125")
"""How Python's names begin of encodings where a line break, a quote and a comma are one byte each,
and no part of another letter."""
_NEWLINE, _QUOTE = b'\n"'


def split_lines(unit: Unit, dialect: Dialect) -> list[Unit]:
    """Divide a unit of one file into units of ranges of lines; one that must not be stays whole.

    That is: small, in an encoding of several bytes a letter, damaged, or with a line break within
    quotes, or quotes of which it is not plain where they end. The file is read once. A compressed
    one stays whole until it is unpacked (`Unit.packed`).
    """
    path = os.path.join(unit.root, unit.files[0])
    delimiter = dialect.between(path)
    bytewise = codecs.lookup(dialect.encoding).name.startswith(_BYTEWISE) and delimiter.isascii()
    if not (is_large(path) and bytewise):
        return [unit]
    if path.lower().endswith(".gz"):
        return [replace(unit, packed=(delimiter, dialect.encoding))]
    try:
        with in_place.binary(path) as file:
            ranges = _ranges(_whole_lines(file), delimiter, dialect.encoding)
    except OSError:
        return [unit]
    return [replace(unit, start=a, stop=b, line=line) for a, b, line in ranges] or [unit]


def is_large(path: str) -> bool:
    """Whether a file may be one that is divided: of two ranges of text at least."""
    try:
        return os.path.getsize(path) * (GZIP_RATIO if path.lower().endswith(".gz") else 1) >= (
            2 * RANGE_BYTES
        )
    except OSError:
        return False


class _DamagedError(Exception):
    """A compressed file cannot be unpacked to its end."""


def unpack(unit: Unit, folder: Path) -> list[tuple[int, int, int]]:
    """Unpack the file of a unit that is `packed` into the files of its ranges, in a folder.

    Returns (first byte of the text, one past the last, line of the first) of each, whose lines the
    file `piece_name` of its number has; none, and leaves no file, where the unit must stay whole,
    as in `split_lines`. The file is read once, a few MB of memory at a time. Raises `OSError` where
    the disk refuses a piece.
    """
    assert unit.packed is not None
    with _Pieces(folder) as pieces:
        try:
            ranges = _ranges(_unpacked(unit), *unit.packed, pieces.keep)
        except _DamagedError:
            ranges = []
    if not ranges or ranges[-1][1] < 2 * RANGE_BYTES:
        for path in folder.iterdir():
            path.unlink()
        return []
    return ranges


def piece_name(number: int) -> str:
    """Return the name of the file of a range of unpacked text."""
    return f"{number:06d}.rows"


def _unpacked(unit: Unit) -> Iterator[bytes]:
    try:
        # As Arrow's reader of the whole file unpacks it, with the same words on what is damaged.
        path = os.path.join(unit.root, unit.files[0])
        with pa.CompressedInputStream(pa.OSFile(path), "gzip") as file:
            yield from _whole_lines(file)
    except (OSError, pa.ArrowException) as error:
        raise _DamagedError from error


class _Pieces:
    """Files of the ranges of a text, of which one at a time is open."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._number = -1
        self._file: Any = None

    def __enter__(self) -> "_Pieces":
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def keep(self, number: int, block: bytes) -> None:
        """Add to the piece of a number, none of those before it any more."""
        if number != self._number:
            self._close()
            sink = pa.OSFile(str(self._folder / piece_name(number)), "wb")
            self._number, self._file = number, pa.CompressedOutputStream(sink, PIECE_CODEC)
        self._file.write(block)

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def _ranges(
    blocks: Iterable[bytes],
    delimiter: str,
    encoding: str,
    keep: Callable[[int, bytes], None] = lambda _number, _block: None,
) -> list[tuple[int, int, int]]:
    """Return (first byte, one past the last, line of the first) of each range; none to stay whole.

    The header is a line of the first range. `keep` gets each block with the number of its range.
    """
    found: list[tuple[int, int, int]] = []
    start = stop = 0
    line = first = 1
    for block in blocks:
        lines = _plain_lines(block, ord(delimiter), encoding)
        if not lines:
            return []
        keep(len(found), block)
        stop, line = stop + len(block), line + lines
        if stop - start >= RANGE_BYTES:
            found.append((start, stop, first))
            start, first = stop, line
    return [*found, (start, stop, first)] if stop > start else found


def _whole_lines(file: Any) -> Iterator[bytes]:
    """Yield a file about 8 MB at a time, cut after line breaks; a line that is too long ends it."""
    rest = b""
    while read := file.read(SCAN_BYTES):
        end = read.rfind(b"\n") + 1
        if end:
            yield rest + read[:end]
            rest = read[end:]
        else:
            rest += read
            if len(rest) > LONGEST_LINE:
                yield rest
                return
    if rest:
        yield rest


def _plain_lines(block: bytes, delimiter: int, encoding: str) -> int:
    """Return the number of lines of a block, 0 where they may be other rows in the whole file."""
    if b"\r" in block and block.count(b"\r") != block.count(b"\r\n"):
        return 0  # a carriage return alone ends a row too
    if not block.isascii():
        try:
            block.decode(encoding)
        except UnicodeError:
            return 0
    if _has_long_line(block) or (b'"' in block and not _are_quotes_plain(block, delimiter)):
        return 0
    lines = int(np.count_nonzero(np.frombuffer(block, np.uint8) == _NEWLINE))
    return lines + (not block.endswith(b"\n"))


def _has_long_line(block: bytes) -> bool:
    at = -1
    while len(block) - at > LONGEST_LINE:
        at, before = block.rfind(b"\n", at + 1, at + 1 + LONGEST_LINE), at
        if at <= before:
            return True
    return False


def _are_quotes_plain(block: bytes, delimiter: int) -> bool:
    """Whether each quote begins a cell and ends it on the same line."""
    text = np.frombuffer(block, np.uint8)
    ends = np.flatnonzero(text == _NEWLINE)
    quotes = np.flatnonzero(text == _QUOTE)
    if len(quotes) % 2:
        return False
    opening, closing = quotes[0::2], quotes[1::2]
    before = text[opening - 1]
    # At the beginning of a cell, or of the second half of a quote that is written as two.
    opens = (before == delimiter) | (before == _NEWLINE) | (opening == 0)
    opens[1:] |= opening[1:] == closing[:-1] + 1
    closes = np.searchsorted(ends, opening) == np.searchsorted(ends, closing)
    return bool((opens & closes).all())
