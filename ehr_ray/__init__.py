"""Representation models of electronic health records on Ray."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ehr_ray.train.run_model import RunModel


def __getattr__(name: str) -> str:
    """Return `__version__`, read when it is asked for: it takes as long as the rest of `--help`."""
    if name != "__version__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib.metadata import version

    return version("ehr_ray")


def load(run: str) -> "RunModel":
    """Return the model of a run, or of what `ehr-ray export` wrote; needs no Ray.

    `run` is its folder or its URI, such as s3://bucket/runs/set_vae. The model is on CPU, in eval
    mode, with its `experiment`, `vocabulary` and `family`; `embed` and `predict` read tables of
    MEDS events.
    """
    from ehr_ray.storage.runs import fetch_run
    from ehr_ray.train.run_model import load_run

    return load_run(fetch_run(run))
