"""The table of phrase embeddings: one vector a phrase, never one an event."""

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from ehr_ray.errors import ConfigError, InputError
from ehr_ray.events.hashed_text import HASHED_WIDTH, HASHING, hashed
from ehr_ray.events.phrases import Lookups, read_lookup
from ehr_ray.events.vocabulary import Vocabulary
from ehr_ray.families.event_transformer.config import EventTransformerConfig
from ehr_ray.families.event_transformer.data import token_book
from ehr_ray.families.event_transformer.future_value import value_axes
from ehr_ray.families.event_transformer.time_to_event import code_axes
from ehr_ray.family import Axis
from ehr_ray.storage.paths import local

TABLE = "table.safetensors"


def phrase_texts(config: EventTransformerConfig, vocabulary: Vocabulary) -> list[str]:
    """Return the text of every phrase id of a config, with the user's lookups."""
    lookups = Lookups(
        medical=read_lookup(config.medical_lookup, "model.medical_lookup"),
        lab=read_lookup(config.lab_lookup, "model.lab_lookup"),
    )
    return token_book(vocabulary, config.token_options).texts(lookups)


def phrase_table(config: EventTransformerConfig, vocabulary: Vocabulary) -> Tensor:
    """Return the frozen table a model starts from, float32 [P, E], scaled for a linear layer.

    Sentence embeddings share a large mean, which would drown what tells phrases apart: it is
    taken off, and rows get norm sqrt(E). Where the folder is gone it is zeros of the right shape,
    for a checkpoint's own table to fill; a fresh run is kept from that by `check_files`.
    """
    size = len(token_book(vocabulary, config.token_options))
    if config.phrases and (local(config.phrases) / TABLE).is_file():
        table = load_file(local(config.phrases) / TABLE)["table"].float()
        if len(table) != size:
            raise InputError(
                f"model.phrases={config.phrases}: {len(table)} phrases, but this cohort and these "
                f"options have {size}; run `ehr-ray phrases` again with this config"
            )
        if config.embedding_dim not in (None, table.shape[1]):
            raise ConfigError(
                f"model.embedding_dim={config.embedding_dim}: the phrases in {config.phrases} have "
                f"{table.shape[1]}; drop embedding_dim or choose another text model"
            )
    elif config.text_model == HASHING and _lookups_there(config):
        width = config.embedding_dim or HASHED_WIDTH
        table = torch.from_numpy(hashed(phrase_texts(config, vocabulary), width))
    else:
        return torch.zeros(size, config.embedding_dim or HASHED_WIDTH)
    return F.normalize(table - table.mean(0), dim=-1) * table.shape[1] ** 0.5


def axes(config: EventTransformerConfig, vocabulary: Vocabulary) -> dict[str, Axis]:
    """Return which phrase each score of the head is of, without any lookup's names."""
    phrases = Axis(0, tuple(token_book(vocabulary, config.token_options).texts()))
    by_phrase = {"plain": ("score.weight", "score.bias"), "tied": ("score_bias",), "none": ()}
    scores = by_phrase[config.head] if config.next_event_weight else ()
    of_codes = {**code_axes(config, vocabulary), **value_axes(config, vocabulary)}
    return {**dict.fromkeys(scores, phrases), **of_codes}


def check_files(config: EventTransformerConfig) -> None:
    """Raise InputError where a fresh run has no phrases to start from."""
    for name in ("medical_lookup", "lab_lookup"):
        read_lookup(getattr(config, name), f"model.{name}")
    if config.phrases and not (local(config.phrases) / TABLE).is_file():
        raise InputError(
            f"model.phrases={config.phrases}: no {TABLE} there; make it with `ehr-ray phrases "
            "CONFIG`, or drop the key and training makes it"
        )
    if not config.phrases and config.text_model != HASHING:
        raise InputError(
            f"model.phrases: not given, and model.text_model={config.text_model} is not run here; "
            "train by `ehr-ray train`, which embeds the phrases first, or use text_model hashing"
        )


def _lookups_there(config: EventTransformerConfig) -> bool:
    return all(p is None or Path(p).is_file() for p in (config.medical_lookup, config.lab_lookup))
