from pathlib import Path

import pytest

from ehr_ray.commands.ingest import ingest
from ehr_ray.experiment import Experiment, load

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def cohort(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("cohorts") / "synthetic"
    ingest("synthetic", None, path, options={"patients": 120})
    return path


@pytest.fixture
def tiny(cohort, tmp_path):
    """Make a tiny experiment on the cohort; keyword arguments are dotted overrides."""

    def make(name: str = "tiny", **changes: object) -> Experiment:
        settings = {
            "name": name,
            "data.cohort": str(cohort),
            "output": str(tmp_path / "runs"),
            "tracking.experiment": None,
            **{key.replace("__", "."): value for key, value in changes.items()},
        }
        overrides = [f"{k}={'null' if v is None else v}" for k, v in settings.items()]
        return load(ROOT / "configs" / "tiny" / "set_vae.yaml", overrides)

    return make


@pytest.fixture(scope="module")
def make(cohort, tmp_path_factory):
    """Make an experiment of a tiny config, one epoch long: make("visit_jepa", **{path: value}).

    The runs of a module lie in one folder, so that one may start from another.
    """
    output = tmp_path_factory.mktemp("runs")

    def build(config: str, **changes: object) -> Experiment:
        settings = {
            "data.cohort": cohort,
            "output": output,
            "tracking.experiment": "null",
            "evaluation.bootstrap": 20,
            "train.max_epochs": 1,
            **changes,
        }
        path = ROOT / "configs" / "tiny" / f"{config}.yaml"
        return load(path, [f"{k}={v}" for k, v in settings.items()])

    return build
