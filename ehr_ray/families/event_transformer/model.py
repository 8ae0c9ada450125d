"""The event transformer: phrases of a frozen table, projected, through pre-norm blocks.

B patients, T tokens, P phrases, E embedding, D width, N predicted tokens.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ehr_ray.events.follow_up import followed_codes, measured_codes
from ehr_ray.events.vocabulary import Vocabulary
from ehr_ray.families.event_transformer.config import EventTransformerConfig
from ehr_ray.families.event_transformer.data import token_book
from ehr_ray.families.event_transformer.future_value import fit_values, values_of
from ehr_ray.families.event_transformer.table import phrase_table
from ehr_ray.families.event_transformer.time_to_event import (
    asked_moments,
    code_slots,
    fit_rates,
    truth_of,
)
from ehr_ray.family import Batch
from ehr_ray.nn.future_value import FutureValue
from ehr_ray.nn.moment_heads import FIT_ROWS
from ehr_ray.nn.noise import combine, uniform
from ehr_ray.nn.time_to_event import TimeToEvent
from ehr_ray.nn.transformer import Block, blocks_of, rotary_turns, sinusoids, through, time_waves

RECENT = 2.0
"""Power of the hours before a patient's last token that every other query starts with."""
SHARPNESS = 8.0
"""Log-odds at which a query starts to prefer its phrase to an unrelated one."""
VALIDATION_RATIO = 0.15
"""Share of tokens hidden in validation, of every encoder."""
LOGITS = 1 << 24
"""Logits of phrases that are made at a time: 64 MB."""
_WINDOW, _MASK = 21, 22


