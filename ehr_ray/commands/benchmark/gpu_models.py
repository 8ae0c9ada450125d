"""What `benchmark --only gpu` trains: each family tiny and as large as published, no dropout.

Without dropout a step is a function of its noise seed, so that a GPU and a CPU take the same one.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn

from ehr_ray.events.vocabulary import Vocabulary
from ehr_ray.experiment import Experiment, parse
from ehr_ray.family import AnyFamily
from ehr_ray.train.loader import Loader
from ehr_ray.train.start import fit_buffers

_TOKENS = {"text_model": "hashing", "dropout": 0.0}
_SETS = {"reduced": 256, "width": 256, "latent": 256, "levels": 2, "heads": 2, "inducing": 16}
_FEW_SETS = {"embedding_width": 32, "reduced": 32, "width": 32, "latent": 8, "heads": 2}
_DAY = {"arch": "conv", "first_hour": 0, "last_hour": 47, "trend_bins": 16}
_HCAT = {
    "dropout": 0.0,
    "landmark_hours": 24,
    "codes": {
        "clinical": ["Age", "Gender.*", "Height", "ICUType.*", "Weight"],
        "temporal": ["HR", ".*ABP", "MAP", "RespRate", "SaO2"],
        "pathological": ["Creatinine", "BUN", "HCO3", "Na", "K", "Mg"],
        "semantic": ["GCS", "Urine"],
        "spatial": ["Glucose", "WBC", "HCT", "Platelets"],
    },
    "survival": {"name": "next_ph", "event": ["pH"], "end": ["HR"], "horizon_days": 1.2},
    "recurrence": {"name": "next_temp", "event": ["Temp"], "end": ["HR"], "horizon_days": 1.1},
    "censoring_weight": False,
}
MODELS: Final[Mapping[str, Mapping[str, dict[str, Any]]]] = {
    "set_vae": {
        "tiny": {**_FEW_SETS, "sets_per_patient": 4},
        "published": {**_SETS, "sets_per_patient": None},
    },
    "seqset_poe": {
        "tiny": {
            **_FEW_SETS,
            "prior_width": 16,
            "prior_layers": 1,
            "prior_heads": 2,
            "decode_sets": 4,
        },
        "published": {
            **_SETS,
            "prior_width": 256,
            "prior_layers": 4,
            "prior_heads": 8,
            "decode_sets": None,
        },
    },
    "event_transformer": {
        "tiny": {**_TOKENS, "embedding_dim": 64, "model_dim": 32, "n_heads": 4, "n_layers": 2},
        "published": {
            **_TOKENS,
            "embedding_dim": 384,
            "model_dim": 512,
            "n_heads": 8,
            "n_layers": 6,
        },
    },
    "jepa": {
        "tiny": {
            "width": 32,
            "depth": 2,
            "heads": 2,
            "predictor_width": 16,
            "predictor_depth": 1,
        },
        "published": {"preset": "base", "dropout": 0.0},
        "large": {"preset": "large", "dropout": 0.0},
    },
    "vitals_vae": {
        "tiny": {**_DAY, "latent": 8, "width": 16, "stem": 8},
        "published": {"arch": "conv"},
    },
    "hcat": {"tiny": {**_HCAT, "preset": "tiny"}, "published": {**_HCAT, "preset": "published"}},
}
"""The model section of each family at each size it has."""
BATCHES: Final[Mapping[tuple[str, str], int]] = {
    ("jepa", "published"): 1024,
    ("jepa", "large"): 512,
    ("vitals_vae", "published"): 1024,
    ("hcat", "published"): 1024,
}
"""Patients of a GPU's step where they are not `BATCH`: its work is to outlast the host's."""
BATCH: Final = 256
BUCKET: Final = 2
"""Batches whose patients are sorted by length together: few, so that an epoch has shapes that the
one before had not, as one of a cohort of many buckets has."""


def started(
    plan: Experiment, family: AnyFamily, vocabulary: Vocabulary, loader: Loader
) -> nn.Module:
    """Return the model as a run starts with it: with what its family fits on train."""
    torch.manual_seed(plan.seed)
    model: nn.Module = family.build(plan.model, vocabulary)
    fit_buffers(family, plan.model, model, loader)
    return model


def experiments(
    cohort: Path, place: Path, sizes: Sequence[str], batch_size: int | None = None
) -> Iterator[tuple[str, str, Experiment]]:
    """Yield family, size and experiment: float32, one report at the end of two epochs.

    Sizes come in the order given; without a batch size it is that of a GPU.
    """
    for size in sizes:
        for family in MODELS:
            if size in MODELS[family]:
                batch = batch_size or BATCHES.get((family, size), BATCH)
                yield family, size, experiment(family, size, cohort, place, batch)


def experiment(
    family: str, size: str, cohort: Path, place: Path, batch_size: int, **train: Any
) -> Experiment:
    """Return the experiment of a family at a size; `train` adds to its section.

    Half of the machine's cores collate, eight at most.
    """
    threads = max(1, min(8, (os.cpu_count() or 1) // 2))
    return parse(
        {
            "family": family,
            "name": f"{family}-{size}",
            "output": str(place / "runs"),
            "model": MODELS[family][size],
            "data": {
                "cohort": str(cohort.absolute()),
                "batch_size": batch_size,
                "bucket_batches": BUCKET,
                "collate_threads": threads,
            },
            "train": {"max_epochs": 2, "lr": 1e-3, "warmup_steps": 5, **train},
            "tracking": {"experiment": None},
        }
    )
