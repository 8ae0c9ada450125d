"""`benchmark --only search`: what a trial costs once a search is under way.

Searches of few and of more tiny trials are run in turn. What more trials take longer is the time
of a trial; the rest is start-up, which a search pays once: actors, and the rows made ready.
"""

import statistics
import time
from pathlib import Path
from typing import Any, Final

from ehr_ray.commands.tune import tune
from ehr_ray.experiment import parse
from ehr_ray.runtime.screen import Screen

Numbers = dict[str, float]
FEW: Final = 2
MORE: Final = 8
ROUNDS: Final = 3


def search_speed(cohort: Path, place: Path) -> Numbers:
    """Return seconds of searches of few and of more tiny trials, and of a trial; not tracked."""
    times: dict[int, list[float]] = {FEW: [], MORE: []}
    steps = 0
    for turn in range(ROUNDS + 1):
        for trials, found in times.items():
            experiment = parse(_tiny(cohort, place, f"search-{turn}-{trials}", trials))
            started = time.perf_counter()
            sweep = tune(experiment, screen=_Silent()).sweep
            if turn:  # the first search of each is not counted
                found.append(time.perf_counter() - started)
            steps = int(sweep.frame["step"].iloc[0])
    few, more = (statistics.median(found) for found in times.values())
    each = (more - few) / (MORE - FEW)
    return {
        f"search of {FEW} trials, s": few,
        f"search of {MORE} trials, s": more,
        "steps of a trial": float(steps),
        "a trial, s": each,
        f"{MORE} trials beyond start-up, s": MORE * each,
        "start-up of a search, s": few - FEW * each,
    }


class _Silent(Screen):
    """Says nothing of a search."""

    def say(self, text: str) -> None:
        """Do nothing."""


def _tiny(cohort: Path, place: Path, name: str, trials: int) -> dict[str, Any]:
    sizes = dict.fromkeys(("embedding_width", "reduced", "width"), 32)
    return {
        "family": "set_vae",
        "name": name,
        "output": str(place / "runs"),
        "model": {**sizes, "latent": 8, "heads": 2, "inducing": 4, "sets_per_patient": 4},
        "data": {"cohort": str(cohort.absolute()), "batch_size": 16},
        "train": {"max_epochs": 1, "warmup_steps": 5},
        "search": {"train.lr": {"loguniform": [1e-4, 1e-2]}},
        "tune": {"trials": trials, "scheduler": "none", "register": False},
        "tracking": {"experiment": None},
    }
