"""SeqSetVAE-PoE: a stay as a sequence of sets, each expected from those before."""

from ehr_ray.config.search import Choice, LogUniform, Uniform
from ehr_ray.families.set_vae.data import collate, row_of_sets, transform
from ehr_ray.families.set_vae.embedding import check_files
from ehr_ray.families.set_vae.sequence.anomaly_scores import anomalies
from ehr_ray.families.set_vae.sequence.config import SCHEMA
from ehr_ray.families.set_vae.sequence.loss import counts, loss
from ehr_ray.families.set_vae.sequence.model import SeqSetVAE
from ehr_ray.families.set_vae.sequence.predict import (
    latents,
    predict,
    reconstruct,
    represent,
    represent_columns,
    represent_width,
)
from ehr_ray.families.set_vae.sequence.value_table import values
from ehr_ray.family import Evaluation, Family, Files, Represent, Training, Transfer

FAMILY = Family(
    name="seqset_poe",
    schema=SCHEMA,
    transform=transform,
    collate=collate,
    build=SeqSetVAE,
    loss=loss,
    predict=predict,
    represent=Represent(represent, represent_width, columns=represent_columns),
    cache_fields=("carry_minutes", "always_carry", "clip_value"),
    # As for the SetVAE: a Chamfer distance is no likelihood, so the seed's end value is fixed.
    eval_scheduled={"beta": 0.2, "free_bits": 0.0, "capacity": 0.0},
    search_space={
        "schedules.beta.end": LogUniform(0.01, 1.0),
        "schedules.beta.shape": Choice(("linear", "cosine")),
        "schedules.free_bits": Uniform(0.0, 0.2),
        "model.poe": Choice(("naive", "gated")),
        "model.p_stale": Uniform(0.0, 0.8),
        "model.set_mae_ratio": Uniform(0.0, 0.4),
        "model.prior_width": Choice((64, 128, 256)),
        "train.lr": LogUniform(1e-4, 3e-3),
    },
    training=Training(counts=counts),
    evaluation=Evaluation(
        latents=latents,
        reconstruct=reconstruct,
        outputs={"anomalies": anomalies, "values": values},
        suites=(f"{__package__}.evaluation:suite",),
    ),
    transfer=Transfer(code_indexed_tensors=("directions",)),
    files=Files(check=check_files, from_sets=row_of_sets),
)
