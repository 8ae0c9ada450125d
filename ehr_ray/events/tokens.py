"""Events as phrase ids: one token an event, or more where values, units and gaps have their own.

The ids are a function of the vocabulary and the options alone, never of the words: a code keeps
its id whatever a lookup calls it, and a checkpoint reads another cohort without any lookup.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from ehr_ray.errors import InputError
from ehr_ray.events.options import TokenOptions
from ehr_ray.events.patients import Patient
from ehr_ray.events.phrases import LEVELS, NO_LOOKUPS, Lookups, phrases_of, units_of
from ehr_ray.events.vocabulary import QUANTILES, Vocabulary

BINS = LEVELS
"""Below the 5 % quantile of train, to the 25 %, the 75 %, the 95 %, and above."""
_CUTS = [QUANTILES.index(q) for q in (0.05, 0.25, 0.75, 0.95)]

_HOUR, _DAY, _MONTH = 60.0, 1440.0, 30 * 1440.0
_GAPS = (
    [(15.0, "15 to 60 minutes")]
    + [(h * _HOUR, f"{h} to {e} hours") for h, e in ((1, 2), (2, 4), (4, 8), (8, 12), (12, 24))]
    + [(d * _DAY, f"{d} to {e} days") for d, e in ((1, 2), (2, 4), (4, 7), (7, 12), (12, 20))]
    + [(20 * _DAY, "20 to 30 days")]
    + [(m * _MONTH, f"{m} to {e} months") for m, e in ((1, 2), (2, 4), (4, 6), (6, 8), (8, 10))]
    + [(m * _MONTH, f"{m} to {e} months") for m, e in ((10, 12), (12, 18), (18, 24), (24, 60))]
    + [(60 * _MONTH, "more than 60 months")]
)
GAP_EDGES = np.array([edge for edge, _ in _GAPS])
"""Minutes from which each gap counts; shorter ones are none."""
GAPS = tuple(f"{text} later" for _, text in _GAPS)


@dataclass(frozen=True, eq=False)
class Tokens:
    """What a patient's events say.

    Args:
        phrase: ids of the book, int32 [T].
        gap: which of `GAPS` passed before it, int8 [T]; -1 where that is not told with it.
        value: z-scored value of its event, float32 [T]; NaN where it has none.
        minute: minutes since the origin, negative before it, float64 [T].
    """

    phrase: npt.NDArray[np.int32]
    gap: npt.NDArray[np.int8]
    value: npt.NDArray[np.float32]
    minute: npt.NDArray[np.float64]


@dataclass(frozen=True)
class TokenBook:
    """The phrases a vocabulary can say, by id: V codes, then values, units and gaps."""

    vocabulary: Vocabulary
    options: TokenOptions

    @cached_property
    def valued(self) -> npt.NDArray[np.int64]:
        """Rank of each code among those with values, [V]; -1 for the others."""
        has = self.vocabulary.valued
        return np.where(has, np.cumsum(has) - 1, -1)

    @cached_property
    def num_levels(self) -> int:
        """Levels a value may have."""
        return len(BINS) if self.options.value_as == "bin" else self.options.levels

    @cached_property
    def units(self) -> tuple[tuple[str, ...], npt.NDArray[np.int64]]:
        """The distinct units, and which one each code has, [V]; -1 for none."""
        of = units_of(self.vocabulary)
        names = tuple(sorted(set(of) - {""}))
        place = {name: i for i, name in enumerate(names)}
        return names, np.array([place.get(name, -1) for name in of], np.int64)

    @cached_property
    def _starts(self) -> tuple[int, int, int, int]:
        """Where values, units and gaps start, and the end."""
        options, codes = self.options, len(self.vocabulary)
        own_bins = options.values == "own" and options.value_as == "bin"
        kinds = 1 if own_bins else int(self.valued.max(initial=-1)) + 1
        values = codes + (kinds * self.num_levels if options.values != "none" else 0)
        units = values + (len(self.units[0]) if options.units == "own" else 0)
        return codes, values, units, units + (len(GAPS) if options.gaps != "none" else 0)

    @property
    def first_gap(self) -> int:
        """Id of the first of `GAPS`, where the book has them."""
        return self._starts[2]

    def __len__(self) -> int:
        """Return the number of phrases."""
        return max(1, self._starts[3])

    @cached_property
    def begun(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
        """What event each phrase begins: its code, [P], and the share of train values, [P, 2].

        -1: none, as of a value, a unit or a gap of its own. The value of the event lies between two
        shares of the code's values in train, in ascending order; NaN where it has none.
        """
        options, (codes, values, _, _) = self.options, self._starts
        code = np.concatenate([np.arange(codes), np.full(len(self) - codes, -1)])
        share = np.full((len(self), 2), np.nan)
        valued = np.flatnonzero(self.valued >= 0)
        if options.values == "merged":
            between = [0.05, 0.25, 0.75, 0.95]
            if options.value_as == "number":
                between = (np.arange(1, options.levels) / options.levels).tolist()
            code[codes:values] = np.repeat(valued, self.num_levels)
            pairs = np.stack([[0.0, *between], [*between, 1.0]], 1)
            share[codes:values] = np.tile(pairs, (len(valued), 1))
        else:
            share[valued] = 0.0, 1.0
        return code.astype(np.int64), share

    def texts(self, lookups: Lookups = NO_LOOKUPS) -> list[str]:
        """Return the text of each id."""
        options, vocabulary = self.options, self.vocabulary
        names, (unit_names, unit) = phrases_of(vocabulary, lookups), self.units
        joined = options.units == "merged"
        tail = [f" {unit_names[u]}" if joined and u >= 0 else "" for u in unit]
        texts = list(names)
        own = options.values == "own"
        if own and options.value_as == "bin":
            texts += BINS
        elif options.values != "none":
            for code in np.flatnonzero(self.valued >= 0):
                start = "" if own else f"{names[code]} "
                texts += [f"{start}{word}{tail[code]}" for word in self._words(int(code))]
        texts += unit_names if options.units == "own" else ()
        texts += GAPS if options.gaps != "none" else ()
        return texts or ["nothing"]

    def tokens(self, patient: Patient, value: npt.NDArray[np.float32]) -> Tokens:
        """Return a patient's tokens, in time order; `value` [E] is what each event's is scaled to.

        Raises InputError where the patient has a code the vocabulary does not know.
        """
        code = patient.code.astype(np.int64)
        if len(code) and (code.min() < 0 or code.max() >= len(self.vocabulary)):
            bad = int(code[(code < 0) | (code >= len(self.vocabulary))][0])
            raise InputError(
                f"a patient has code id {bad}, but the vocabulary has "
                f"{len(self.vocabulary)}; read it with the vocabulary of the run"
            )
        options = self.options
        has = np.isfinite(patient.value) & (self.valued[code] >= 0)
        level = np.where(has, self._level_ids(code, patient.value), -1)
        unit = np.where(has, self.units[1][code], -1)
        gap = self._gaps(patient)
        first = code if options.values != "merged" else np.where(has, level, code)
        none = np.full(len(code), -1)
        slots = np.stack(
            [
                np.where(gap >= 0, self.first_gap + gap, -1) if options.gaps == "own" else none,
                first,
                level if options.values == "own" else none,
                self._starts[1] + unit if options.units == "own" else none,
            ],
            1,
        )
        if options.units == "own":
            slots[:, 3] = np.where(unit >= 0, slots[:, 3], -1)
        kept = slots >= 0
        event, kind = np.nonzero(kept)
        merged = (options.gaps == "merged") & (kind == 1)
        speaks = has[event] & (kind == 1)
        return Tokens(
            phrase=slots[kept].astype(np.int32),
            gap=np.where(merged, gap[event], -1).astype(np.int8),
            value=np.where(speaks, value[event], np.nan).astype(np.float32),
            minute=patient.minute[event],
        )

    def _gaps(self, patient: Patient) -> npt.NDArray[np.int64]:
        if self.options.gaps == "none":
            return np.full(len(patient.code), -1)
        passed = np.diff(patient.minute, prepend=patient.minute[:1])
        return np.searchsorted(GAP_EDGES, passed, side="right") - 1

    def _level_ids(self, code: npt.NDArray[Any], value: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
        if self.options.value_as == "bin":
            cut = self.vocabulary.quantiles[code][:, _CUTS]
            # "normal" holds both quartiles, so that a code with one value is always normal.
            below = (value[:, None] >= cut[:, :2]).sum(1)
            level = below + (value[:, None] > cut[:, 2:]).sum(1)
        else:
            level = (value[:, None] >= self._edges[code]).sum(1)
        own_bins = self.options.values == "own" and self.options.value_as == "bin"
        rank = 0 if own_bins else self.valued[code]
        return self._starts[0] + rank * self.num_levels + level

    @cached_property
    def _edges(self) -> npt.NDArray[np.float64]:
        """Where each code's levels part, [V, L - 1]: linear between the quantiles of train."""
        share = np.arange(1, self.num_levels) / self.num_levels
        rows = [np.interp(share, QUANTILES, row) for row in self.vocabulary.quantiles]
        return np.array(rows).reshape(len(rows), len(share))

    def _words(self, code: int) -> Sequence[str]:
        if self.options.value_as == "bin":
            return BINS
        middle = (np.arange(self.num_levels) + 0.5) / self.num_levels
        values = np.interp(middle, QUANTILES, self.vocabulary.quantiles[code])
        return [f"{value:.3g}" for value in values]
