"""The table of variable embeddings: one vector a code, never one an event."""

import zlib
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional as F

from ehr_ray.errors import InputError
from ehr_ray.events.vocabulary import Vocabulary
from ehr_ray.families.set_vae.config import SetConfig
from ehr_ray.nn.noise import normal
from ehr_ray.sources.expanded import embeddings_of
from ehr_ray.storage.paths import local


def embedding_table(config: SetConfig, vocabulary: Vocabulary) -> Tensor:
    """Return the frozen embeddings, float32 [V, E]: from the CSV if one is named, else random.

    A random row is a function of its code alone: the same in every vocabulary, so that weights
    carry over from one cohort to another. A checkpoint carries what is made of the table, so it
    loads where the CSV is gone.
    """
    if config.embedding_csv and (path := local(config.embedding_csv)).exists():
        return _from_table(path, vocabulary)
    keys = [zlib.crc32(code.encode()) | len(code) << 32 for code in vocabulary.codes] or [0]
    table = normal(torch.tensor(keys), config.embedding_width)
    return table / config.embedding_width**0.5


def reduced(table: Tensor, config: SetConfig) -> Tensor:
    """Return the direction of each variable: unit vectors float32 [V, R].

    A table wider than R is multiplied by a fixed random orthonormal matrix, which keeps angles
    (Johnson & Lindenstrauss 1984); a narrower one is padded with zeros, which keeps them exactly.
    """
    width = table.shape[1]
    if width > config.reduced:
        generator = torch.Generator().manual_seed(1)
        basis, _ = torch.linalg.qr(torch.randn(width, config.reduced, generator=generator))
        table = table @ basis
    return F.normalize(F.pad(table, (0, config.reduced - table.shape[1])), dim=-1)


def check_files(config: SetConfig) -> None:
    """Raise InputError where the CSV is missing: random vectors would silently stand in for it."""
    if config.embedding_csv and not local(config.embedding_csv).exists():
        raise InputError(
            f"model.embedding_csv={config.embedding_csv}: nothing there; check the path, or drop "
            "it for random embeddings"
        )


def _from_table(path: Path, vocabulary: Vocabulary) -> Tensor:
    folder = path.is_dir()
    frame = embeddings_of(path, vocabulary.codes) if folder else pd.read_csv(path)
    key = next((c for c in frame.columns if c.lower() in ("key", "variable", "code", "name")), None)
    key = frame.columns[0] if key is None else key
    numeric = frame.drop(columns=key).select_dtypes("number")
    numeric = numeric[[c for c in numeric.columns if not str(c).startswith("Unnamed")]]
    if numeric.empty or numeric.isna().any().any():
        raise InputError(f"{path}: expected a code column and numeric columns without blanks")
    for name, column in frame.drop(columns=key).select_dtypes(exclude=["number", "bool"]).items():
        if pd.to_numeric(column, errors="coerce").notna().mean() > 0.5:  # a dimension, not a note
            raise InputError(f"{path}: column {name!r} is partly text; correct or drop it")
    names = frame[key].astype(str)
    twice = names[names.duplicated()]
    if len(twice):
        raise InputError(f"{path}: {twice.iloc[0]!r} appears twice; keep one row a code")
    ids = pd.Series(np.arange(len(names)), index=names).reindex(list(vocabulary.codes))
    missing = ids.index[ids.isna()].tolist()
    if missing:
        raise InputError(
            f"{path}: no row for {len(missing)} codes, such as {missing[0]!r}; add them"
        )
    table = numeric.to_numpy(np.float32)[ids.astype(int).to_numpy()]
    nothing = ids.index[np.flatnonzero(~table.any(1))].tolist()
    if nothing:
        raise InputError(f"{path}: the row of {nothing[0]!r} is all zeros, which is no direction")
    return torch.from_numpy(table)
