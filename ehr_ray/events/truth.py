"""Columns of others to truth values: what is true, what is false, and what nobody knows."""

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ehr_ray.errors import InputError

UNKNOWN: Final = frozenset({"", "nan", "na", "n/a", "none", "null", "<na>"})
"""Texts, in lower case, that say nothing."""
_TEXTS: Final = {"true": 1, "1": 1, "1.0": 1, "false": 0, "0": 0, "0.0": 0}

NOT_KNOWN: Final = -1
REFUSED: Final = -2


def truth_of(column: pa.Array | pa.ChunkedArray) -> npt.NDArray[np.int8]:
    """Return 1 (true), 0 (false), -1 (unknown) or -2 (no truth value) of each cell, int8 [N].

    Booleans, the numbers 0 and 1, and the texts 0, 1, true and false in any case and with blanks
    around are truth values; null, NaN and a blank are unknown.
    """
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    encoded = column.dictionary_encode(null_encoding="encode")
    cells = np.array([_truth(cell) for cell in encoded.dictionary.to_pylist()], np.int8)
    found: npt.NDArray[np.int8] = cells[encoded.indices.to_numpy(zero_copy_only=False)]
    return found


def _truth(cell: object) -> int:
    if cell is None or cell != cell:
        return NOT_KNOWN
    text = str(cell).strip().lower()
    return NOT_KNOWN if text in UNKNOWN else _TEXTS.get(text, REFUSED)


def read_truth(
    column: pa.Array | pa.ChunkedArray,
    file: str,
    name: str,
    rows: Sequence[int] | npt.NDArray[np.integer],
) -> npt.NDArray[np.int8]:
    """Return `truth_of` a column; `InputError` names the file, row, column and value otherwise.

    `rows` are the rows of the file that the cells stand in, int [N].
    """
    truth = truth_of(column)
    bad = np.flatnonzero(truth == REFUSED)
    if len(bad):
        value = column[int(bad[0])].as_py()
        more = f" (and {len(bad) - 1:,} more cells)" if len(bad) > 1 else ""
        raise InputError(
            f"{file}: row {rows[bad[0]]}, column {name}: {value!r} is no truth value{more}; write "
            "0, 1, true or false, and nothing where the answer is unknown"
        )
    return truth
