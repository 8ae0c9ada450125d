"""Several splits, or cohorts, through one trained model: their shards as jobs of one pass."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ehr_ray.errors import RunError
from ehr_ray.runtime.data.tasks import Say, run_shards
from ehr_ray.runtime.inference.shards import ProcessModel, Request, ShardPredictor, Times
from ehr_ray.storage import files

DONE = "done"
"""File of a shard's folder that names the others, written last; a store may have it before them."""


@dataclass(frozen=True)
class Part:
    """Shards whose samples are asked for the same, as those of a split, and where answers go."""

    shards: Sequence[Path]
    folder: Path
    request: Request
    times: Times | None = None

    @property
    def folders(self) -> list[Path]:
        """The folder of each shard's `samples`, `latents`, `tokens`."""
        return [self.folder / f"{index:05d}" for index in range(len(self.shards))]


class PartsPredictor:
    """The function of one shard of several parts, which share a model."""

    def __init__(self, parts: Sequence[Part]) -> None:
        model = ProcessModel(parts[0].request.checkpoint, parts[0].request.gpus)
        self._predictors = [ShardPredictor(part.request, part.times, model) for part in parts]

    def __call__(self, job: Mapping[str, Any]) -> None:
        """Predict every sample of `job["shard"]`, of the part `job["part"]`, and note its end."""
        target = Path(job["target"])
        shutil.rmtree(target, ignore_errors=True)  # of a process that was killed
        self._predictors[job["part"]](job)
        names = sorted(path.name for path in target.glob("*.parquet"))
        files.write_text(target / DONE, "".join(f"{name}\n" for name in names))


def _is_done(folder: Path) -> bool:
    try:
        names = (folder / DONE).read_text().split()
    except FileNotFoundError:
        return False
    return all((folder / name).is_file() for name in names)


def predict_parts(
    parts: Sequence[Part],
    *,
    resume: bool = False,
    on_ray: bool = True,
    say: Say = lambda _: None,
    verb: str = "embedded shards",
) -> None:
    """Predict over the shards of parts, which are of one model.

    All go through the same processes: a new one takes seconds to start. With `resume` shards that
    an earlier call has ended are left as they are: folders are named by all that decides on their
    content then. Raises RunError where another process removed one in the meantime.
    """
    jobs = [
        {"shard": str(shard), "target": str(target), "part": number}
        for number, part in enumerate(parts)
        for shard, target in zip(part.shards, part.folders, strict=True)
        if not (resume and _is_done(target))
    ]
    if jobs:
        predictor, gpus = PartsPredictor(parts), parts[0].request.gpus
        run_shards(jobs, predictor, on_ray=on_ray, say=say, verb=verb, pool=True, num_gpus=gpus)
    for target in (target for part in parts for target in part.folders):
        if not _is_done(target):
            raise RunError(f"{target}: removed by another process; run the same command again")
