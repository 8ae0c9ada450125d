"""The `vae` section of the published vitals pipeline, read as a config of this package.

Kernels in `scales` stand for the branches that begin with them. The objective stays this package's
likelihood: `free_bits` and `beta` mean what they mean there, nats a dimension and a factor. A cycle
of beta is one of `mean_share` too, and what its text says beside the section holds: 64 a batch.
"""

from collections.abc import Mapping
from typing import Any, Final

from ehr_ray.config.messages import unknown
from ehr_ray.errors import ConfigError

Raw = dict[str, Any]
SECTION: Final = "vae"
FAMILY: Final = "vitals_vae"
ARCHS: Final = {"multiscale_conv1d": "conv", "lstm": "lstm"}
MODEL: Final = {"latent_dim": "latent", "base_channels": "width"}
TRAIN: Final = {"epochs": "max_epochs", "patience": "patience", "learning_rate": "lr"}
KNOWN: Final = (
    *("model_type", "scales", "beta", "beta_warmup_epochs", "cyclical_period", "free_bits"),
    *("batch_size", *MODEL, *TRAIN),
)
BATCH: Final = 64
BRANCHES: Final = {3: "local", 15: "hourly", 63: "daily", 255: "multiday"}
"""First kernel of each branch of the design."""


def is_published_vae(raw: Mapping[str, Any]) -> bool:
    """Whether a config has the section of the other pipeline."""
    return isinstance(raw.get(SECTION), Mapping) and "family" not in raw


def translated_vae(raw: Mapping[str, Any], branches: Mapping[str, Any]) -> Raw:
    """Return the config in this package's keys; `branches` are the default scales by name."""
    theirs = dict(raw[SECTION])
    if bad := [unknown(f"{SECTION}.{key}", key, KNOWN) for key in theirs if key not in KNOWN]:
        raise ConfigError("; ".join(bad))
    kind = theirs.get("model_type", "multiscale_conv1d")
    if kind not in ARCHS:
        raise ConfigError(f"{SECTION}.model_type: {kind!r} is none of {', '.join(ARCHS)}")
    model: Raw = {"arch": ARCHS[kind]} | _renamed(theirs, MODEL)
    if "scales" in theirs:
        model["scales"] = [branches[name] for name in _named(theirs["scales"])]
    schedules: Raw = {k: theirs[k] for k in ("free_bits",) if k in theirs}
    if beta := _beta(theirs):
        schedules["beta"] = beta
    if (period := theirs.get("cyclical_period")) is not None:
        schedules["mean_share"] = {"epochs": period}
    mine: Raw = {
        "family": FAMILY,
        "name": FAMILY,
        "model": model,
        "schedules": schedules,
        "train": _renamed(theirs, TRAIN),
        "data": {"batch_size": theirs.get("batch_size", BATCH)},
    }
    ours = {key: value for key, value in raw.items() if key != SECTION}
    both = {k: {**mine[k], **ours[k]} for k in mine if isinstance(ours.get(k), Mapping)}
    return {**mine, **ours, **both}


def _renamed(section: Raw, names: Mapping[str, str]) -> Raw:
    return {new: section[old] for old, new in names.items() if old in section}


def _named(kernels: Any) -> list[str]:
    found = kernels if isinstance(kernels, list) else [kernels]
    for kernel in found:
        if kernel not in BRANCHES:
            known = ", ".join(map(str, BRANCHES))
            raise ConfigError(
                f"{SECTION}.scales: no branch begins with kernel {kernel!r}; there are {known}, or "
                "give layers in model.scales"
            )
    return [BRANCHES[kernel] for kernel in found]


def _beta(section: Raw) -> Raw:
    """Return the cycle of beta: `beta_warmup_epochs` of each `cyclical_period` it rises."""
    beta: Raw = {"end": section["beta"]} if "beta" in section else {}
    period, rise = section.get("cyclical_period"), section.get("beta_warmup_epochs")
    if period is not None:
        beta["epochs"] = period
        if rise is not None:
            beta["ramp_ratio"] = float(rise) / float(period)
    elif rise is not None:
        beta |= {"kind": "ramp", "end": section.get("beta", 1.0), "epochs": rise}
    return beta
