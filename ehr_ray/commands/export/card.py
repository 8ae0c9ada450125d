"""The model card of an exported model: all it says comes from the run, its cohort and its results.

Its headings are those of Mitchell et al. (2019), Model cards for model reporting.
"""

import re
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

from ehr_ray.commands.evaluate.report_content import provenance, split_sizes
from ehr_ray.errors import InputError
from ehr_ray.evaluation.markdown import bullets, escaped, paragraph, table_lines
from ehr_ray.events.label_tasks import Kind
from ehr_ray.events.scaling import Scaling
from ehr_ray.storage.paths import canonical
from ehr_ray.train import checkpoint
from ehr_ray.train.run_model import NETWORK_ALONE, RunModel
from ehr_ray.train.task_probe import TaskProbe, read_task_probes

RESULTS = "results.md"


def task_of(model: RunModel) -> str | None:
    """Return the task the exported model predicts unless told; None where it predicts none."""
    if model.experiment.task is not None:
        return model.experiment.task.name
    return min(read_task_probes(model.folder, model.weights), default=None)


def model_card(
    model: RunModel,
    task: str | None,
    hashes: Mapping[str, str],
    inputs: Mapping[str, str] | None = None,
) -> str:
    """Return the card as Markdown; `hashes` are those of the other files, by name.

    `inputs` are what the program in `model.pt2` reads: type and axes by name; none without one.
    """
    probes = read_task_probes(model.folder, model.weights)
    results = _results(model.folder / RESULTS)
    parts = {
        "": _summary(model, probes),
        "Use": _use(task, ", ".join(model.answers(task)), model.vocabulary.scaling),
        **({"As a program": _program(inputs)} if inputs else {}),
        "Intended use": _intended(model, probes),
        "It must not be used for": _misuse(results),
        "Data": _data(model, task),
        "Results": results or "This run was not evaluated: nothing is known of how well it does.",
        "Files": _files(hashes),
    }
    tags = f"[electronic-health-records, meds, {model.family.name}]"
    head = f"---\nlibrary_name: ehr_ray\ntags: {tags}\n---"
    blocks = [head, f"# {escaped(model.experiment.name)}"]
    blocks += [f"## {title}\n\n{text}" if title else text for title, text in parts.items()]
    return "\n\n".join(blocks) + "\n"


def _summary(model: RunModel, probes: Mapping[str, TaskProbe]) -> str:
    experiment = model.experiment
    size = sum(parameter.numel() for parameter in model.model.parameters())
    progress = checkpoint.saved_progress(model.folder)
    steps = f", {progress.step:,} steps" if progress is not None else ""
    start = (
        f", from the weights of {Path(experiment.init_from).name}" if experiment.init_from else ""
    )
    trained = "its family's own objective"
    if experiment.task is not None:
        trained = f"the task {experiment.task.name}"
        if (number := experiment.train.seeds) > 1:
            trained = f"{trained} as {number} models that are averaged"
    told = "".join(
        f" It gives {_what(p.task, p.kind, p.classes, p.positive)}, "
        f"{'calibrated on the tuning split' if p.kind == 'binary' else 'by a probe'}."
        for p in probes.values()
    )
    task = experiment.task
    if task is not None and task.name not in probes:
        told += f" It gives {_what(task.name, task.kind, task.classes)}, not calibrated."
    if experiment.evaluation.ensemble and task is not None:
        told += f" {NETWORK_ALONE[0].upper()}{NETWORK_ALONE[1:]}."
    return paragraph(
        f"A model of the family {experiment.family} with {size:,} parameters, trained for "
        f"{trained}{steps}, seed {experiment.seed}{start}. It reads the "
        f"events of a patient (MEDS) and gives an embedding.{told} "
        f"Written by ehr_ray {version('ehr_ray')}."
    )


def _what(task: str, kind: Kind, classes: Sequence[str], positive: str = "") -> str:
    if kind == "regression":
        return f"a prediction of {task}, in the unit of its labels"
    if kind == "classes":
        return f"the probability of each class of {task} ({', '.join(classes)})"
    return f"the probability of {task}{f' ({positive})' if positive else ''}"


