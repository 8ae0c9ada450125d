"""Ray's trainer as this package uses it."""

from typing import Any

import ray
from ray.train.torch import TorchTrainer

KNOWN = "2.60."
"""Versions of Ray whose private classes are as this package takes them; they change with any."""


class Trainer(TorchTrainer):
    """Ray's trainer, whose placement group is given back on any Ray.

    Rows reach the workers as memory-mapped files, so the actor that would hand out Ray datasets,
    and the 200 MB and five seconds it takes, are left out. On a Ray that is not known both are as
    Ray has them: the room of a controller that was killed is then given back by Ray's own watcher,
    which needs its dashboard.

    Ctrl-C is Python's own: the session that is open then ends, and all that it runs. Ray's answer
    waits for its controller without a limit, exits without a word, and stays after the training.
    """

    def _register_sigint_handler(self, controller: Any) -> None:
        """Register none."""

    def _create_default_callbacks(self) -> list[Any]:
        callbacks: list[Any] = super()._create_default_callbacks()
        if not ray.__version__.startswith(KNOWN):
            return callbacks
        from ray.train.v2._internal.callbacks import datasets, placement_group_callback

        from ehr_ray.runtime.training.placement import StartCleaner

        return [
            StartCleaner()
            if type(callback) is placement_group_callback.PlacementGroupCleanerCallback
            else callback
            for callback in callbacks
            if type(callback) is not datasets.DatasetsCallback
        ]
