"""Embed the phrases of a cohort, before a training that reads them."""

from pathlib import Path

from ehr_ray.errors import ConfigError
from ehr_ray.experiment import Experiment
from ehr_ray.registry import get_family
from ehr_ray.runtime.data.dataset import vocabulary_of
from ehr_ray.runtime.data.tasks import Say
from ehr_ray.runtime.session import session_of
from ehr_ray.runtime.text_embedding import make_phrases
from ehr_ray.storage import sync
from ehr_ray.storage.paths import check_cohort_folder


def embed_phrases(
    experiment: Experiment, *, verbose: bool = False, say: Say = lambda _: None
) -> tuple[Path, int]:
    """Embed the phrases of an experiment's cohort; return their folder and their number."""
    texts = _texts(experiment)
    on_ray = experiment.cluster.most_workers > 0
    with session_of(experiment.cluster, verbose):
        return make_phrases(experiment, texts, on_ray=on_ray, say=say), len(texts)


def _texts(experiment: Experiment) -> list[str]:
    family, cohort = get_family(experiment.family), sync.fetch_cohort(experiment.data.cohort)
    if family.files.phrases is None:
        raise ConfigError(
            f"family: {family.name} embeds no phrases; use a family that reads the texts of codes"
        )
    if experiment.model.text_model is None:
        raise ConfigError("model.text_model: null embeds no phrases; name a model or hashing")
    check_cohort_folder(cohort)
    vocabulary = vocabulary_of(
        cohort,
        experiment.data.min_code_count,
        origin=experiment.data.origin,
        cache=experiment.cache,
    )
    return family.files.phrases(experiment.model, vocabulary)
