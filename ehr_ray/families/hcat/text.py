"""What the semantic modality's codes mean, as sentence embeddings: frozen, one a code."""

from pathlib import Path
from typing import Final

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from ehr_ray.errors import InputError
from ehr_ray.events.hashed_text import HASHED_WIDTH, HASHING, hashed
from ehr_ray.events.modalities import layout_of
from ehr_ray.events.options import MODALITIES
from ehr_ray.events.phrases import phrases_of
from ehr_ray.events.vocabulary import Vocabulary
from ehr_ray.families.hcat.config import HCATConfig

SEMANTIC: Final = MODALITIES.index("semantic")


def phrase_texts(config: HCATConfig, vocabulary: Vocabulary) -> list[str]:
    """Return the phrase of each code of the semantic modality, in the order of its columns."""
    phrases = phrases_of(vocabulary)
    return [phrases[i] for i in layout_of(vocabulary, config.codes).columns[SEMANTIC]]


def phrase_table(config: HCATConfig, vocabulary: Vocabulary) -> Tensor | None:
    """Return the embeddings of those phrases, float32 [D, E], of norm 1; None without a text model.

    Where the folder of a trained model is gone it is zeros, for the checkpoint's own to fill.
    """
    if config.text_model is None:
        return None
    texts = phrase_texts(config, vocabulary)
    path = Path(config.phrases or ".") / "table.safetensors"
    if config.phrases and path.is_file():
        table = load_file(path)["table"].float()
        if len(table) != len(texts):
            raise InputError(
                f"model.phrases={config.phrases}: {len(table)} phrases, but this cohort has "
                f"{len(texts)} semantic codes; drop the key and training makes them"
            )
    elif config.text_model == HASHING:
        table = torch.from_numpy(hashed(texts, config.embedding_dim or HASHED_WIDTH))
    else:
        return torch.zeros(len(texts), config.embedding_dim or HASHED_WIDTH)
    return F.normalize(table - table.mean(0), dim=-1) if len(table) else table


def check_files(config: HCATConfig) -> None:
    """Raise InputError where a fresh run names a text model and has no phrases by it."""
    if config.text_model in (None, HASHING):
        return
    if not config.phrases or not (Path(config.phrases) / "table.safetensors").is_file():
        raise InputError(
            f"model.phrases={config.phrases}: no table there; train by `ehr-ray train`, which "
            "embeds the phrases first, or use model.text_model=hashing"
        )
