"""Event transformers: an encoder or decoder over events embedded as phrases (seed: embedded)."""

from ehr_ray.config.search import Choice, LogUniform, Uniform
from ehr_ray.families.event_transformer.config import (
    SCHEMA,
    TOKEN_FIELDS,
)
from ehr_ray.families.event_transformer.data import collate, transform
from ehr_ray.families.event_transformer.loss import counts, loss, summary
from ehr_ray.families.event_transformer.model import EventTransformer, fit_heads, fit_rows
from ehr_ray.families.event_transformer.predict import (
    hazards,
    predict,
    represent,
    represent_width,
)
from ehr_ray.families.event_transformer.sampling import Sampler, lacks
from ehr_ray.families.event_transformer.table import axes, check_files, phrase_texts
from ehr_ray.family import Evaluation, Family, Files, Represent, Training, Trajectories, Transfer
from ehr_ray.nn.future_value import STATISTICS

FAMILY = Family(
    name="event_transformer",
    schema=SCHEMA,
    transform=transform,
    collate=collate,
    build=EventTransformer,
    loss=loss,
    predict=predict,
    represent=Represent(represent, represent_width),
    cache_fields=TOKEN_FIELDS,
    search_space={
        "train.lr": LogUniform(1e-4, 3e-3),
        "model.dropout": Uniform(0.0, 0.4),
        "model.n_layers": Choice((2, 4, 6)),
        "model.model_dim": Choice((128, 256)),
        "model.mask_ratio": Uniform(0.05, 0.5),
    },
    training=Training(fit_buffers=fit_heads, fit_rows=fit_rows, summarise=summary, counts=counts),
    transfer=Transfer(data_buffers=("table", "log_rate", *STATISTICS), axes=axes),
    evaluation=Evaluation(
        outputs={"hazards": hazards},
        suites=("ehr_ray.evaluation.tasks.time_to_event:suite",),
        trajectories=Trajectories(lacks, Sampler),
    ),
    files=Files(check=check_files, phrases=phrase_texts),
)
