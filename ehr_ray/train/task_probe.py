"""What turns a model's output into the answer of a task, as `evaluate` fitted it, on disk."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Final, cast

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file

from ehr_ray.errors import InputError
from ehr_ray.evaluation.tasks.linear import LinearModel
from ehr_ray.evaluation.tasks.probe import Probe
from ehr_ray.events.label_tasks import Kind
from ehr_ray.family import Batch
from ehr_ray.storage import files
from ehr_ray.train.checksums import CHECKSUM, damage_of, header_of, save_tensors

FOLDER: Final = "probes"
"""Of a run: `probes/<task>.safetensors`."""


@dataclass(frozen=True, eq=False)
class TaskProbe:
    """A linear model of one output of a model; of a binary task it is calibrated.

    Args:
        task: what it answers.
        output: name of the output of `Family.predict` that it reads: `embedding`, or a logit.
        positive: what the positive class is, in words; may be empty.
        probe: on float [B, D]; of a logit D is 1.
        kind: what its answers are: probabilities, numbers, or probabilities of the classes.
        classes: their names.
    """

    task: str
    output: str
    positive: str
    probe: Probe | LinearModel
    kind: Kind = "binary"
    classes: tuple[str, ...] = ()

    def answer(self, outputs: Batch) -> NDArray[np.float64]:
        """Return the answer for each patient, [B] or [B, K], of what `Family.predict` gave."""
        values = outputs[self.output].float().numpy()
        return self.probe.predict(values.reshape(len(values), -1))


def save_task_probe(run: Path, found: TaskProbe, weights: Path) -> None:
    """Write the probe of a task, fitted on what the model of `weights` gives, into a folder."""
    arrays = found.probe.to_arrays()
    tensors = {name: torch.from_numpy(np.asarray(array)) for name, array in arrays.items()}
    header = {"task": found.task, "output": found.output, "positive": found.positive}
    header |= {"kind": found.kind, "classes": json.dumps(found.classes)}
    with files.new_file(run / FOLDER / f"{found.task}.safetensors") as partial:
        save_tensors(tensors, partial, **header, weights=_identity(weights))


def read_task_probes(run: Path, weights: Path) -> dict[str, TaskProbe]:
    """Return the probes of a folder by task.

    `InputError` for a damaged one, or one that was fitted on other weights.
    """
    found = {}
    for path in sorted((run / FOLDER).glob("*.safetensors")):
        if damage := damage_of(path.parent, (path.name,)):
            raise InputError(f"{damage}; run `ehr-ray evaluate` again")
        header = header_of(path)
        if header.get("weights") != _identity(weights):
            raise InputError(
                f"{path}: fitted on other weights than those of {weights}; run `ehr-ray evaluate` "
                "again, or remove it"
            )
        arrays = {name: tensor.numpy() for name, tensor in load_file(path).items()}
        task, output, positive = (header[key] for key in ("task", "output", "positive"))
        kind = cast(Kind, header.get("kind", "binary"))  # which all were that do not say it
        read = Probe if kind == "binary" else LinearModel
        classes = tuple(json.loads(header.get("classes", "[]")))
        found[task] = TaskProbe(task, output, positive, read.from_arrays(arrays), kind, classes)
    return found


def _identity(weights: Path) -> str:
    return header_of(weights).get(CHECKSUM, "")
