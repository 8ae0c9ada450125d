"""SetVAE: a variational autoencoder of sets of observed and carried values (seed: SeqSetVAE)."""

from ehr_ray.config.search import Choice, LogUniform, Uniform
from ehr_ray.families.set_vae.config import SCHEMA
from ehr_ray.families.set_vae.data import collate, row_of_sets, transform
from ehr_ray.families.set_vae.embedding import check_files
from ehr_ray.families.set_vae.loss import counts, loss
from ehr_ray.families.set_vae.model import SetVAE
from ehr_ray.families.set_vae.predict import (
    anomalies,
    latents,
    predict,
    reconstruct,
    represent,
    represent_width,
)
from ehr_ray.family import Evaluation, Family, Files, Represent, Training, Transfer

FAMILY = Family(
    name="set_vae",
    schema=SCHEMA,
    transform=transform,
    collate=collate,
    build=SetVAE,
    loss=loss,
    predict=predict,
    represent=Represent(represent, represent_width),
    cache_fields=("carry_minutes", "always_carry", "clip_value"),
    # Chamfer distance is no likelihood, so no beta is "the" ELBO: the seed's end value is fixed.
    eval_scheduled={"beta": 0.2, "free_bits": 0.0},
    search_space={
        "schedules.beta.end": LogUniform(0.01, 1.0),
        "schedules.beta.shape": Choice(("linear", "cosine")),
        "schedules.free_bits": Uniform(0.0, 0.2),
        "model.p_stale": Uniform(0.0, 0.8),
        "model.set_mae_ratio": Uniform(0.0, 0.4),
        "model.latent": Choice((16, 32, 64, 128)),
        "model.width": Choice((64, 128, 256)),
        "train.lr": LogUniform(1e-4, 3e-3),
    },
    training=Training(counts=counts),
    evaluation=Evaluation(
        latents=latents,
        reconstruct=reconstruct,
        outputs={"anomalies": anomalies},
        suites=(f"{__package__}.sequence.evaluation:suite",),
    ),
    transfer=Transfer(code_indexed_tensors=("directions",)),
    files=Files(check=check_files, from_sets=row_of_sets),
)
