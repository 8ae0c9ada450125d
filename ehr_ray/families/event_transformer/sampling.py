"""Futures of a patient, drawn from a decoder event by event: what comes next, and when.

N draws of one patient, P phrases, V codes.
"""

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from ehr_ray.events.normalize import z_score
from ehr_ray.events.tokens import GAP_EDGES, TokenBook
from ehr_ray.events.vocabulary import QUANTILES, Vocabulary
from ehr_ray.families.event_transformer.clock import fit_clock
from ehr_ray.families.event_transformer.config import EventTransformerConfig
from ehr_ray.families.event_transformer.data import token_book
from ehr_ray.families.event_transformer.decoding import Continuation
from ehr_ray.families.event_transformer.model import EventTransformer
from ehr_ray.family import Batch, Horizon
from ehr_ray.nn.noise import combine, uniform
from ehr_ray.nn.transformer import blocks_of

_DRAW = 31
_VALUES = 32
"""Values that stand for all between two quantiles of a code."""
_TOKENS = 4
"""Tokens of an event at most: gap, code, value, unit."""
_LIVE = 0.75
"""Share of draws that go on below which those that ended are no longer computed."""
_FIELDS = ("phrase", "gap", "value", "minute")


def lacks(config: EventTransformerConfig) -> str | None:
    """Return what a config lacks to draw futures, and the remedy; None where nothing."""
    if config.arch != "decoder":
        return f"model.arch={config.arch} tells no next event; train one with model.arch=decoder"
    if config.head == "none":
        return "model.head=none tells no next event; train one with model.head=plain or tied"
    if not config.next_event_weight:
        return "model.next_event_weight=0 learned no next event; train one with a weight above 0"
    if config.gaps != "own" and not config.next_time_weight:
        return (
            f"model.gaps={config.gaps} without model.next_time_weight tells no time of the next "
            "event; train one with either model.gaps=own or model.next_time_weight=0.1"
        )
    return None


class Sampler:
    """Draws futures of a decoder: see `Draw` of the family's record.

    A phrase is drawn from the softmax of its scores. Its time is drawn as `Clock` says, and its
    z-score evenly from the train values of its code, of its bin where the phrase tells one.
    """

    def __init__(
        self, model: EventTransformer, vocabulary: Vocabulary, batches: Iterable[Batch]
    ) -> None:
        book = token_book(vocabulary, model.config.token_options)
        self.model, self.clock = model, fit_clock(model, book, batches)
        self.code = torch.from_numpy(book.begun[0])
        self.values = torch.from_numpy(_values(book, model.config.clip_value))
        with torch.no_grad():
            self.made = model.projections()

    @torch.no_grad()
    def __call__(self, batch: Batch, horizon: Horizon, draws: Tensor, seed: int) -> Batch:
        """Return `code` [N, E], `minute` [N, E] and `cut` [N]; the batch has a patient's tokens.

        Raises ValueError for a patient without any: the model tells what follows an event.
        """
        if len(batch["mask"]) != 1 or not batch["mask"].all():
            raise ValueError("futures are drawn of one patient, with at least one event")
        record = self.model.window(batch, None)
        reader = _Reader(self.model, self.made, record, len(draws))
        key = combine(batch["subject_id"], draws, seed, _DRAW)
        ends = torch.from_numpy(horizon.codes)
        row, count = torch.arange(len(draws)), torch.zeros(len(draws), dtype=torch.int64)
        minute = record["minute"][0, -1].double().expand(len(draws)).clone()
        before = record["phrase"][0, -1].expand(len(draws)).clone()
        live, cut = torch.ones_like(row, dtype=torch.bool), torch.zeros_like(row, dtype=torch.bool)
        found: list[tuple[Tensor, Tensor, Tensor]] = []
        for step in range(_TOKENS * horizon.events):
            least = horizon.start - float(minute[0]) if step == 0 else None
            phrase, gap = self._next(reader.state, before, key, step, least)
            now = minute + gap
            if step == 0:
                now = now.clamp(min=horizon.start)
            code = self.code[phrase]
            event = live & (code >= 0) & (now <= horizon.end)
            found.append((row[event], code[event], now[event]))
            count += event
            live &= (now <= horizon.end) & ~(event & ends[code.clamp(min=0)])
            cut[row] |= live & (count >= horizon.events)
            live &= count < horizon.events
            if not live.any():
                break
            reader.append(
                phrase, self._gap(now - minute, code), self._value(phrase, key, step), now
            )
            minute, before = now, phrase
            if live.float().mean() < _LIVE:
                kept = live.nonzero().squeeze(1)
                reader.keep(kept)
                key, row, count, minute, before, live = (
                    x[kept] for x in (key, row, count, minute, before, live)
                )
        cut[row] |= live
        return {**_padded(found, len(draws)), "cut": cut}

    def _next(
        self, state: Tensor, before: Tensor, key: Tensor, step: int, least: float | None
    ) -> tuple[Tensor, Tensor]:
        """Return the phrase after each and the minutes until it, more than `least`, [N] both."""
        state, clock = self.model.norm(state), self.clock
        weight = self.model.scores(state).double().softmax(-1)
        told = self.model.next_time(state).squeeze(-1) if clock.by_head else None
        if least is not None:
            every = torch.arange(weight.shape[1]).expand_as(weight)
            group = clock.group(every, before[:, None], None if told is None else told[:, None])
            later = weight * clock.longer(group, least)
            weight = torch.where(later.sum(-1, keepdim=True) > 0, later, weight)
        total = weight.cumsum(-1)
        at = uniform(key, 3 * step).double() * total[:, -1]
        phrase = torch.searchsorted(total, at[:, None], right=True).squeeze(1)
        phrase = phrase.clamp(max=weight.shape[1] - 1)
        group = clock.group(phrase, before, told)
        return phrase, clock.draw(group, uniform(key, 3 * step + 1).double(), least)

    def _gap(self, passed: Tensor, code: Tensor) -> Tensor:
        """Return which of `GAPS` is told with each token, -1 for none, [N]."""
        if self.model.config.gaps != "merged":
            return torch.full_like(code, -1)
        gap = torch.searchsorted(torch.from_numpy(GAP_EDGES), passed, right=True) - 1
        return torch.where(code >= 0, gap, -1)

    def _value(self, phrase: Tensor, key: Tensor, step: int) -> Tensor:
        """Return the z-score of each token's event, 0 where it has none, float32 [N]."""
        place = (uniform(key, 3 * step + 2) * _VALUES).long()
        return self.values[phrase, place]