def _use(task: str | None, columns: str, scaling: Scaling) -> str:
    robust = scaling == "robust"
    scales = "median and interquartile range" if robust else "mean and standard deviation"
    calls = ["model.embed(events)      # subject_id, embedding"]
    if task is not None:
        calls.append(f"model.predict(events, task={task!r})  # subject_id, {columns}")
    body = "\n".join(calls)
    return (
        "```python\nimport ehr_ray\n\n"
        'model = ehr_ray.load(".")  # this folder; on CPU, without Ray\n'
        f"{body}\n```\n\n"
        "`events` is a pandas DataFrame or an Arrow table of `subject_id`, `time` (null for what "
        "is static), `code` and `numeric_value`, with the codes and units of "
        "`vocabulary.parquet`; `predict(..., prediction_times=table)` reads what was known until "
        "then. `python predict.py EVENTS.parquet OUTPUT.parquet` does the same for a file. Values "
        f"are scaled by the {scales} in `vocabulary.parquet`, which are those of "
        "the training patients; codes that are not in it are left out, and a warning tells their "
        "share."
    )


def _program(inputs: Mapping[str, str]) -> str:
    return (
        "`model.pt2` is what the model computes on a CPU, traced by torch.export: it needs torch "
        "alone.\n\n"
        "```python\nimport torch\n\n"
        'program = torch.export.load("model.pt2").module()\n'
        "outputs = program(batch)  # tensors by name, the first axis patients\n```\n\n"
        "`batch` holds the tensors that `ehr_ray` makes of patients, of any number and length:\n\n"
        + table_lines(("Tensor", "Type and axes"), sorted(inputs.items()))
    )


def _intended(model: RunModel, probes: Mapping[str, TaskProbe]) -> str:
    where = _cohort_name(model)
    texts = [
        "Research: embeddings as the input of further models, and comparisons with other models "
        f"on patients like those of {where}."
    ]
    texts += [
        f"{'The risk' if found.kind == 'binary' else 'Predictions'} of {task} at the prediction "
        "times its labels have, in studies that compare these with what happened."
        for task, found in probes.items()
    ]
    texts.append(
        "Anywhere else only after ehr-ray evaluate RUN --cohort OTHER on patients from there: "
        "share of known codes, discrimination, calibration, and each subgroup that matters."
    )
    return bullets(texts)


def _misuse(results: str) -> str:
    texts = [
        "Decisions on the care of a patient: it is no medical device, and nobody has tried it at "
        "the bedside.",
        "Patients of another hospital, time, age group or coding than those it was trained on, "
        "without an evaluation there.",
        "Decisions against a person: refusing care, insurance or work, or judging staff.",
        "Finding out who a training patient was. vocabulary.parquet has counts and quantiles of "
        "the training patients: check that you may hand them on.",
    ]
    if "too few" in results:
        texts.append("Groups marked “too few” below: how it does for them is not known.")
    if not results:
        texts.append("Anything but experiments: it was not evaluated.")
    return bullets(texts)


def _data(model: RunModel, task: str | None) -> str:
    home = model.experiment.cohort
    facts = [
        f"Cohort: {_cohort_name(model)}.",
        f"Codes known to the model: {len(model.vocabulary):,}.",
        "A patient is in one split. Codes, statistics and weights come from train; checkpoint, "
        "calibration and thresholds from tuning.",
    ]
    if not home.is_dir():
        return bullets([*facts, "The cohort was not at hand when this was written."])
    facts += [f"{name}: {text}." for name, text in provenance(home).items()]
    try:
        sizes = split_sizes(home, task, model.experiment.cache)
    except InputError:  # its labels are gone
        sizes = split_sizes(home, None, model.experiment.cache)
    rows = [(s.name, f"{s.patients:,}", f"{s.labelled:,}", f"{s.positive or 0:,}") for s in sizes]
    counted = all(s.positive is not None for s in sizes)
    columns = ("Split", "Patients", f"Labels of {task}", "Positive")
    shown = (len(columns) if counted else 3) if task else 2  # of no task nothing was counted
    return f"{bullets(facts)}\n\n{table_lines(columns[:shown], [row[:shown] for row in rows])}"


def _cohort_name(model: RunModel) -> str:
    return Path(canonical(model.experiment.data.cohort)).name


def _results(path: Path) -> str:
    """Return the results of `evaluate` as a part of a page; empty without any."""
    if not path.is_file():
        return ""
    _, _, text = path.read_text().partition("\n")
    return re.sub(r"^##", "###", text.strip(), flags=re.MULTILINE)


def _files(hashes: Mapping[str, str]) -> str:
    rows = [(name, digest) for name, digest in sorted(hashes.items())]
    table = table_lines(("File", "SHA-256"), rows)
    return f"{table}\n\n`sha256sum -c SHA256SUMS` checks them all, this page too."
