"""Ray's trainer as this package uses it."""

from typing import Any

from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback

from ehr_ray.runtime.training.placement import StartCleaner


class Trainer(TorchTrainer):
    """Ray's trainer, whose placement group is given back on any Ray.

    Rows reach the workers as memory-mapped files, so the actor that would hand out Ray datasets,
    and the 200 MB and five seconds it takes, are left out.
    """

    def _create_default_callbacks(self) -> list[Any]:
        return [
            StartCleaner() if type(callback) is PlacementGroupCleanerCallback else callback
            for callback in super()._create_default_callbacks()
            if type(callback) is not DatasetsCallback
        ]
