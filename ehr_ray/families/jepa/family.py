"""JEPA on hours or visits: rows of a patient predicted in the space of their own encoder."""

from ehr_ray.config.search import Choice, LogUniform, Uniform
from ehr_ray.families.jepa.config import SCHEMA, inactive_paths
from ehr_ray.families.jepa.data import collate, predictable, remedy, transform
from ehr_ray.families.jepa.diagnostics import prediction_warnings
from ehr_ray.families.jepa.drift import drift
from ehr_ray.families.jepa.loss import counts, loss, needs_pairs
from ehr_ray.families.jepa.model import (
    JEPA,
    after_step,
    axes,
    fit_heads,
    fit_rows,
    meanings,
)
from ehr_ray.families.jepa.predict import (
    cells,
    hazards,
    measure,
    predict,
    represent,
    represent_width,
    row_states,
    state_width,
    targets,
)
from ehr_ray.family import (
    Diagnose,
    Evaluation,
    Family,
    Learnable,
    Represent,
    Select,
    Training,
    Transfer,
)
from ehr_ray.nn.future_value import STATISTICS
from ehr_ray.nn.moment_heads import gain

FAMILY = Family(
    name="jepa",
    schema=SCHEMA,
    transform=transform,
    collate=collate,
    build=JEPA,
    loss=loss,
    predict=predict,
    represent=Represent(represent, represent_width, row_states, state_width),
    former_scaling="robust",
    cache_fields=(
        "rows",
        "max_values",
        "max_flags",
        "outcomes",
        "flows",
        "discharges",
        "time_to_event_weight",
        "time_to_event_codes",
        "future_value_weight",
        "future_value_codes",
    ),
    search_space={
        "model.value_weight": LogUniform(0.1, 10.0),
        "model.mask": Choice(("future", "blocks", "both")),
        "model.regulariser": Choice(("none", "vicreg", "sigreg")),
        "model.context_ratio": Uniform(0.5, 1.0),
        "model.width": Choice((96, 192, 384)),
        "model.predictor_depth": Choice((1, 2, 4)),
        "schedules.momentum.start": Uniform(0.99, 0.999),
        "train.lr": LogUniform(1e-4, 3e-3),
    },
    # The loss between latents falls when they collapse, so it chooses nothing; the values of hidden
    # rows have a scale of their own. Without a head of values the last report is kept.
    select=Select(
        "val/value",
        "min",
        "give tuning patients with values in several rows, or set model.value_weight=0",
    ),
    training=Training(
        fit_buffers=fit_heads,
        fit_rows=fit_rows,
        after_step=after_step,
        diagnose=Diagnose(measure, prediction_warnings),
        learnable=Learnable(predictable, "2 rows or more, one to predict from another", remedy),
        needs_pairs=needs_pairs,
        counts=counts,
        inactive_paths=inactive_paths,
        summarise=gain,
        # A loss of latents says nothing, and values differ by what the mask hides.
        rank=Select("probe/auroc", "max"),
    ),
    transfer=Transfer(data_buffers=("log_rate", *STATISTICS), axes=axes, meanings=meanings),
    evaluation=Evaluation(
        outputs={"targets": targets, "cells": cells, "drift": drift, "hazards": hazards},
        suites=(
            f"{__package__}.evaluation:suite",
            "ehr_ray.evaluation.tasks.time_to_event:suite",
        ),
    ),
)
