"""What HCAT leaves in its own formats: five modality files, and the summary of a training."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
import torch

from ehr_ray.events.modality_h5 import LABELS, write_modality
from ehr_ray.events.options import MODALITIES
from ehr_ray.events.patients import Patient
from ehr_ray.events.vocabulary import Vocabulary
from ehr_ray.families.hcat.config import HCATConfig, Size
from ehr_ray.families.hcat.data import collate, transform
from ehr_ray.families.hcat.tokenizer import Tokenizer, Tokens
from ehr_ray.family import Batch

SUMMARY: Final = "enhanced_hcat_training_summary.json"
CHUNK: Final = 64


@torch.no_grad()
def export(
    patients: Iterable[Patient], config: HCATConfig, vocabulary: Vocabulary, path: Path
) -> int:
    """Write `clinical.h5`, ..., `spatial.h5` to a folder; return the number of patients.

    Tokens are encoded by statistics of train alone. The spatial file has a row for each group of
    its codes (a stain, the densities) as a slide; their mean, by patches, is the patient's token.
    """
    tokenizer = Tokenizer(config, vocabulary)
    rows = [transform(patient, config, vocabulary) for patient in patients]
    parts = [rows[i : i + CHUNK] for i in range(0, len(rows), CHUNK)]
    batches = [collate(part, config) for part in parts]
    tokens = [tokenizer(batch) for batch in batches]
    ids = np.concatenate([batch["subject_id"].numpy() for batch in batches]).astype(str)
    label = torch.cat([batch["label"] for batch in batches]).numpy().astype(np.int8)
    for place, name in enumerate(MODALITIES):
        value, present, quality = (
            torch.cat([getattr(t, key)[:, place] for t in tokens]).numpy()
            for key in ("value", "present", "quality")
        )
        file = path / f"{name}.h5"
        if name == "spatial":
            write_modality(file, _slides(tokenizer, vocabulary, batches, tokens))
            continue
        kept = np.ones(len(ids), bool) if name == "clinical" else present
        sets: dict[str, Any] = {
            "patient_id": ids[kept],
            "embedding_512": value[kept],
            "quality_score": quality[kept],
        }
        if name == "clinical":
            for key, outcome, column in zip(LABELS, config.outcomes, label.T, strict=True):
                sets[key] = column
                sets[f"{key.split('_')[0]}_known_mask"] = (column >= 0).astype(np.int8)
                sets[f"{key}_positive"] = outcome.describes
        columns = tokenizer.layout.columns[place]
        sets["orig_feature_names"] = np.array([vocabulary.codes[i] for i in columns], object)
        write_modality(file, sets)
    return len(ids)


def _slides(
    tokenizer: Tokenizer, vocabulary: Vocabulary, batches: Sequence[Batch], tokens: Sequence[Tokens]
) -> dict[str, Any]:
    """Return the datasets of the spatial file, a row a slide."""
    place = MODALITIES.index("spatial")
    ids = tokenizer.layout.columns[place]
    matrix = tokenizer.get_buffer("projection_spatial")[: len(ids)]
    names = np.array([vocabulary.codes[i].rpartition("//")[0] for i in ids])
    found: dict[str, list[Any]] = {
        key: [] for key in ("patient_id", "slide", "mean", "var", "n_patches", "quality_score")
    }
    for batch, token in zip(batches, tokens, strict=True):
        mean, count, variance = (x[:, ids] for x in tokenizer.columns(batch))
        groups = {name: np.flatnonzero(names == name) for name in np.unique(names)}
        patches = {name: count[:, at].amax(1) for name, at in groups.items()}
        total = torch.stack(list(patches.values())).sum(0) if patches else None
        for name, at in groups.items():
            there = patches[name] > 0
            assert total is not None
            scale = (total / patches[name].clamp(min=1))[there].unsqueeze(1)
            part = matrix[at]
            found["patient_id"].append(batch["subject_id"][there].numpy().astype(str))
            found["slide"].append(np.full(int(there.sum()), name, object))
            found["mean"].append((mean[there][:, at] @ part * scale).numpy())
            found["var"].append((variance[there][:, at] @ part.square() * scale.square()).numpy())
            found["n_patches"].append(patches[name][there].numpy())
            found["quality_score"].append(token.quality[there, place].numpy())
    joined = {key: np.concatenate(parts) for key, parts in found.items() if parts}
    joined["patient_index_map"] = joined["patient_id"]
    joined["embedding_mean_512"] = joined.pop("mean")
    joined["embedding_var_512"] = joined.pop("var")
    return joined


def run_metadata(
    experiment: Mapping[str, Any], history: pd.DataFrame, subjects: Mapping[str, Sequence[int]]
) -> Mapping[str, Any]:
    """Return the published summary of a training, by file name, with what it leaves out.

    `experiment` is its plain data, `subjects` are those of train and tuning. F1 is at 0.5, AUROC
    of probabilities; `positive` says what either is of.
    """
    model, train = experiment["model"], experiment["train"]
    size = HCATConfig(**{name: model[name] for name in ("preset", *Size._fields)}).size

    def best(metric: str) -> float:
        return float(history[f"val/{metric}"].max())

    def curve(metric: str) -> list[float]:
        return [float(value) for value in history[metric]]

    names = ("surv", "rec", "avg")
    told = {
        "n_patients": sum(len(ids) for ids in subjects.values()),
        "seed": experiment["seed"],
        "positive": {model[k]["name"]: model[k]["positive"] for k in ("survival", "recurrence")},
        "splits": {name: list(ids) for name, ids in subjects.items()},
        "alphas": {k: v for k, v in model.items() if k.startswith("alpha_")},
        "best_metrics": {
            f"{name}_{metric}": best(f"{metric}_{name}")
            for metric in ("f1", "auc")
            for name in names
        },
        "history": {
            "train_loss": curve("train/objective"),
            **{
                f"val_{name}_{metric}": curve(f"val/{metric}_{name}")
                for metric in ("f1", "auc")
                for name in names
            },
        },
        "model_config": {
            "d_model": size.width,
            "n_heads": size.heads,
            "n_global_layers": size.global_layers,
            "dropout": model["dropout"],
            "use_advanced_imputation": model["missing"] == "impute",
            "n_impute_iterations": model["impute_iterations"],
        },
        "training_config": {
            "epochs": train["max_epochs"],
            "batch_size": experiment["data"]["batch_size"],
            "learning_rate": train["lr"],
            "weight_decay": train["weight_decay"],
            "moddrop": model["moddrop"],
            "emb_noise": model["emb_noise"],
        },
    }
    return {SUMMARY: told}
