"""Events to five tokens: standardised columns, a fixed projection, presence and quality.

B patients, V codes, 5 modalities, 512 wide.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ehr_ray.events.modalities import layout_of, projection
from ehr_ray.events.options import MODALITIES
from ehr_ray.events.vocabulary import Vocabulary
from ehr_ray.families.hcat.config import HCATConfig
from ehr_ray.families.hcat.text import SEMANTIC, phrase_table
from ehr_ray.family import Axis, Batch


def axes(config: HCATConfig, vocabulary: Vocabulary) -> dict[str, Axis]:
    """Return which column each row of a projection turns, in the order of `Tokenizer.forward`.

    What is learned reads tokens, so a column must be turned as it was when that was learned.
    """
    layout = layout_of(vocabulary, config.codes)
    found = {}
    for place, name in enumerate(MODALITIES):
        values = [vocabulary.codes[i] for i in layout.columns[place]]
        marks = [f"no {vocabulary.codes[i]}" for i in layout.marked[place]]
        more = config.embedding_dim or 0 if config.text_model and place == SEMANTIC else 0
        names = (*values, *marks, *(f"phrase {i}" for i in range(more)))
        found[f"tokenizer.projection_{name}"] = Axis(0, names)
    return found


@dataclass(frozen=True)
class Tokens:
    """What is known of each modality.

    `value` [B, 5, 512], 0 where missing; `present` bool [B, 5]; `quality` [B, 5], the share of its
    columns that were observed, or as stated; `spread` [B, 5], the mean standard deviation of a
    column over the tiles, slides or repeats of a patient.
    """

    value: Tensor
    present: Tensor
    quality: Tensor
    spread: Tensor

    def only(self, visible: Tensor) -> "Tokens":
        """Return the same with all but the visible modalities missing."""
        kept = visible & self.present
        return Tokens(
            self.value * kept.unsqueeze(-1), kept, self.quality * kept, self.spread * kept
        )


class Tokenizer(nn.Module):
    """Columns to tokens; nothing here is trained, all of it is fitted on train."""

    meaning: Tensor | None

    def __init__(self, config: HCATConfig, vocabulary: Vocabulary) -> None:
        super().__init__()
        self.layout = layout_of(vocabulary, config.codes)
        self.num_codes = len(vocabulary)
        self.register_buffer("meaning", phrase_table(config, vocabulary))
        for place, name in enumerate(MODALITIES):
            more = 0 if self.meaning is None or place != SEMANTIC else self.meaning.shape[1]
            matrix = torch.from_numpy(projection(self.layout, place, vocabulary, more))
            self.register_buffer(f"projection_{name}", matrix)
            ids = self.layout.columns[place]
            chosen = {"columns": ids, "marked": self.layout.marked[place]}
            chosen["valued"] = ids[self.layout.valued[ids]]
            for kind, columns in chosen.items():
                buffer = torch.from_numpy(columns)
                self.register_buffer(f"{kind}_{name}", buffer, persistent=False)

    def forward(self, batch: Batch) -> Tokens:
        """Return the tokens of a batch; in float32, since they are targets too."""
        with torch.autocast(batch["value"].device.type, enabled=False):
            return self._tokens(batch)

    def _tokens(self, batch: Batch) -> Tokens:
        mean, count, variance = self.columns(batch)
        there = count > 0
        values, present, quality, spread = [], [], [], []
        for place, name in enumerate(MODALITIES):
            ids, marked = self.get_buffer(f"columns_{name}"), self.get_buffer(f"marked_{name}")
            seen = there[:, ids].any(1)
            parts = [mean[:, ids], (~there[:, marked]).float()]
            if place == SEMANTIC and self.meaning is not None:
                said = there[:, ids].float()
                parts.append(said @ self.meaning / said.sum(1, keepdim=True).clamp(min=1))
            columns = torch.cat(parts, 1)
            matrix = self.get_buffer(f"projection_{name}")
            values.append((columns @ matrix) * seen.unsqueeze(-1))
            present.append(seen)
            quality.append(self._quality(place, mean, there, seen))
            spread.append(self._spread(place, mean, count, variance, ids))
        return Tokens(*(torch.stack(part, 1) for part in (values, present, quality, spread)))

    def present(self, batch: Batch) -> Tensor:
        """Return which modalities have a column observed, bool [B, 5], as `forward` does."""
        there = self.columns(batch)[1] > 0
        names = (f"columns_{name}" for name in MODALITIES)
        return torch.stack([there[:, self.get_buffer(name)].any(1) for name in names], 1)

    def columns(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Return mean, number and variance of each code's values of each patient, [B, V]."""
        shape = (batch["subject_id"].shape[0], self.num_codes)
        where = batch["row"] * self.num_codes + batch["code"]
        value = batch["value"]
        zeros = value.new_zeros(shape[0] * shape[1])
        count = zeros.index_add(0, where, torch.ones_like(value))
        mean = zeros.index_add(0, where, value) / count.clamp(min=1)
        apart = (value - mean[where]).square()
        variance = zeros.index_add(0, where, apart) / count.clamp(min=1)
        return mean.view(shape), count.view(shape), variance.view(shape)

    def _quality(self, place: int, mean: Tensor, there: Tensor, seen: Tensor) -> Tensor:
        stated = int(self.layout.quality[place])
        valued = self.get_buffer(f"valued_{MODALITIES[place]}")
        share = there[:, valued].float().mean(1) if len(valued) else torch.ones_like(mean[:, 0])
        if stated >= 0:
            share = torch.where(there[:, stated], mean[:, stated], share)
        return share * seen

    def _spread(
        self, place: int, mean: Tensor, count: Tensor, variance: Tensor, ids: Tensor
    ) -> Tensor:
        stated = int(self.layout.spread[place])
        if stated >= 0:
            return mean[:, stated]
        several = (count[:, ids] > 1).float()
        total = (variance[:, ids].clamp(min=0).sqrt() * several).sum(1)
        return total / several.sum(1).clamp(min=1)
