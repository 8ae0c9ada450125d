"""Training steps beside the speed at which the published programs were measured.

Their documents state no speed. The rates here were measured by hand, of the code they publish, on
one thread in float32 and on stays of PhysioNet 2012 (the vitals VAE: on made-up curves). They are
of another run and machine, and every figure says so; a ratio is a hint of size and no more. Of the
JEPA the published step is made anew besides, and taken in this process.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch

from ehr_ray.commands.benchmark.gpu_models import MODELS
from ehr_ray.commands.benchmark.model import model_speed, patients_of, ready
from ehr_ray.commands.benchmark.peers import published_jepa
from ehr_ray.commands.benchmark.peers.timing import Figures, in_turn
from ehr_ray.commands.ingest import ingest
from ehr_ray.experiment import Experiment, parse
from ehr_ray.nn.sentence_encoder import half_type

STEPS: Final = 3
PATIENTS: Final = 64
THEIRS: Final = "published code, another run and machine"


@dataclass(frozen=True)
class Published:
    """A program that others published, and how fast it trained.

    Args:
        family: of ours that does the same.
        unit: `sets`, `tokens` or `patients`.
        rate: of theirs, units per CPU second.
        model: our `model` section at its sizes.
        batch: patients of our step.
        source: of synthetic patients to train on.
        made_anew: makes their step of so many patients in this process.
    """

    family: str
    unit: str
    rate: float
    model: Mapping[str, Any]
    batch: int = 4
    source: str = "synthetic"
    made_anew: Callable[[int], Callable[[], None]] | None = None


def _decoder(width: int) -> dict[str, Any]:
    sizes = {"embedding_dim": 384, "model_dim": width, "n_heads": 8, "n_layers": 6}
    return {"arch": "decoder", "text_model": "hashing", "max_length": 2048, **sizes}


PUBLISHED: Final[Mapping[str, Published]] = {
    "SetVAE": Published("set_vae", "sets", 36.2, MODELS["set_vae"]["published"]),
    "SeqSetVAE-PoE": Published("seqset_poe", "sets", 32.0, MODELS["seqset_poe"]["published"]),
    "event decoder 256 wide": Published("event_transformer", "tokens", 369.0, _decoder(256)),
    "event decoder 512 wide": Published("event_transformer", "tokens", 249.0, _decoder(512)),
    "EHR-JEPA small": Published(
        "jepa",
        "patients",
        24.7,
        {"preset": "small", "mask": "future", "context_rows": 15, "target_rows": 5, "max_rows": 20},
        batch=published_jepa.BATCH,
        made_anew=published_jepa.published_step,
    ),
    "Conv1D VAE": Published(
        "vitals_vae",
        "patients",
        64 / 0.32,
        {"arch": "conv"},
        batch=64,
        source="synthetic-vitals",
    ),
    "HCAT": Published("hcat", "patients", 610 / 12.2, MODELS["hcat"]["published"], batch=32),
}
"""By name. JEPA's is with every sample of a batch trained, where the published step trains the
first alone at 6.6; that of HCAT has the validation of an epoch in it."""


def published_steps(place: Path) -> Figures:
    """Return units per CPU second of our training step, theirs, and the ratio, of each program."""
    figures: Figures = {}
    for name, peer in PUBLISHED.items():
        cohort = place / peer.source
        ingest(peer.source, None, cohort, options={"patients": PATIENTS}, cpus=1)
        experiment = parse(plan(peer, cohort, place))
        ours = model_speed(experiment, steps=STEPS)
        rate = ours[f"{peer.unit} per CPU second"]
        figures |= {
            f"{name}, {peer.unit} per CPU second of training here": rate,
            f"{name}, the same, {THEIRS}": peer.rate,
            f"{name}, here over {THEIRS}": rate / peer.rate,
        }
        if peer.made_anew is not None:
            figures |= {
                f"{name}, {key}": v for key, v in beside(experiment, peer.made_anew).items()
            }
    return figures


def beside(experiment: Experiment, made_anew: Callable[[int], Callable[[], None]]) -> Figures:
    """Return patients per CPU second of our step and of theirs on as many, taken in turn."""
    with ready(experiment) as trainer:
        batches = trainer.batches()
        micro = next(batches)
        batches.close()  # its threads would be at work beside both
        size = patients_of(micro)
        ways = {"ours": lambda: trainer.step(micro), "theirs": made_anew(size)}
        for way in ways.values():
            way()  # memory is touched for the first time
        spent = in_turn(ways, STEPS)
    return {
        "patients per CPU second, one batch again and again": size / spent["ours"],
        "the same, made anew in this process": size / spent["theirs"],
        "here over made anew": spent["theirs"] / spent["ours"],
    }


def plan(peer: Published, cohort: Path, place: Path) -> dict[str, Any]:
    """Return the config of our step at the sizes of a published program.

    In bf16 where this processor multiplies it and the sizes are worth it, else, and beside a step
    made anew, in float32.
    """
    wide = peer.family not in ("vitals_vae", "hcat") and peer.made_anew is None
    precision = "bf16" if wide and half_type("cpu") is torch.bfloat16 else "float32"
    return {
        "family": peer.family,
        "name": "peers",
        "output": str(place / "runs"),
        "model": dict(peer.model),
        "data": {"cohort": str(cohort.absolute()), "batch_size": peer.batch},
        "train": {"max_epochs": 1, "lr": 1e-4, "precision": precision},
        "cluster": {"num_workers": 0},
        "tracking": {"experiment": None},
    }
