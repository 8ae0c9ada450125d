"""The placement group of a Ray Train run, given back when the run's controller is gone.

A placement group reserves the CPUs and GPUs of a run's workers. A controller that is killed, or
whose search stops its trial, leaves it behind, and nothing else fits into those resources. Ray has
an actor that watches for that, but it asks the dashboard who is alive: it breaks where there is
none, as in a Ray started here, and where two Rays share a machine. Here the same actor asks Ray's
own table of actors. The actor's process imports this module, so torch is not imported here.
"""

from typing import Any

from ray._private import state
from ray.train.v2._internal.callbacks import placement_group_callback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.execution.controller import placement_group_cleaner
from ray.train.v2._internal.execution.controller.placement_group_cleaner import (
    PlacementGroupCleaner,
)


def is_alive(actor_id: str, timeout: float | None = None) -> bool:  # noqa: ARG001
    """Return whether an actor may still do something; what Ray cannot tell of is left alone."""
    return state.actors(actor_id).get("State") != "DEAD"


class Cleaner(PlacementGroupCleaner):
    """Ray's actor beside a controller; it alone lives in its process."""

    def __init__(self, **options: Any) -> None:
        placement_group_cleaner.is_actor_alive = is_alive
        super().__init__(**options)


class StartCleaner(PlacementGroupCleanerCallback):
    """Starts a `Cleaner`, from the controller's process, where nothing else starts one."""

    def after_controller_start(self, train_run_context: Any) -> None:
        """Start it."""
        placement_group_callback.PlacementGroupCleaner = Cleaner
        super().after_controller_start(train_run_context)
