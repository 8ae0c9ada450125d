"""Every string by which a family's record names something hits something real.

A tensor, a schedule, a config path or an output that is misspelt or renamed would be passed over in
silence: nothing protects the buffer any more, and the search varies what is never read.
"""

import dataclasses
from pathlib import Path

import pytest
import torch

from ehr_ray.config.yaml_files import override, read_yaml
from ehr_ray.evaluation.suite import get_suite
from ehr_ray.events.vocabulary import Vocabulary
from ehr_ray.experiment import dump, parse
from ehr_ray.registry import FAMILIES, get_family
from ehr_ray.runtime.tuning.plan import default_space
from ehr_ray.train.backend import LocalBackend
from ehr_ray.train.initialise import named_by
from ehr_ray.train.validate import validate

CONFIGS = Path(__file__).parents[2] / "configs" / "tiny"
SEED = 12345
AHEAD = {
    "model.time_to_event_weight": 1.0,
    "model.time_to_event_codes": 5,
    "model.future_value_weight": 1.0,
    "model.future_value_codes": 5,
}
"""What comes after a moment."""
MORE = {
    "event_transformer": [
        {"model.arch": "encoder"},
        AHEAD,
    ],
    "jepa": [AHEAD],
}
"""What no shipped file trains: the family's default, and objectives that are off there."""
COUNTED = {
    "vitals_vae": [{"model.arch": "conv", "model.objective": "published"}],
    "jepa": [
        {"model.regulariser": "sigreg"},
        {"model.regulariser": "vicreg"},
        {"model.latent_loss": "infonce", "model.target": "online"},
        AHEAD,
    ],
    "hcat": [{"model.alpha_con": 0.1}, {"model.missing": "mask"}],
    "event_transformer": [
        {"model.next_time_weight": 1.0, "model.next_value_weight": 1.0},
        AHEAD,
    ],
    "set_vae": [{"model.composition_weight": 1.0}],
    "seqset_poe": [{"model.composition_weight": 1.0}],
}
"""Terms of other names or counts than those of the shipped configs."""
PAIRS = {"hcat": {"model.alpha_con": 0.1}}
"""What compares patients, of families whose search space does not."""
pytestmark = pytest.mark.parametrize("name", FAMILIES)


@pytest.fixture
def family(name):
    return get_family(name)


@pytest.fixture
def shipped(name, synthetic_cohort):
    """The shipped experiments of a family that train its own objective, and `MORE`."""
    raws = [read_yaml(path) for path in sorted(CONFIGS.glob("*.yaml"))]
    own = [raw for raw in raws if raw.get("family") == name and not raw.get("task")]
    own += [override(own[0], more) for more in MORE.get(name, [])]
    return [parse(override(raw, {"data.cohort": str(synthetic_cohort)})) for raw in own]


@pytest.fixture
def patients(synthetic_patients):
    return synthetic_patients["train"][:4]


def built(family, config, vocabulary):
    torch.manual_seed(0)
    return family.build(config, vocabulary)


def saved_names(model):
    """Names of the tensors a checkpoint may hold, those of buffers that are off among them."""
    return {
        f"{prefix}.{name}".removeprefix(".")
        for prefix, module in model.named_modules()
        for name in (*module._parameters, *module._buffers)
        if name not in module._non_persistent_buffers_set
    }


def saved_buffers(model):
    names = {name for name, _ in model.named_parameters()}
    return {n: t.clone() for n, t in model.state_dict().items() if n not in names}


def unlike(ours, theirs):
    return {n for n, t in ours.items() if n not in theirs or not torch.equal(t, theirs[n])}


def half_of(vocabulary):
    parts = (vocabulary.count, vocabulary.mean, vocabulary.std, vocabulary.quantiles)
    return Vocabulary(vocabulary.codes[::2], *(None if p is None else p[::2] for p in parts))


class Read(dict):
    """A mapping that knows which of its keys were asked for."""

    def __init__(self, values):
        super().__init__(values)
        self.asked = set()

    def __getitem__(self, key):
        self.asked.add(key)
        return super().__getitem__(key)

    def get(self, key, default=None):
        self.asked.add(key)
        return super().get(key, default)


