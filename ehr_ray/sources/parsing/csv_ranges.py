"""Large CSV files, cut into ranges of bytes that several tasks read.

A range is a run of whole lines, and gives the rows, and their lines, that it gives in the whole
file. A file where that cannot be told from its lines alone stays whole.
"""

import codecs
import os
from collections.abc import Iterator
from dataclasses import replace
from typing import Final

import numpy as np

from ehr_ray.sources.parsing.csv_files import Dialect
from ehr_ray.sources.source import Unit
from ehr_ray.storage import in_place

RANGE_BYTES: Final = 32 << 20
"""A range has at least so many, the last one less; a file of less than two of them stays whole."""
SCAN_BYTES: Final = 8 << 20
LONGEST_LINE: Final = 1 << 20
"""A longer line might not fit in a block of the reader, which then refuses the file."""
_BYTEWISE: Final = ("utf-8", "ascii", "iso8859", "cp125")
"""How Python's names begin of encodings where a line break, a quote and a comma are one byte each,
and no part of another letter."""
_NEWLINE, _QUOTE = b'\n"'


def split_lines(unit: Unit, dialect: Dialect) -> list[Unit]:
    """Divide a unit of one file into units of ranges of lines; one that must not be stays whole.

    That is: compressed, small, in an encoding of several bytes a letter, damaged, or with a line
    break within quotes, or quotes of which it is not plain where they end. The file is read once.
    """
    path = os.path.join(unit.root, unit.files[0])
    if not is_large(path):
        return [unit]
    try:
        ranges = _ranges(path, dialect)
    except OSError:
        return [unit]
    return [replace(unit, start=a, stop=b, line=line) for a, b, line in ranges] or [unit]


def is_large(path: str) -> bool:
    """Whether a file is one that is divided: plain, and of two ranges at least."""
    try:
        return not path.endswith(".gz") and os.path.getsize(path) >= 2 * RANGE_BYTES
    except OSError:
        return False


def _ranges(path: str, dialect: Dialect) -> list[tuple[int, int, int]]:
    """Return (first byte, one past the last, line of the first) of each range; none to stay whole.

    The header is a line of the first range.
    """
    if not codecs.lookup(dialect.encoding).name.startswith(_BYTEWISE):
        return []
    delimiter = dialect.between(path)
    if not delimiter.isascii():
        return []
    found = []
    start = stop = 0
    line = first = 1
    for block in _whole_lines(path):
        lines = _plain_lines(block, ord(delimiter), dialect.encoding)
        if not lines:
            return []
        stop, line = stop + len(block), line + lines
        if stop - start >= RANGE_BYTES:
            found.append((start, stop, first))
            start, first = stop, line
    return [*found, (start, stop, first)] if stop > start else found


def _whole_lines(path: str) -> Iterator[bytes]:
    """Yield a file about 8 MB at a time, cut after line breaks; a line that is too long ends it."""
    rest = b""
    with in_place.binary(path) as file:
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
