"""Configs with the keys of the published embedded-events pipeline, read as this package's own.

Its sections are `model`, `data` and `training`, one file a stage. What has no place here is left
out: sizes that follow from the cohort (`vocab_size`), threads of its loader, paths of its files.
"""

from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from ehr_ray.errors import ConfigError

Raw = dict[str, Any]
ARCHS = {"transformer_encoder_embedded": "encoder", "transformer_decoder_embedded": "decoder"}
MODEL = {
    "name": "text_model",
    "model_name": "text_model",
    "context_length": "max_length",
    "max_length": "max_length",
    "embedding_dim": "embedding_dim",
    "model_dim": "model_dim",
    "n_heads": "n_heads",
    "n_layers": "n_layers",
    "dropout": "dropout",
    "pooling": "pooling",
}
DATA = {"medical_lookup_filepath": "medical_lookup", "lab_lookup_filepath": "lab_lookup"}
TRAIN = {
    "epochs": "max_epochs",
    "learning_rate": "lr",
    "weight_decay": "weight_decay",
    "early_stopping_patience": "patience",
}
TASK = "case"
"""The label the source `tokenised` makes of `is_case`."""


def is_foreign(raw: Mapping[str, Any]) -> bool:
    """Whether a config has the keys of the other pipeline."""
    model = raw.get("model")
    known = isinstance(model, Mapping) and ({"type", "name", "model_name"} & set(model))
    return bool(known) and "family" not in raw


def translated(raw: Mapping[str, Any]) -> Raw:
    """Return the config in this package's keys; one that has them already as it is."""
    if not is_foreign(raw):
        return dict(raw)
    model, data, training = (dict(raw.get(key) or {}) for key in ("model", "data", "training"))
    kind = model.get("type", "transformer_decoder_embedded")
    if kind not in ARCHS:
        raise ConfigError(f"model.type: {kind!r} is none of {', '.join(ARCHS)}")
    ours: Raw = {new: model[old] for old, new in MODEL.items() if old in model}
    ours |= {new: data[old] for old, new in DATA.items() if old in data}
    ours["arch"] = ARCHS[kind]
    if isinstance(ours.get("pooling"), str):
        ours["pooling"] = [ours["pooling"]]
    train: Raw = {new: training[old] for old, new in TRAIN.items() if old in training}
    folder = PurePath(str(training.get("output_dir") or "runs/event_transformer"))
    result: Raw = {
        "family": "event_transformer",
        "name": folder.name,
        "output": str(folder.parent),
        "init_from": training.get("pretrained_checkpoint"),
        "model": ours,
        "data": {k: data[k] for k in ("cohort", "min_code_count") if k in data},
        "train": train,
    }
    if "batch_size" in training:
        result["data"]["batch_size"] = training["batch_size"]
    classify = "num_classes" in model or training.get("task") == "classification"
    if classify:
        _classification(model, training, result)
    else:
        train |= {"lr_schedule": "cosine", "warmup_steps": 0}
        lowest = training.get("min_learning_rate")
        if lowest is not None and "lr" in train:
            train["min_lr_ratio"] = float(lowest) / float(train["lr"])
    sections = ("model", "data", "training", "wandb", "device", "name")
    return {**{k: v for k, v in raw.items() if k not in sections}, **_merged(result, raw)}


def _classification(model: Raw, training: Raw, result: Raw) -> None:
    classes = int(model.get("num_classes", 2))
    if classes != 2:
        raise ConfigError(f"model.num_classes={classes}: tasks here have two classes")
    result["model"]["head"] = "none"
    result["task"] = {"name": TASK, "select": "f1"}
    weights = training.get("class_weights")
    if weights is not None:
        result["task"]["class_weight"] = float(weights[1]) / float(weights[0])
    patience = training.get("scheduler_patience", 3)
    plateau = {"lr_schedule": "plateau", "plateau_patience": patience, "warmup_steps": 0}
    result["train"] |= {**plateau, "min_lr_ratio": 0.0}


def _merged(result: Raw, raw: Mapping[str, Any]) -> Raw:
    """Let sections of our own beside the others', an override `train.lr=...` for one, win."""
    merged = dict(result)
    for key in ("train", "task"):
        if isinstance(raw.get(key), Mapping):
            merged[key] = {**result.get(key, {}), **raw[key]}
    for key in ("output", "init_from"):
        if raw.get(key) is not None:
            merged[key] = raw[key]
    if isinstance(raw.get("name"), str):
        merged["name"] = raw["name"]
    return merged