class _Reader:
    """The state after the last token of N continuations of a record, [N, D].

    Where a continuation has `max_length` tokens, the last half of them are read anew.
    """

    def __init__(
        self, model: EventTransformer, made: dict[str, Tensor], record: Batch, number: int
    ) -> None:
        self.model, self.made, self.size = model, made, record["mask"].shape[1]
        self.tokens = {}
        for name in _FIELDS:
            given = record[name]
            self.tokens[name] = given.new_zeros(number, model.config.max_length)
            self.tokens[name][:, : self.size] = given
        self.read = Continuation(blocks_of(model.blocks))
        self.state = self._begin(slice(0, 1)).expand(number, -1)

    def append(self, phrase: Tensor, gap: Tensor, value: Tensor, minute: Tensor) -> None:
        """Add a token to each, [N] all; `minute` float64."""
        if self.size == self.model.config.max_length:
            half = self.size // 2
            for name, held in self.tokens.items():
                self.tokens[name] = torch.cat([held[:, self.size - half :], held[:, half:]], 1)
            self.size, self.read = half, Continuation(blocks_of(self.model.blocks))
            if half:
                self._begin(slice(None))
        for name, one in zip(_FIELDS, (phrase, gap, value, minute), strict=True):
            self.tokens[name][:, self.size] = one
        token = {name: held[:, self.size : self.size + 1] for name, held in self.tokens.items()}
        self.size += 1
        hidden = self._input(token, self.size - 1)
        turns = self.model.turns(self.size, hidden.device, self.size - 1)
        self.state = self.read.follow(hidden, turns)[:, 0]

    def keep(self, rows: Tensor) -> None:
        """Go on with some of them, by their places."""
        self.tokens = {name: held[rows] for name, held in self.tokens.items()}
        self.state = self.state[rows]
        self.read.keep(rows)

    def _begin(self, rows: slice) -> Tensor:
        """Read the tokens of some rows; return the last state of each."""
        tokens = {name: held[rows, : self.size] for name, held in self.tokens.items()}
        hidden = self._input(tokens, 0)
        return self.read.read(hidden, self.model.turns(self.size, hidden.device))[:, -1]

    def _input(self, tokens: Batch, first: int) -> Tensor:
        hidden = self.model.embed(tokens, self.made)
        return self.model.placed(hidden, tokens["minute"], first)


def _values(book: TokenBook, clip: float) -> np.ndarray:
    """Return z-scores that an event of each phrase has, as likely each, float32 [P, `_VALUES`]."""
    code, share = book.begun
    scores = np.zeros((len(code), _VALUES), np.float32)
    steps = (np.arange(_VALUES) + 0.5) / _VALUES
    for phrase in np.flatnonzero(np.isfinite(share[:, 0])):
        low, high = share[phrase]
        at = low + steps * (high - low)
        value = np.interp(at, QUANTILES, book.vocabulary.quantiles[code[phrase]])
        scores[phrase] = z_score(value, np.full(_VALUES, code[phrase]), book.vocabulary)
    return scores.clip(-clip, clip).astype(np.float16).astype(np.float32)  # as rows hold them


def _padded(found: list[tuple[Tensor, Tensor, Tensor]], number: int) -> Batch:
    """Return events listed as (draw, code, minute) in time order as `code`, `minute` [N, E]."""
    row, code, minute = (torch.cat(parts) for parts in zip(*found, strict=True))
    order = torch.sort(row, stable=True).indices
    row, code, minute = row[order], code[order], minute[order]
    size = torch.bincount(row, minlength=number)
    place = torch.arange(len(row)) - (size.cumsum(0) - size)[row]
    shape = number, int(size.max())
    out = {"code": torch.full(shape, -1), "minute": torch.zeros(shape, dtype=torch.float64)}
    out["code"][row, place], out["minute"][row, place] = code, minute
    return out
