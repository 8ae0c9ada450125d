"""Events as modalities: which code feeds which column of which one, and columns to 512 numbers.

The statistics are the vocabulary's, which are those of train alone. V codes, D columns, 512 wide.
"""

import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
import numpy.typing as npt

from ehr_ray.events.options import MODALITIES, MODALITY_CODES
from ehr_ray.events.vocabulary import Vocabulary

WIDTH: Final = 512
"""Numbers of a token."""
MARKED: Final = 256
"""Columns with values a modality may have for each to get a column that says it is missing."""
_EMBEDDED: Final = re.compile(r".*//EMBEDDING//(\d+)")
_QUALITY: Final = re.compile(r".*//QUALITY")
_SPREAD: Final = re.compile(r".*//SPREAD")


@dataclass(frozen=True, eq=False)
class Layout:
    """Where each code of a vocabulary goes.

    Args:
        modality: int [V], -1 for codes of none.
        valued: bool [V], codes with values in train; the others are flags.
        quality: id of the code that states the modality's quality, -1 where none does, int [5].
        spread: the same of its variance.
        embedded: whether the modality's codes are a token already, bool [5].
    """

    modality: npt.NDArray[np.int64]
    valued: npt.NDArray[np.bool_]
    quality: npt.NDArray[np.int64]
    spread: npt.NDArray[np.int64]
    embedded: npt.NDArray[np.bool_]

    @cached_property
    def columns(self) -> tuple[npt.NDArray[np.int64], ...]:
        """Vocabulary ids of each modality's columns, ascending."""
        stated = np.concatenate([self.quality, self.spread])
        feature = (self.modality >= 0) & ~np.isin(np.arange(len(self.modality)), stated)
        return tuple(np.flatnonzero(feature & (self.modality == m)) for m in range(len(MODALITIES)))

    @cached_property
    def marked(self) -> tuple[npt.NDArray[np.int64], ...]:
        """Vocabulary ids that get a column for missing besides."""
        valued = [ids[self.valued[ids]] for ids in self.columns]
        return tuple(
            ids if len(ids) <= MARKED and not there else ids[:0]
            for ids, there in zip(valued, self.embedded, strict=True)
        )

    @property
    def raw(self) -> npt.NDArray[np.bool_]:
        """Codes whose value is kept as it stands: quality and spread, [V]."""
        stated = np.concatenate([self.quality, self.spread])
        return np.isin(np.arange(len(self.modality)), stated)


def layout_of(
    vocabulary: Vocabulary, codes: Mapping[str, Sequence[str]] = MODALITY_CODES
) -> Layout:
    """Return where the codes of a vocabulary go; the first modality whose pattern fits counts."""
    modality = np.full(len(vocabulary), -1, np.int64)
    for place, name in reversed(list(enumerate(MODALITIES))):
        patterns = [re.compile(pattern) for pattern in codes.get(name, ())]
        for i, code in enumerate(vocabulary.codes):
            if any(pattern.fullmatch(code) for pattern in patterns):
                modality[i] = place

    def stated(pattern: re.Pattern[str]) -> npt.NDArray[np.int64]:
        ids = [i for i, code in enumerate(vocabulary.codes) if pattern.fullmatch(code)]
        found = {int(modality[i]): i for i in ids}
        return np.array([found.get(m, -1) for m in range(len(MODALITIES))], np.int64)

    quality, spread = stated(_QUALITY), stated(_SPREAD)
    embedded = np.zeros(len(MODALITIES), bool)
    for i, code in enumerate(vocabulary.codes):
        if modality[i] >= 0 and _EMBEDDED.fullmatch(code):
            embedded[modality[i]] = True
    valued = vocabulary.valued
    return Layout(modality, valued, quality, spread, embedded)


def projection(
    layout: Layout, place: int, vocabulary: Vocabulary, more: int = 0
) -> npt.NDArray[np.float32]:
    """Return the map of a modality's columns to its token, float32 [D, 512].

    Columns that are a token already go to their own place. Others, values, marks and `more`, are
    turned by an orthogonal matrix that is a function of the modality's name and D, so that a token
    keeps every distance between patients (D <= 512; above, on average), scaled to a variance of
    about 1 a number where columns have one.
    """
    ids, extra = layout.columns[place], layout.marked[place]
    size = len(ids) + len(extra) + more
    result = np.zeros((size, WIDTH), np.float32)
    if layout.embedded[place]:
        for row, code in enumerate(ids):
            match = _EMBEDDED.fullmatch(vocabulary.codes[code])
            if match and int(match[1]) < WIDTH:
                result[row, int(match[1])] = 1
        return result
    if not size:
        return result
    rng = np.random.default_rng([zlib.crc32(MODALITIES[place].encode()), size])
    drawn = rng.standard_normal((max(size, WIDTH), min(size, WIDTH)))
    turned, triangle = np.linalg.qr(drawn)
    turned = turned * np.sign(np.diagonal(triangle))
    if size < WIDTH:
        turned = turned.T * np.sqrt(WIDTH / size)
    return turned.astype(np.float32)
