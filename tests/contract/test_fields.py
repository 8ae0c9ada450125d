"""No option is inert: each field of a config, set to another legal value, changes something.

Of a model or a task that is its rows, its weights, its loss or what it says of patients; else the
value is refused by name. Of the sections that say where and how a run happens, whose effects need a
cluster, it is that code outside the config reads the field. What else there is, is named here.
"""

import ast
import contextlib
import dataclasses
import itertools
import types
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import numpy as np
import pytest
import torch

import ehr_ray
from ehr_ray.config.idle import refusals
from ehr_ray.config.yaml_files import override, read_yaml
from ehr_ray.errors import ConfigError, InputError
from ehr_ray.experiment import Experiment, parse
from ehr_ray.registry import get_schema
from ehr_ray.train.task import LABEL, family_of

CONFIGS = Path(__file__).parents[2] / "configs" / "tiny"
CONTEXTS = [p.stem for p in sorted(CONFIGS.glob("*.yaml")) if "family" in read_yaml(p)]
SEED = 12345
SIZES = "a size of an architecture beside the chosen one"
ELSEWHERE = "read where rows are prepared or phrases are made: see test_prepared, test_phrases"
EXCEPTIONS = {}
OTHERS: dict[str, list[Any]] = {}


def candidates(hint, value):
    """Other values of a type, the likeliest to tell first."""
    origin, args = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return candidates(args[0], value)
    if origin in (Union, types.UnionType):
        found = [c for arg in args for c in candidates(arg, value)]
        return [c for c in found if c != value]
    if origin is Literal:
        return [option for option in args if option != value]
    if hint is type(None):
        return []
    if hint is bool:
        return [not value]
    if hint is int:
        return [value + 1, value * 2, max(1, value // 2)] if isinstance(value, int) else [3, 2]
    if hint is float:
        if not isinstance(value, (int, float)):
            return [0.5, 2.0]
        return [value * 0.5 if value else 0.3, value * 2, value + 0.3, 0.9]
    if origin is tuple and isinstance(value, tuple):
        if args[-1] is Ellipsis:
            grown = [(*value, c) for c in candidates(args[0], None) if c not in value]
            return ([value[:-1]] if len(value) > 1 else []) + grown
        return [tuple(v / 2 for v in value)]
    return []


def flat(value):
    """Bytes that two values share if they are the same to a reader."""
    if isinstance(value, torch.Tensor):
        return (tuple(value.shape), value.detach().double().numpy().tobytes())
    if isinstance(value, np.ndarray):
        return (value.shape, value.tobytes())
    if isinstance(value, dict):
        return tuple((key, flat(value[key])) for key in sorted(value))
    if isinstance(value, (list, tuple)):
        return tuple(flat(item) for item in value)
    return repr(value)


def terms_of(family, model, batch, scheduled):
    torch.manual_seed(SEED)
    terms = family.loss(model, batch, scheduled, SEED)
    return {name: [term.sum, term.count, term.coef] for name, term in terms.items()}


def told(experiment, patients, vocabulary):
    """Yield, cheapest first, all that a model is and says."""
    family, config = family_of(experiment, 0.3), experiment.model
    rows = [family.transform(patient, config, vocabulary) for patient in patients]
    yield "rows", flat([dict(row) for row in rows])
    batch = family.collate(rows, config)
    yield "batch", flat(batch)
    if experiment.task is not None:
        batch[LABEL] = (torch.arange(len(rows)) % 2).float()
    torch.manual_seed(0)
    model = family.build(config, vocabulary)
    if family.training.fit_buffers:
        with contextlib.suppress(InputError):
            family.training.fit_buffers(model, batch)
    with torch.no_grad():  # as after some training: what starts at zero would hide what it weighs
        for index, parameter in enumerate(model.parameters()):
            generator = torch.Generator().manual_seed(index)
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    yield "weights", flat(dict(model.state_dict()))
    yield (
        "choices",
        (
            family.select,
            extra_of(family, config),
            family.training.needs_pairs and family.training.needs_pairs(config),
        ),
    )
    if experiment.task is not None or getattr(config, "head", "") != "none":
        now = {name: schedule.at(15, 10) for name, schedule in experiment.schedules.items()}
        with torch.no_grad():
            yield "training", flat(terms_of(family, model.train(), batch, now))
            yield "validation", flat(terms_of(family, model.eval(), batch, family.eval_scheduled))
    with torch.no_grad():
        yield "predictions", flat(family.predict(model.eval(), batch))
        for name, output in family.evaluation.outputs.items():
            yield name, flat(output(model, batch))
        for name in ("reconstruct", "latents"):
            if function := getattr(family.evaluation, name):
                yield name, flat(function(model, batch))
    if family.files.phrases and getattr(config, "text_model", None):
        yield "phrases", flat(family.files.phrases(config, vocabulary))


def extra_of(family, config):
    extra = family.files.extra_checkpoints
    return None if extra is None else repr(sorted(extra(config).items()))


def changed(experiment, base, patients, vocabulary):
    """Whether anything that is told differs from the base, made part by part and kept."""
    made, known = told(experiment, patients, vocabulary), base["parts"]
    for index in itertools.count():
        if len(known) == index:
            part = next(base["more"], None)
            if part is None:
                return next(made, None) is not None
            known.append(part)
        if next(made, None) != known[index]:
            return True
    raise AssertionError


def tried(raw, path, other, base, people, vocabulary, schema):
    """`changed`, `refused` by name, `the same`, or `no config`, which says nothing."""
    try:
        experiment = parse(override(raw, {path: other}))
    except ConfigError:
        return "no config"
    if any(line.startswith(path) for line in refusals(experiment, schema)):
        return "refused"
    return "changed" if changed(experiment, base, people, vocabulary) else "the same"


@pytest.fixture(scope="module")
def people(synthetic_patients):
    return sorted(synthetic_patients["train"], key=lambda patient: -len(patient.code))[:3]


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    """Files that options name."""
    folder = tmp_path_factory.mktemp("tables")
    (folder / "lookup.csv").write_text("code,term\nHR,pulse\n")
    (folder / "embedding.csv").write_text("code,a,b\nHR,1,0\nMAP,0,1\n")
    return folder


@pytest.mark.parametrize("context", CONTEXTS)
def test_another_value_of_an_option_changes_something_or_is_refused(
    context, people, synthetic_cohort, synthetic_vocabulary, tables
):
    raw = override(read_yaml(CONFIGS / f"{context}.yaml"), {"data.cohort": str(synthetic_cohort)})
    base = parse(raw)
    schema = get_schema(base.family)
    start = {"parts": [], "more": told(base, people, synthetic_vocabulary)}
    sections = [("model", schema.config, base.model)]
    if base.task is not None:
        sections.append(("task", type(base.task), base.task))
    paths = [
        (f"{section}.{name}", hint, getattr(config, name))
        for section, kind, config in sections
        for name, hint in get_type_hints(kind, include_extras=True).items()
        if name in {field.name for field in dataclasses.fields(kind)}
    ]
    paths += [(f"schedules.{name}", float, None) for name in schema.schedules]
    inert = []
    for path, hint, value in paths:
        given = [v(tables) if callable(v) else v for v in OTHERS.get(path, ())]
        outcomes = []
        for other in (given or candidates(hint, value))[:3]:
            found = tried(raw, path, other, start, people, synthetic_vocabulary, schema)
            outcomes.append(found)
            if found in ("changed", "refused"):
                break
        else:
            inert.append(f"{path} {outcomes}")
    excused = EXCEPTIONS.get(context, {})
    assert [line for line in inert if line.split()[0] not in excused] == []


def is_read(name, trees):
    return any(isinstance(n, ast.Attribute) and n.attr == name for t in trees for n in t)


def test_fields_of_the_other_sections_are_read_outside_the_config():
    """Whether code asks for them at all; what they bring about is tested where they act."""
    folder = Path(ehr_ray.__file__).parent
    trees = [
        list(ast.walk(ast.parse(path.read_text())))
        for path in folder.rglob("*.py")
        if path.parent != folder / "config"
    ]
    hints = get_type_hints(Experiment)
    sections = {n: kind for n, kind in hints.items() if dataclasses.is_dataclass(kind)}
    fields = {f"{n}.{f.name}": f.name for n, k in sections.items() for f in dataclasses.fields(k)}
    assert [path for path, name in fields.items() if not is_read(name, trees)] == []
