"""HCAT: five modalities, imputed where they are missing, fused to two outcomes."""

from ehr_ray.config.search import Choice, LogUniform, Uniform
from ehr_ray.families.hcat.config import SCHEMA, HCATConfig
from ehr_ray.families.hcat.data import collate, transform
from ehr_ray.families.hcat.export import export, run_metadata
from ehr_ray.families.hcat.loss import counts, loss, needs_pairs
from ehr_ray.families.hcat.model import DATA_BUFFERS, HCAT, fit_buffers
from ehr_ray.families.hcat.predict import (
    baseline_codes,
    imputations,
    latents,
    measure,
    predict,
    task_outputs,
    warnings,
    with_modalities_missing,
)
from ehr_ray.families.hcat.text import check_files, phrase_texts
from ehr_ray.families.hcat.tokenizer import axes
from ehr_ray.family import Diagnose, Evaluation, Family, Files, Select, Training, Transfer


def extra_checkpoints(config: HCATConfig) -> dict[str, Select]:
    """Return what the published checkpoints are the best by."""
    return {name: Select(f"val/{config.best_by}_{name}", "max") for name in ("surv", "rec", "avg")}


FAMILY = Family(
    name="hcat",
    schema=SCHEMA,
    transform=transform,
    collate=collate,
    build=HCAT,
    loss=loss,
    predict=predict,
    cache_fields=("codes", "landmark_hours", "survival", "recurrence"),
    version=2,  # what happens at the landmark is an outcome
    eval_scheduled={"beta": 1.0, "free_bits": 0.0},
    search_space={
        "model.preset": Choice(("tiny", "small", "medium")),
        "schedules.beta.end": LogUniform(0.1, 4.0),
        "schedules.free_bits": Uniform(0.0, 0.25),
        "model.mask_ratio": Uniform(0.05, 0.4),
        "model.dropout": Uniform(0.0, 0.5),
        "model.alpha_impute": LogUniform(0.03, 1.0),
        "train.lr": LogUniform(1e-4, 3e-3),
        "train.weight_decay": LogUniform(1e-3, 1.0),
    },
    select=Select("val/nll_avg", "min"),
    training=Training(
        fit_buffers=fit_buffers,
        needs_pairs=needs_pairs,
        counts=counts,
        diagnose=Diagnose(measure, warnings, patients=100_000),
    ),
    evaluation=Evaluation(
        latents=latents,
        outputs={"imputations": imputations, "thinned": with_modalities_missing},
        suites=(f"{__package__}.evaluation:suite",),
        task_outputs=task_outputs,
        baseline_codes=baseline_codes,
    ),
    transfer=Transfer(data_buffers=DATA_BUFFERS, axes=axes),
    files=Files(
        check=check_files,
        phrases=phrase_texts,
        export=export,
        run_metadata=run_metadata,
        extra_checkpoints=extra_checkpoints,
    ),
)
