"""What MEDS-DEV runs of this package, by the commands in `model.yaml`: pretrain, finetune, predict.

A step's `--model` is the `--output` of the step before it.
"""

import argparse
import shutil
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa

import ehr_ray
from ehr_ray.errors import InputError, RunError, UserError
from ehr_ray.storage import files

HERE = Path(__file__).parent
PRETRAINED, FINETUNED, TASK = "pretrain", "finetune", "task"
"""Names of the two runs, as in their configs, and what the benchmark's task is called in them."""
EVENTS = ("subject_id", "time", "code", "numeric_value")


def pretrain(args):
    """Train without labels."""
    train(PRETRAINED, args, args.dataset)


def finetune(args):
    """Train for the labels, and calibrate on tuning."""
    from ehr_ray.commands.evaluate.command import evaluate

    cohort = labelled(args.dataset, args.labels, args.output / "cohort")
    pretrained = (args.model / PRETRAINED).absolute()
    run = train(FINETUNED, args, cohort, f"init_from={pretrained}")
    on_ray = not args.demo
    for line in evaluate(run, split="tuning", task=TASK, on_ray=on_ray, pages=False):
        print(line)


def predict(args):
    """Write `predictions.parquet`: a row for each label of a subject of the split."""
    from ehr_ray.evaluation.metrics.thresholds import choose_threshold
    from ehr_ray.evaluation.report.write import write_predictions
    from ehr_ray.events.labels import read_label_files
    from ehr_ray.runtime.data.tasks import split_shards

    run = args.model / FINETUNED
    model = ehr_ray.load(str(run))
    tuning = files.read_parquet(run / "predictions" / "tuning.parquet", remedy="train again")
    columns = ("boolean_value", "predicted_boolean_probability")
    threshold = choose_threshold(*(tuning[name].to_numpy() for name in columns))
    labels = read_label_files(TASK, label_paths(args.labels))
    found = []
    for shard in split_shards(args.dataset, args.split):
        events = files.read_parquet(shard)
        events = events.select([name for name in EVENTS if name in events.column_names])
        mine = np.flatnonzero(np.isin(labels.subject_id, events["subject_id"].to_numpy()))
        if len(mine):
            times = {
                "subject_id": labels.subject_id[mine],
                "prediction_time": pa.array(labels.prediction_time[mine], pa.timestamp("us")),
            }
            told = model.predict(events, task=TASK, prediction_times=pa.table(times))
            found.append((mine, told["probability"].to_numpy()))
    if not found:
        raise InputError(f"{args.labels}: no label of a subject of {args.split}; check --split")
    rows, probability = (np.concatenate(parts) for parts in zip(*found, strict=True))
    write_predictions(
        args.output / "predictions.parquet",
        labels.subject_id[rows],
        labels.prediction_time[rows].astype("datetime64[us]"),
        labels.value[rows],
        probability,
        threshold=threshold,
    )


def train(name, args, cohort, *more):
    """Train the experiment of `<name>.yaml`, or resume it; return the run's folder."""
    import torch

    from ehr_ray.commands.train.command import train as train_run
    from ehr_ray.experiment import load
    from ehr_ray.runtime.screen import Screen

    changes = [
        f"data.cohort={cohort.absolute()}",
        f"output={args.output.absolute()}",
        f"cluster.gpus_per_worker={int(torch.cuda.is_available())}",
        *more,
    ]
    if args.demo:  # few patients: one pass over them, in this process
        changes += ["cluster.num_workers=0", "train.max_epochs=1", "train.warmup_steps=0"]
    return train_run(load(HERE / f"{name}.yaml", changes), screen=Screen()).run


def labelled(dataset, labels, folder):
    """Return `folder` made a cohort: links to the events and to the label files."""
    links = {name: dataset / name for name in ("data", "metadata")}
    numbered = enumerate(label_paths(labels))
    links |= {f"labels/{TASK}/{number}.parquet": path for number, path in numbered}
    shutil.rmtree(folder, ignore_errors=True)
    for name, target in links.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).symlink_to(target.resolve())
    return folder


def label_paths(folder):
    """Return the label files, which may lie anywhere below their folder."""
    paths = sorted(folder.rglob("*.parquet"))
    if not paths:
        raise InputError(f"--labels {folder}: no Parquet file below it; extract the task's labels")
    return paths


def _truth(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"{text}: write True or False")
    return text.lower() == "true"


def parser():
    """Return the parser of the three steps."""
    made = argparse.ArgumentParser(description=__doc__)
    steps = made.add_subparsers(required=True)
    needs = {
        pretrain: ("dataset", "output"),
        finetune: ("dataset", "labels", "model", "output"),
        predict: ("dataset", "labels", "model", "output"),
    }
    for step, folders in needs.items():
        one = steps.add_parser(step.__name__, help=step.__doc__)
        one.set_defaults(step=step)
        for folder in folders:
            one.add_argument(f"--{folder}", type=Path, required=True)
        if step is predict:
            one.add_argument("--split", default="held_out")
        else:
            one.add_argument("--demo", type=_truth, default=False)
    return made


if __name__ == "__main__":
    args = parser().parse_args()
    try:
        args.step(args)
    except (UserError, RunError) as error:
        print(f"ehr_ray: {error}", file=sys.stderr)
        raise SystemExit(2 if isinstance(error, UserError) else 1) from None
