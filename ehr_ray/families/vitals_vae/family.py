"""Vitals VAE: a multi-scale autoencoder of hourly vital signs, with its baseline and fallback."""

from ehr_ray.config.search import Choice, LogUniform, Uniform
from ehr_ray.families.vitals_vae.config import SCHEMA, inactive_paths
from ehr_ray.families.vitals_vae.data import collate, export, measured, remedy, transform
from ehr_ray.families.vitals_vae.fallback import fallback
from ehr_ray.families.vitals_vae.loss import counts, loss
from ehr_ray.families.vitals_vae.model import VitalsVAE, held, meanings
from ehr_ray.families.vitals_vae.predict import components, diagnosed, grids, latents, predict
from ehr_ray.families.vitals_vae.quantise import code_warnings
from ehr_ray.family import (
    Diagnose,
    Evaluation,
    Family,
    Files,
    Learnable,
    Select,
    Training,
    Transfer,
)

FAMILY = Family(
    name="vitals_vae",
    schema=SCHEMA,
    transform=transform,
    collate=collate,
    build=VitalsVAE,
    loss=loss,
    predict=predict,
    former_scaling="robust",
    cache_fields=("vitals", "first_hour", "last_hour", "landmark", "origin", "clip_value"),
    # Beta 1 is what cycles end at; curves are those of posterior means, as in use.
    eval_scheduled={"beta": 1.0, "free_bits": 0.0, "mean_share": 1.0},
    search_space={
        "schedules.beta.end": LogUniform(0.1, 4.0),
        "schedules.beta.ramp_ratio": Uniform(0.2, 0.8),
        "model.evidence": LogUniform(0.1, 1.0),
        "schedules.free_bits": Uniform(0.0, 0.25),
        "model.hide": Uniform(0.0, 0.3),
        "model.latent": Choice((16, 32, 64)),
        "model.width": Choice((32, 64, 128)),
        "model.branch_weight": LogUniform(0.05, 1.0),
        "model.codebook": Choice((64, 128, 256, 512)),
        "model.code_groups": Choice((8, 16, 32)),
        "model.commitment": LogUniform(0.05, 1.0),
        "train.lr": LogUniform(3e-4, 3e-3),
    },
    training=Training(
        diagnose=Diagnose(diagnosed, code_warnings),
        learnable=Learnable(measured, "a vital sign in the window", remedy),
        inactive_paths=inactive_paths,
        held=held,
        counts=counts,
        # Cells the encoder has not seen, the same share of them in every trial.
        rank=Select("val/mse_hidden", "min"),
        fallback=fallback,
    ),
    evaluation=Evaluation(
        latents=latents,
        outputs={"grids": grids, "components": components},
        suites=tuple(
            f"{__package__}.evaluation.suites:{name}"
            for name in ("reconstruction", "clusters", "files")
        ),
    ),
    transfer=Transfer(meanings=meanings),
    files=Files(export=export),
)
