"""The model-ready data of a search: made once, before its first trial, for all its trials.

Trials share rows unless what is swept changes them. Such paths must be lists of choices, so that
every dataset is there before a trial asks for it and no trial waits for Ray Data.
"""

import contextlib
import dataclasses
import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from ehr_ray.config.search import Choice, Domain, Sample, ends
from ehr_ray.config.task import TaskConfig
from ehr_ray.config.yaml_files import Raw, override
from ehr_ray.errors import ConfigError
from ehr_ray.events.vocabulary import Vocabulary
from ehr_ray.experiment import Experiment, dump, parse
from ehr_ray.family import AnyFamily
from ehr_ray.registry import get_family
from ehr_ray.runtime.data.dataset import vocabulary_of
from ehr_ray.runtime.data.prepared import Prepared, fetched, prepared
from ehr_ray.runtime.data.tasks import Say
from ehr_ray.runtime.text_embedding import with_phrases
from ehr_ray.train.task import family_of

LARGEST: Final = 64
"""Datasets of one search at most."""
_SAMPLING: Final = (
    *("batch_size", "eval_batch_size", "bucket_batches", "shuffle_patients"),
    *("mode", "cache", "cache_dir"),
)
"""Data options that change the order of rows, or where they lie, but no row."""


@dataclass(frozen=True)
class Dataset:
    """Model-ready rows of some trials, with the experiment they were made for."""

    base: Raw
    """That experiment as plain data; a trial changes what it sweeps in it."""
    own: Prepared
    probe: Prepared | None
    """The same patients cut at the prediction time of a task, with its label."""

    def here(self) -> "Dataset":
        """Return the dataset with the paths of this node, where its files now are."""
        return Dataset(self.base, _here(self.own), self.probe and _here(self.probe))


@dataclass(frozen=True)
class Datasets:
    """Every dataset of a search, by the values of the paths that make a difference."""

    paths: tuple[str, ...]
    parts: Mapping[str, Dataset]

    def of(self, sample: Sample) -> Dataset:
        """Return the dataset of a trial."""
        return self.parts[_key(self.paths, sample)]


@contextlib.contextmanager
def datasets(
    experiment: Experiment,
    space: Mapping[str, Domain],
    probe: str | None,
    *,
    on_ray: bool,
    say: Say = lambda _: None,
) -> Iterator[Datasets]:
    """Yield the datasets of a search; `probe` is a task whose rows a probe reads besides."""
    if experiment.data.mode == "stream":
        raise ConfigError("data.mode=stream: trials of a search share rows; use data.mode=cache")
    experiment = replace(experiment, data=replace(experiment.data, mode="cache"))
    paths = data_paths(experiment, space)
    domains = [space[path] for path in paths]
    for path, domain in zip(paths, domains, strict=True):
        if not isinstance(domain, Choice):
            raise ConfigError(
                f"search.{path}: changes the model-ready data, which are made before trials start; "
                "give a list of choices"
            )
    combinations = [*itertools.product(*(ends(domain) for domain in domains))]
    if len(combinations) > LARGEST:
        raise ConfigError(
            f"search: {' x '.join(paths)} make {len(combinations)} datasets, and a search has "
            f"{LARGEST} at most; give fewer choices"
        )
    parts = {}
    with contextlib.ExitStack() as stack:
        for values in combinations:
            sample = dict(zip(paths, values, strict=True))
            one = parse(override(dump(experiment), sample))
            own = stack.enter_context(prepared(one, family_of(one), on_ray=on_ray, say=say))
            one = with_phrases(one, own.vocabulary, on_ray=on_ray, say=say)
            judged = None
            if probe is not None:
                other = replace(one, task=TaskConfig(name=probe))
                family = get_family(one.family)
                judged = stack.enter_context(prepared(other, family, on_ray=on_ray, say=say))
            parts[_key(paths, sample)] = Dataset(
                dump(one), _named(own), None if judged is None else _named(judged)
            )
        yield Datasets(tuple(paths), parts)


def data_paths(experiment: Experiment, space: Mapping[str, Domain]) -> list[str]:
    """Return the paths whose values give other rows, or other phrases."""
    plain, family = dump(experiment), get_family(experiment.family)
    vocabularies: dict[int, Vocabulary] = {}

    def rows(path: str, value: Any) -> str:
        one = parse(override(plain, {path: value}))
        count = one.data.min_code_count
        if family.files.phrases is not None and count not in vocabularies:
            vocabularies[count] = vocabulary_of(
                one.cohort, count, origin=one.data.origin, cache=one.cache
            )
        return _rows(one, family, vocabularies.get(count))

    return [p for p, domain in space.items() if len({rows(p, v) for v in ends(domain)}) > 1]


def _rows(experiment: Experiment, family: AnyFamily, vocabulary: Vocabulary | None) -> str:
    """Return a digest of all that decides an experiment's rows and phrases."""
    model, task = experiment.model, experiment.task
    data = {k: v for k, v in dataclasses.asdict(experiment.data).items() if k not in _SAMPLING}
    parts: list[Any] = [data, {name: getattr(model, name) for name in family.cache_fields}]
    if task is not None:
        parts.append([task.name, task.hours, task.label_ratio])
    if family.files.phrases is not None and vocabulary is not None:
        parts.append([family.files.phrases(model, vocabulary), getattr(model, "text_model", None)])
    text = json.dumps(parts, default=dataclasses.asdict)
    return hashlib.sha256(text.encode()).hexdigest()


def _named(data: Prepared) -> Prepared:
    """Return the dataset with names of files that all nodes know."""
    return Prepared(data.vocabulary, {s: paths.named() for s, paths in data.blocks.items()})


def _here(data: Prepared) -> Prepared:
    return Prepared(data.vocabulary, fetched(data.blocks))


def _key(paths: tuple[str, ...] | list[str], sample: Sample) -> str:
    return json.dumps([sample[path] for path in paths])
