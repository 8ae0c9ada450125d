"""No option is inert: each field of a config, set to another legal value, changes something.

Of a model or a task that is its rows, its weights, its loss or what it says of patients; else the
value is refused by name. Of the sections that say where and how a run happens, whose effects need a
cluster, it is that code reads the field. What else there is, is named here.
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
SKIPPED = ("visit_jepa_admissions", "set_vae_chamfer")
"""One whose rows are admissions: these patients have one each, from which nothing is predicted; and
one with the options of set_vae, a weight of which is 0."""


def contexts():
    """Return the names of the tiny configs; of those with one model and one task the first."""
    found = {}
    for path in sorted(CONFIGS.glob("*.yaml")):
        raw = read_yaml(path)
        if "family" in raw and path.stem not in SKIPPED:
            same = repr([raw.get(name) for name in ("family", "model", "task", "schedules")])
            found.setdefault(same, path.stem)
    return [*found.values()]


SEED = 12345
SIZES = "a size of an architecture beside the chosen one"
ROWS = "read where rows are prepared: tests/unit/runtime/data"
TRAIN = "fitted on all of train, which three patients are not: tests/unit/families/hcat"
PHRASES = "a folder, read where phrases are made: tests/unit/runtime/test_text_embedding.py"
VITALS = {
    "model.origin": "the same hour in these patients: tests/unit/events/test_grid.py",
    "model.fallback": "trained after a collapse: tests/unit/families/vitals_vae/test_fallback.py",
}
TASK = {
    "task.name": ROWS,
    "task.hours": ROWS,
    "task.label_ratio": ROWS,
    "task.select": "the choice",
    "task.kind": "must fit task.select: tests/unit/commands/evaluate/test_kinds.py",
    "task.classes": "refused unless the labels are classes: tests/unit/train/test_targets.py",
    "task.statistics": "fitted on all of train: tests/unit/train/test_statistics.py",
    "task.start_at_rate": "fitted on all of train: tests/unit/train/test_task.py",
}
FLAGS = {"model.max_flags": "no code without values here: tests/unit/events/test_visits.py"}
DECODERS = "refused where the two are read together: its test_config.py"
SETS = {"model.chunk_tokens": "the same sets in other pieces: memory alone"}
CODES = {f"model.{name}": SIZES for name in ("codebook", "code_groups", "code_width")}
BRANCHES = {f"model.{name}": SIZES for name in ("width", "scales", "stem", "bins", "trend_bins")}
EXCEPTIONS: dict[str, dict[str, str]] = {
    "hcat": {"model.class_weight": TRAIN, "model.censoring_weight": TRAIN},
    "set_vae": SETS,
    "seqset_poe": SETS,
    "seqset_finetune": {
        "model.learn_sets": "which sets have a gradient, not what they say: its test_model.py",
        **SETS,
        **TASK,
    },
    "mortality": FLAGS | TASK,
    "vitals_vae": {**VITALS, **CODES, "model.lstm_width": SIZES},
    "vitals_lstm": {**VITALS, **CODES, **BRANCHES},
    "vitals_vq": {**VITALS, "model.lstm_width": SIZES, "model.latent": SIZES},
    "event_decoder": {"model.phrases": PHRASES, "model.pool_queries": SIZES},
    "event_values": {
        "model.phrases": PHRASES,
        "model.pool_queries": SIZES,
        "model.arch": "an encoder is refused: its objectives are a decoder's",
    },
    "event_encoder": {
        "model.phrases": PHRASES,
        "model.pool_queries": SIZES,
        **dict.fromkeys(
            (
                "model.next_time_weight",
                "model.time_to_event_weight",
                "model.future_value_weight",
            ),
            DECODERS,
        ),
        **TASK,
    },
    "visit_jepa": {
        "model.target": "its own states alone are refused: tests/unit/families/jepa/test_config.py",
        **FLAGS,
    },
    "visit_jepa_finetune": FLAGS | TASK,
    "visit_jepa_probe": FLAGS | TASK,
}
"""By the config it is set in, an option that tells nothing here, and why."""
SMALL_SETS = {"model.carry_minutes": 60, "model.small_set_threshold": 20}
BASES = {
    "set_vae": SMALL_SETS,
    "seqset_poe": SMALL_SETS,
    "seqset_finetune": SMALL_SETS,
    "mortality": {"model.depth": None},
    "visit_jepa": {"model.depth": None},
    "visit_jepa_finetune": {"model.depth": None},
    "visit_jepa_probe": {"model.depth": None},
    **{f"vitals_{arch}": {"model.landmark_share": 0.9} for arch in ("vae", "lstm", "vq")},
}
"""What makes an option tell in a few patients of two days."""
OUTCOME = {"event": ["MAP"], "end": ["HR"], "horizon_days": 0.5, "positive": "no event"}
OTHERS: dict[str, list[Any]] = {
    "model.codes": [{"clinical": ["Age"], "temporal": ["HR"]}],
    "model.survival": [{"name": "other", **OUTCOME}],
    "model.recurrence": [{"name": "other", **OUTCOME}],
    "model.text_model": ["hashing", "own-model"],
    "model.phrases": [str],
    "model.medical_lookup": [lambda folder: str(folder / "lookup.csv")],
    "model.lab_lookup": [lambda folder: str(folder / "lookup.csv")],
    "model.embedding_csv": [lambda folder: str(folder / "embedding.csv")],
    "model.heads": [1, 4],
    "model.clip_value": [0.5],
    "model.always_carry": [["BUN", "Creatinine", "Glucose", "HCT"]],
    "model.max_values": [5],
    "model.future_value_codes": [2],
    "model.max_rows": [3],
    "model.outcomes": [["HR"]],
    "model.flows": [["HR"]],
    "model.discharges": [["HR"]],
    "model.landmarks": [[12]],
    "model.set_mae_ratio": [0.01],
    "model.small_set_threshold": [40],
    "model.vitals": [[{"name": "HR", "codes": ["HR"], "low": 0, "high": 300}]],
    "vitals_vae.model.scales": [[{"name": "one", "layers": [[5, 2]]}]],
}
"""Values to try where the type does not say which differ."""


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
    taught = {**batch, LABEL: (torch.arange(len(rows)) % 2).float()} if experiment.task else batch
    torch.manual_seed(0)
    model = family.build(config, vocabulary)
    if family.training.fit_buffers:
        with contextlib.suppress(InputError):
            family.training.fit_buffers(model, batch)
    with torch.no_grad():  # as after some training: what starts at zero would hide what it weighs
        for index, parameter in enumerate(model.parameters()):
            generator = torch.Generator().manual_seed(index)
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    # A generator that is left within `no_grad` would leave it on for other tests.
    yield "weights", flat(dict(model.state_dict()))
    yield (
        "choices",
        (
            family.select,
            extra_of(family, config),
            family.training.needs_pairs and family.training.needs_pairs(config),
        ),
    )
    now = {name: schedule.at(15, 10) for name, schedule in experiment.schedules.items()}
    if experiment.task is not None or getattr(config, "head", "") != "none":
        terms = torch.no_grad()(terms_of)
        yield "training", flat(terms(family, model.train(), taught, now))
        yield "validation", flat(terms(family, model.eval(), taught, family.eval_scheduled))
    if family.training.after_step:
        family.training.after_step(model, now)
        yield "moved", flat(dict(model.state_dict()))
    functions = {"predict": family.predict, **family.evaluation.outputs}
    functions |= {name: getattr(family.evaluation, name) for name in ("reconstruct", "latents")}
    for name, function in functions.items():
        if function:
            yield name, flat(torch.no_grad()(function)(model.eval(), batch))
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
    try:
        return "changed" if changed(experiment, base, people, vocabulary) else "the same"
    except ConfigError as error:
        return "refused" if str(error).startswith(path) else "no config"


@pytest.fixture(scope="module")
def people(synthetic_patients):
    return sorted(synthetic_patients["train"], key=lambda patient: -len(patient.code))[:3]


@pytest.fixture(scope="module")
def tables(tmp_path_factory, synthetic_vocabulary):
    """Files that options name."""
    folder = tmp_path_factory.mktemp("tables")
    (folder / "lookup.csv").write_text("code,term\nHR,pulse\n")
    wide = np.random.default_rng(0).normal(size=(len(synthetic_vocabulary), 40))
    rows = [[code, *row] for code, row in zip(synthetic_vocabulary.codes, wide, strict=True)]
    table = [["code", *range(40)], *rows]
    (folder / "embedding.csv").write_text("\n".join(",".join(map(str, r)) for r in table))
    return folder


@pytest.mark.parametrize("context", contexts())
def test_another_value_of_an_option_changes_something_or_is_refused(
    context, people, synthetic_cohort, synthetic_vocabulary, tables
):
    raw = override(
        read_yaml(CONFIGS / f"{context}.yaml"),
        {"data.cohort": str(synthetic_cohort), **BASES.get(context, {})},
    )
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
        known = OTHERS.get(f"{base.family}.{path}", OTHERS.get(path, ()))
        given = [v(tables) if callable(v) else v for v in known]
        outcomes = []
        for other in (given or candidates(hint, value))[:3]:
            found = tried(raw, path, other, start, people, synthetic_vocabulary, schema)
            outcomes.append(found)
            if found in ("changed", "refused"):
                break
        else:
            inert.append(f"{path} {outcomes}")
    excused = EXCEPTIONS.get(context, {})
    left = [line for line in inert if line.split()[0] not in excused]
    assert left == [], "\n".join(left)


def is_read(name, trees):
    return any(isinstance(n, ast.Attribute) and n.attr == name for t in trees for n in t)


def test_fields_of_the_other_sections_are_read_by_more_than_their_checks():
    """Whether code asks for them at all; what they bring about is tested where they act."""
    folder = Path(ehr_ray.__file__).parent
    trees = []
    for path in folder.rglob("*.py"):
        tree = ast.parse(path.read_text())
        if path.parent != folder / "config":
            trees.append(list(ast.walk(tree)))
            continue
        functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
        trees += [
            [node for node in ast.walk(function) if ast.unparse(node).startswith("self.")]
            for function in functions
            if function.name != "__post_init__"
        ]
    hints = get_type_hints(Experiment)
    sections = {n: kind for n, kind in hints.items() if dataclasses.is_dataclass(kind)}
    fields = {f"{n}.{f.name}": f.name for n, k in sections.items() for f in dataclasses.fields(k)}
    assert [path for path, name in fields.items() if not is_read(name, trees)] == []
