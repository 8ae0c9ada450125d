"""Embeddings of texts without a model: for tests, and for machines that can fetch none."""

import re
import zlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

HASHING = "hashing"
"""Name that stands for these in place of a sentence transformer's."""
HASHED_WIDTH = 256


def hashed(texts: Sequence[str], width: int = HASHED_WIDTH) -> "npt.NDArray[np.float32]":
    """Return sums of signed hashes (Weinberger et al. 2009) of words and their letter triples.

    float32 [len(texts), width]; texts that share words are near each other.
    """
    import numpy as np  # here: a config is checked without it

    table = np.zeros((len(texts), width), np.float32)
    for row, text in enumerate(texts):
        for word in re.findall(r"[\w.%/]+", text.lower()):
            padded = f"<{word}>"
            for part in [word, *(padded[i : i + 3] for i in range(len(padded) - 2))]:
                bits = zlib.crc32(part.encode())
                table[row, bits % width] += 1.0 if bits >> 31 else -1.0
    return table
