"""Configs with the keys of the published embedded-events pipeline, read as this package's own.

Its sections are `model`, `data` and `training`, one file a stage, beside `device` and `wandb`. What
has no place here is left out, and is listed: sizes that follow from the cohort (`vocab_size`),
threads of its loader, the files an ingest reads. Any other key is ours, or is refused.
"""

from collections.abc import Iterable, Mapping
from pathlib import PurePath
from typing import Any

from ehr_ray.config.messages import unknown
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
CACHE = "embedding_output_dir"
"""Where a stage leaves embeddings and the next one finds them: our disk cache."""
TRAIN = {
    "epochs": "max_epochs",
    "learning_rate": "lr",
    "weight_decay": "weight_decay",
    "early_stopping_patience": "patience",
    "save_every": "keep_epochs",
}
LEFT_OUT = {
    "model": ("type", "num_classes", "vocab_size"),
    "data": ("data_dir", "vocab_filepath", "labels_filepath", "vocab_embedding_path"),
    "training": ("num_workers",),
}
"""Keys that are read elsewhere or need no place: sizes of the cohort, files of its ingest."""
TRAINING = (
    *("task", "output_dir", "pretrained_checkpoint", "batch_size", "eval_batch_size"),
    *("min_learning_rate", "scheduler_patience", "class_weights"),
)
"""Further keys of `training`."""
TASKS = ("autoregressive", "classification")
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
    _check(training)
    ours = _left(model, (*MODEL, *LEFT_OUT["model"]))
    ours |= {new: model[old] for old, new in MODEL.items() if old in model}
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
        "data": _left(data, (*DATA, *LEFT_OUT["data"], CACHE)),
        "train": train,
        "cluster": _device(raw.get("device", "cpu")),
    }
    result["data"] |= {k: training[k] for k in ("batch_size", "eval_batch_size") if k in training}
    if CACHE in data:
        result["data"].setdefault("cache_dir", data[CACHE])
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


def _left(section: Raw, known: Iterable[str]) -> Raw:
    """Return the keys of a section that are none of the other pipeline's: ours, or wrong."""
    return {key: value for key, value in section.items() if key not in known}


def _check(training: Raw) -> None:
    """Raise ConfigError for what the other pipeline's `training` does not know either."""
    known = (*TRAIN, *TRAINING, *LEFT_OUT["training"])
    if bad := [unknown(f"training.{key}", key, known) for key in _left(training, known)]:
        raise ConfigError("; ".join(bad))
    if (task := training.get("task", TASKS[0])) not in TASKS:
        raise ConfigError(f"training.task: {task!r} is none of {', '.join(TASKS)}")


def _device(name: Any) -> Raw:
    """Return our resources of `device`."""
    kind = str(name).partition(":")[0]
    if kind not in ("cpu", "cuda"):
        raise ConfigError(f"device: {name!r} is neither cpu nor cuda")
    return {"gpus_per_worker": int(kind == "cuda")}


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
    for key in ("train", "task", "cluster"):
        if isinstance(raw.get(key), Mapping):
            merged[key] = {**result.get(key, {}), **raw[key]}
    for key in ("output", "init_from"):
        if raw.get(key) is not None:
            merged[key] = raw[key]
    if isinstance(raw.get("name"), str):
        merged["name"] = raw["name"]
    return merged
