"""Representation models of electronic health records on Ray."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ehr_ray.train.checkpoint import Loaded


def __getattr__(name: str) -> str:
    """Return `__version__`, read when it is asked for: it takes as long as the rest of `--help`."""
    if name != "__version__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib.metadata import version

    return version("ehr_ray")


def load(run: str) -> "Loaded":
    """Return a run's model (eval mode, CPU), experiment, vocabulary and family; needs no Ray.

    `run` is its folder or its URI, such as s3://bucket/runs/set_vae.
    """
    from ehr_ray.storage.sync import fetch_run
    from ehr_ray.train import checkpoint

    return checkpoint.load(fetch_run(run))