class EventTransformer(nn.Module):
    """Encoder or decoder, by config; the same names, so that either starts the other."""

    table: Tensor
    code_slot: Tensor
    value_slot: Tensor

    def __init__(self, config: EventTransformerConfig, vocabulary: Vocabulary) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("table", phrase_table(config, vocabulary))
        phrases, embedding = self.table.shape
        width = config.model_dim
        self.first_gap = token_book(vocabulary, config.token_options).first_gap
        self.project = nn.Linear(embedding, width)
        if config.value_channel:
            self.project_value = nn.Linear(embedding, width, bias=False)
        if config.gaps == "merged":
            self.project_gap = nn.Linear(embedding, width, bias=False)
        if config.has_cls:
            self.cls = nn.Parameter(torch.randn(width) / width**0.5)
        if "attention" in config.pooling:
            self.pool_query = nn.Parameter(far_apart(self.table, config.pool_queries))
            recent = torch.arange(config.pool_queries) % 2 == 1
            self.pool_recency = nn.Parameter(RECENT * recent)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(
            Block(width, config.n_heads, config.dropout) for _ in range(config.n_layers)
        )
        # A deep residual sum starts with the variance of a shallow one.
        for block in blocks_of(self.blocks):
            for last in block.added():
                nn.init.normal_(last.weight, std=0.02 / (2 * config.n_layers) ** 0.5)
        if config.head != "none":
            self.norm = nn.LayerNorm(width)
            if config.next_event_weight:
                self.score = nn.Linear(width, phrases if config.head == "plain" else embedding)
                if config.head == "tied":
                    self.score_bias = nn.Parameter(torch.zeros(phrases))
            if config.arch == "encoder":
                self.hole = nn.Parameter(torch.randn(width) / width**0.5)
            if config.next_value_weight:
                self.next_value = nn.Linear(width, width)
            if config.next_time_weight:
                self.next_time = nn.Linear(width, 1)
            if config.time_to_event_weight:
                chosen = followed_codes(config.time_to_event_codes, vocabulary)
                slot = code_slots(config, vocabulary, chosen)
                self.register_buffer("code_slot", slot, persistent=False)
                self.time_to_event = TimeToEvent(width, len(chosen), config.time_to_event_bins)
            if config.future_value_weight:
                chosen = measured_codes(config.future_value_codes, vocabulary)
                slot = code_slots(config, vocabulary, chosen)
                self.register_buffer("value_slot", slot, persistent=False)
                self.future_value = FutureValue(width, len(chosen), config.future_value_hours)

    def forward(self, batch: Batch, seed: int) -> dict[str, Tensor]:
        """Return what is predicted of N tokens, and what they are.

        A decoder is asked for each token after a patient's first, an encoder for a random share
        hidden from it. `phrase` [N]; with their heads the sum of its `nats` and how many were
        `right`, each [], `value`, `target_value`, `valued` [N], `time`, `target_time` [N] and what
        `TimeToEvent` and `FutureValue` give.
        """
        batch = self.window(batch, seed if self.training else None)
        decoder, asked = self.config.arch == "decoder", self.asked(batch, seed)
        # From the end: an encoder with `cls` puts its vector first.
        hidden = self.encode(batch, None if decoder else asked)[:, -batch["mask"].shape[1] :]
        if "attention" in self.config.pooling:  # DDP waits for a gradient of every parameter
            hidden = hidden + 0.0 * (self.pool_query.sum() + self.pool_recency.sum())
        moments: dict[str, Tensor] = {}
        if self.config.asks_moments:
            index, real = asked_moments(batch, seed)
            state = self.norm(hidden.gather(1, index.unsqueeze(-1).expand(-1, -1, hidden.shape[2])))
            if self.config.time_to_event_weight:
                moments |= self.time_to_event(state, truth_of(self, batch, index, real))
            if self.config.future_value_weight:
                moments |= self.future_value(state, values_of(self, batch, index, real))
        at = slice(1 if decoder else 0, None)
        if decoder:  # a state tells the token after its own
            asked, hidden = asked[:, at], hidden[:, :-1]
        # Looked up once: each indexing by a mask would have the host wait for a GPU.
        chosen = asked.nonzero(as_tuple=True)
        state = self.norm(hidden[chosen])
        phrase = batch["phrase"][:, at][chosen]
        out = {"phrase": phrase, **moments}
        if self.config.next_event_weight:
            out["nats"], out["right"] = self.judged(state, phrase)
        if self.config.next_value_weight:
            name = F.embedding(phrase, self.project(self.table))
            product = (self.next_value(state) * name).sum(-1).float()
            out["value"] = product / self.config.model_dim**0.5
            out["target_value"] = batch["value"][:, at][chosen]
            out["valued"] = batch["valued"][:, at][chosen]
        if self.config.next_time_weight:
            out["time"] = self.next_time(state).squeeze(-1).float()
            gap = batch["minute"].diff(dim=1).float().clamp(min=0)
            out["target_time"] = torch.log1p(gap[chosen])
        return out

    def judged(self, state: Tensor, phrase: Tensor) -> tuple[Tensor, Tensor]:
        """Return the sum of -log p(phrase) and the number of phrases that score highest, each [].

        Of many logits a chunk is made at a time, and made again for the gradient: those of 32
        patients of 512 tokens for 30,000 phrases would take 2 GB, and as much for their gradient.
        """
        rows = max(1, LOGITS // len(self.table))
        chunks = [*zip(state.split(rows), phrase.split(rows), strict=True)]
        again = len(chunks) > 1 and torch.is_grad_enabled()
        found = [
            checkpoint(self._judged, *chunk, use_reentrant=False) if again else self._judged(*chunk)
            for chunk in chunks
        ]
        nats, right = zip(*found, strict=True)
        return torch.stack(nats).sum(), torch.stack(right).sum()

    def _judged(self, state: Tensor, phrase: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.scores(state)
        right = (logits.argmax(-1) == phrase).sum().float()
        return F.cross_entropy(logits, phrase, reduction="sum"), right

    def scores(self, state: Tensor) -> Tensor:
        """Return the logits of the phrases, [N, P]."""
        scores = self.score(state)
        if self.config.head == "tied":
            # Products of E numbers each: their spread would grow with the root of E.
            scores = F.linear(scores / self.table.shape[1] ** 0.5, self.table, self.score_bias)
        return scores.float()

    def encode(self, batch: Batch, holes: Tensor | None = None) -> Tensor:
        """Return [B, T, D]; nothing of the tokens in `holes` [B, T] is seen but where they stand.

        An encoder with `cls` returns its vector before the tokens, [B, 1 + T, D].
        """
        config, mask = self.config, batch["mask"]
        hidden = self.embed(batch)
        if holes is not None:
            hidden = torch.where(holes.unsqueeze(-1), self.hole.to(hidden.dtype), hidden)
        hidden = self.dropout(self.placed(hidden, batch["minute"]))
        if hasattr(self, "cls"):
            hidden = torch.cat([self.cls.expand(hidden.shape[0], 1, -1), hidden], 1)
            mask = F.pad(mask, (1, 0), value=True)
        turns, causal = self.turns(hidden.shape[1], hidden.device), config.arch == "decoder"
        place = batch.get("place")
        return through(self.blocks, hidden, mask, causal=causal, turns=turns, real=place)

    def placed(self, hidden: Tensor, minute: Tensor, first: int = 0) -> Tensor:
        """Return tokens [B, T, D] with where they stand, the first of them at rank `first`."""
        config, end = self.config, first + hidden.shape[1]
        if "sinusoidal" in config.positions:
            hidden = hidden + sinusoids(end, config.model_dim, hidden.device)[first:]
        if "time" in config.positions:
            hidden = hidden + time_waves(minute, config.model_dim)
        return hidden

    def turns(self, end: int, device: torch.device, first: int = 0) -> Tensor | None:
        """Return the rotary angles of the ranks from `first` to before `end`; None without them."""
        if "rotary" not in self.config.positions:
            return None
        return rotary_turns(end, self.config.model_dim // self.config.n_heads, device)[first:]

    def projections(self) -> dict[str, Tensor]:
        """Return what each phrase adds to a token: `phrase`, `value` [P, D] and `gap` [G, D]."""
        made = {"phrase": self.project(self.table)}
        if self.config.value_channel:
            made["value"] = self.project_value(self.table)
        if self.config.gaps == "merged":
            made["gap"] = self.project_gap(self.table[self.first_gap :])
        return made

    def embed(self, batch: Batch, made: Mapping[str, Tensor] | None = None) -> Tensor:
        """Return the input of each token, [B, T, D]: projections are made once a phrase."""
        made = self.projections() if made is None else made
        phrase, gap = batch["phrase"], batch["gap"]
        hidden = F.embedding(phrase, made["phrase"])
        if "value" in made:
            hidden = hidden + F.embedding(phrase, made["value"]) * batch["value"].unsqueeze(-1)
        if "gap" in made:
            passed = F.embedding(gap.clamp(min=0), made["gap"])
            hidden = hidden + passed * (gap >= 0).unsqueeze(-1)
        return hidden

    def pool_scores(self, batch: Batch) -> Tensor:
        """Return how much each query of `attention` pooling looks at each token, [B, T, Q].

        A query asks by name, and for what is recent: the cosine of its vector and the phrase's,
        less a power of the hours before the patient's last token. Autocast would round cosines, and
        so move scores by hundredths.
        """
        with torch.autocast(self.table.device.type, enabled=False):
            phrases = F.normalize(self.table, dim=-1)
            by_name = SHARPNESS * phrases @ F.normalize(self.pool_query, dim=-1).T
        minute, mask = batch["minute"], batch["mask"]
        end = minute.masked_fill(~mask, -torch.inf).amax(1, keepdim=True)
        hours = torch.where(mask, (end - minute).float() / 60, 0.0)
        late = self.pool_recency * hours.log1p().unsqueeze(-1)
        return F.embedding(batch["phrase"], by_name) - late

    def window(self, batch: Batch, seed: int | None) -> Batch:
        """Return at most `max_length` tokens of each patient: the last, or from a random place."""
        limit, mask = self.config.max_length, batch["mask"]
        if mask.shape[1] <= limit:
            return batch
        spare = (mask.sum(1) - limit).clamp(min=0)
        start = spare
        if seed is not None and self.config.truncation == "random":
            draw = uniform(batch["subject_id"], seed, _WINDOW)
            start = (draw * (spare + 1)).long().clamp(max=spare)
        index = start[:, None] + torch.arange(limit, device=mask.device)
        return {k: v if v.ndim == 1 else v.gather(1, index) for k, v in batch.items()}

    def asked(self, batch: Batch, seed: int) -> Tensor:
        """Return which tokens of a window are predicted, bool [B, T]."""
        if self.config.arch == "decoder":
            return F.pad(batch["mask"][:, 1:], (1, 0))
        return self.holes(batch, seed)

    def holes(self, batch: Batch, seed: int) -> Tensor:
        """Return which tokens are hidden, bool [B, T]: a function of (seed, patient, place)."""
        mask = batch["mask"]
        place = torch.arange(mask.shape[1], device=mask.device)
        draw = uniform(combine(batch["subject_id"], seed, _MASK)[:, None], place)
        # Validation asks as much of every model, so that ratios can be compared by it.
        return (draw < (self.config.mask_ratio if self.training else VALIDATION_RATIO)) & mask


def fit_heads(model: EventTransformer, batch: Batch) -> None:
    """Fit on patients of train what the heads start from that are asked at moments."""
    fit_rates(model, batch)
    fit_values(model, batch)


def fit_rows(config: EventTransformerConfig) -> int:
    """Return how many rows of train `fit_heads` reads."""
    return FIT_ROWS if config.asks_moments else 0


def far_apart(table: Tensor, number: int) -> Tensor:
    """Return phrases far from each other, each twice, [number, E].

    The first is farthest from phrase 0, each next one from those chosen (Gonzalez 1985).
    """
    phrases = F.normalize(table, dim=-1)
    nearest = phrases @ phrases[0]
    chosen = []
    for _ in range(-(-number // 2)):
        chosen.append(int(nearest.argmin()))
        nearest = torch.maximum(nearest, phrases @ phrases[chosen[-1]])
    return table[chosen].repeat_interleave(2, 0)[:number].clone()