def watched(config):
    """A copy of a config, and the set of its fields that have been read since."""
    names, asked = {field.name for field in dataclasses.fields(config)}, set()

    class Watched(type(config)):
        def __getattribute__(self, name):
            if name in names:
                asked.add(name)
            return object.__getattribute__(self, name)

    copy = object.__new__(Watched)
    for name in names:
        object.__setattr__(copy, name, getattr(config, name))
    return copy, asked


def trained_once(family, experiment, vocabulary, patients):
    """The config fields and the schedules that one step reads."""
    config, fields = watched(experiment.model)
    model = built(family, config, vocabulary).train()
    rows = [family.transform(patient, config, vocabulary) for patient in patients]
    scheduled = Read({n: s.at(10**6, 10) for n, s in experiment.schedules.items()})
    family.loss(model, family.collate(rows, config), scheduled, SEED)
    if family.training.after_step:
        family.training.after_step(model, scheduled)
    return fields, scheduled.asked


def test_named_tensors_are_in_a_shipped_model(family, shipped, synthetic_vocabulary):
    transfer = family.transfer
    names = set().union(
        *(saved_names(built(family, e.model, synthetic_vocabulary)) for e in shipped)
    )
    endings = (*transfer.code_indexed_tensors, *transfer.data_buffers)
    unfound = [e for e in endings if not any(named_by(name, [e]) for name in names)]
    assert not unfound, "no model of configs/tiny, nor of MORE above, has a tensor of these names"


def test_buffers_made_of_the_vocabulary_or_of_train_are_named(
    family, shipped, patients, synthetic_vocabulary
):
    """Else `init_from` copies another cohort's: the next cohort's codes lie elsewhere."""
    transfer = family.transfer
    for experiment in shipped:
        config = experiment.model
        axes = transfer.axes(config, synthetic_vocabulary) if transfer.axes else ()
        named = (*transfer.code_indexed_tensors, *transfer.data_buffers, *axes)
        model = built(family, config, synthetic_vocabulary)
        before = saved_buffers(model)
        other = saved_buffers(built(family, config, half_of(synthetic_vocabulary)))
        changed = unlike(before, other)
        if family.training.fit_buffers:
            rows = [family.transform(p, config, synthetic_vocabulary) for p in patients]
            family.training.fit_buffers(model, family.collate(rows, config))
            changed |= unlike(before, saved_buffers(model))
        assert [name for name in sorted(changed) if not named_by(name, named)] == []


def test_parameters_with_a_row_a_code_are_named(family, shipped, synthetic_vocabulary):
    """Else `init_from` copies them row by row where another cohort has as many codes."""
    transfer = family.transfer
    for experiment in shipped:
        config = experiment.model
        axes = transfer.axes(config, synthetic_vocabulary) if transfer.axes else ()
        whole, half = (
            {name: parameter.shape for name, parameter in model.named_parameters()}
            for model in (
                built(family, config, synthetic_vocabulary),
                built(family, config, half_of(synthetic_vocabulary)),
            )
        )
        changed = [name for name in whole if half.get(name) != whole[name]]
        named = (*transfer.code_indexed_tensors, *axes)
        assert [name for name in changed if not named_by(name, named)] == []


def test_cache_fields_are_what_transform_reads(family, shipped, patients, synthetic_vocabulary):
    """One that is missing serves rows of another config from the cache."""
    asked = set()
    for experiment in shipped:
        config, fields = watched(experiment.model)
        for patient in patients:
            family.transform(patient, config, synthetic_vocabulary)
        asked |= fields
    assert asked == set(family.cache_fields)


def test_schedules_and_searched_options_are_read(family, shipped, patients, synthetic_vocabulary):
    never = set(family.search_space)
    assert {*family.eval_scheduled, *family.schema.schedule_limits} <= set(family.schema.schedules)
    unread = set(family.schema.schedules)
    for experiment in shipped:
        idle = set(family.search_space) - set(default_space(experiment, family))
        fields, schedules = trained_once(family, experiment, synthetic_vocabulary, patients)
        unread -= schedules
        read = {path for path in family.search_space if is_read(path, fields, schedules)}
        assert set(family.search_space) - read - idle == set(), experiment.name
        never -= read - idle
    assert (unread, never) == (set(), set())


def is_read(path, fields, schedules):
    section, _, rest = path.partition(".")
    known = {"model": fields, "schedules": schedules}
    return section not in known or rest.partition(".")[0] in known[section]


def test_a_setting_that_needs_pairs_is_stated_as_it_is_in_the_config(family, shipped):
    needs_pairs = family.training.needs_pairs
    if needs_pairs is None:
        assert family.name not in PAIRS
        return  # nothing compares patients
    space = family.search_space
    regularised = [
        parse(override(dump(e), {path: value}))
        for e in shipped
        for path, domain in space.items()
        for value in getattr(domain, "values", ())
    ]
    switched = [parse(override(dump(e), PAIRS.get(family.name, {}))) for e in shipped]
    stated = {needs_pairs(e.model): e for e in (*shipped, *regularised, *switched)}
    stated.pop(None, None)
    assert stated
    for setting, experiment in stated.items():
        path, _, value = setting.partition("=")
        found = dump(experiment)
        for key in path.split("."):
            found = found[key]
        assert str(found) == value


def test_outputs_and_suites_are_there(family, shipped, patients, synthetic_vocabulary):
    evaluation = family.evaluation
    assert all(callable(get_suite(suite)) for suite in evaluation.suites)
    empty = set(evaluation.outputs)
    for experiment in shipped:
        model = built(family, experiment.model, synthetic_vocabulary).eval()
        rows = [family.transform(p, experiment.model, synthetic_vocabulary) for p in patients]
        batch = family.collate(rows, experiment.model)
        with torch.no_grad():
            if evaluation.task_outputs:
                named = set(evaluation.task_outputs(experiment.model).values())
                assert named <= set(family.predict(model, batch))
            empty -= {n for n in empty if "patient" in evaluation.outputs[n](model, batch)}
    assert empty == set()


def test_metrics_that_choose_are_measured(family, shipped, make_loader, synthetic_vocabulary):
    """By a shipped config, at each report; a probe's is measured by the search itself."""
    extra = family.files.extra_checkpoints
    others = [extra(experiment.model) for experiment in shipped] if extra else []
    chosen = [family.select, family.training.rank, *(s for one in others for s in one.values())]
    unmeasured = {s.metric for s in chosen if s is not None} - {"probe/auroc"}
    for experiment in shipped:
        if unmeasured:
            model = built(family, experiment.model, synthetic_vocabulary)
            loader, backend = make_loader(experiment), LocalBackend()
            unmeasured -= set(validate(family, model, loader, backend, precision="float32"))
    assert unmeasured == set()


@pytest.mark.parametrize("training", [True, False])
def test_counts_told_beforehand_are_those_of_the_loss(
    name, family, shipped, patients, synthetic_vocabulary, training
):
    """To the last bit, of every term that weighs: by them micro-batches are made one batch."""
    if family.training.counts is None:  # the forward pass runs twice
        return
    raw = dump(shipped[0])
    more = [parse(override(raw, changes)) for changes in COUNTED.get(name, [])]
    told, weighing = set(), set()
    for experiment in (*shipped, *more):
        config = experiment.model
        model = built(family, config, synthetic_vocabulary).train(training)
        rows = [family.transform(patient, config, synthetic_vocabulary) for patient in patients]
        scheduled = dict.fromkeys(experiment.schedules, 1.0)
        batch = family.collate(rows, config)
        terms = family.loss(model, batch, scheduled, SEED)
        found = family.training.counts(model, batch, SEED)
        weighed = {n: float(term.count) for n, term in terms.items() if term.coef}
        assert {n: float(found[n]) for n in weighed} == weighed, experiment.name
        assert not any(count.requires_grad for count in found.values())
        told, weighing = told | found.keys(), weighing | weighed.keys()
    assert told == weighing


def test_a_family_with_phrases_has_the_options_of_their_table(family):
    if family.files.phrases is not None:
        fields = {field.name for field in dataclasses.fields(family.schema.config)}
        assert {"phrases", "text_model", "embedding_dim"} <= fields
