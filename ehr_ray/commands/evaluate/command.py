"""`evaluate`: a run's representation measured beside simple baselines, and the report of it."""

import contextlib
import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from ehr_ray.commands.evaluate.explain import check_explain, explain
from ehr_ray.commands.evaluate.few_labels import check_label_shares
from ehr_ray.commands.evaluate.kinds import (
    check_kind,
    known_labels,
    score_kinds,
)
from ehr_ray.commands.evaluate.other_cohort import (
    check_share,
    coverage_result,
    drift_of,
    mapped_subject,
    subgroups_by_place,
)
from ehr_ray.commands.evaluate.predicted_splits import (
    EvaluationInputs,
    choose_features,
    divisions_of,
    hours_of,
    predict,
    rows_without_events,
    split_of,
)
from ehr_ray.commands.evaluate.report_content import Subject, split_sizes
from ehr_ray.commands.evaluate.written import write_evaluation
from ehr_ray.commands.evaluate.zero_shot import check_zero_shot, zero_shot
from ehr_ray.errors import InputError
from ehr_ray.evaluation.coverage import MIN_KNOWN, check_min_known
from ehr_ray.evaluation.metrics.conformal import fit_sets
from ehr_ray.evaluation.suite import SuiteResult, merged
from ehr_ray.evaluation.tasks.downstream import Split, TaskScores, fit_task, score_task
from ehr_ray.evaluation.tasks.early_warning import early_warning_result, fit_hours
from ehr_ray.evaluation.tasks.external import calibration_result
from ehr_ray.evaluation.tasks.few_labels import few_labels_result
from ehr_ray.evaluation.tasks.kinds import KindScores
from ehr_ray.evaluation.tasks.prediction_sets import prediction_set_result
from ehr_ray.evaluation.tasks.subgroups import subgroup_result
from ehr_ray.evaluation.tasks.underfitting import train_result
from ehr_ray.events.code_map import load_code_map
from ehr_ray.events.labels import choose_task, first_kind, task_files
from ehr_ray.events.patients import splits_of
from ehr_ray.events.zero_shot import ZeroShot
from ehr_ray.runtime.data.dataset import check_cohort
from ehr_ray.runtime.data.task_labels import TaskLabels
from ehr_ray.runtime.data.tasks import Say, split_shards
from ehr_ray.runtime.inference.shards import check_gpus
from ehr_ray.runtime.session import session
from ehr_ray.runtime.training.ranking import MEASURES, TRIAL
from ehr_ray.runtime.verb_tracking import of_training, tracked_verb
from ehr_ray.storage import copies, files, runs, sync
from ehr_ray.storage.contents import files_of
from ehr_ray.storage.paths import (
    PARTS,
    check_cohort_folder,
    check_folder,
    check_output,
    check_outside,
    local,
)
from ehr_ray.train import checkpoint
from ehr_ray.train.history import HISTORY

TRAINED: Final = (
    "checkpoint", "checkpoints", "state", HISTORY, "experiment.yaml", MEASURES, TRIAL,
)  # fmt: skip
"""What the training writes of a run, or of a trial, and sends."""
NO_TASK = "none"
"""The task that leaves labels aside: whole patients are embedded, without probe or baselines."""


def evaluate(
    run: str | Path,
    *,
    cohort: str | Path | None = None,
    split: str = "held_out",
    task: str | None = None,
    output: str | Path | None = None,
    min_known_events: float = MIN_KNOWN,
    code_map: str | None = None,
    recalibrate: float | None = None,
    explained: int = 0,
    label_shares: Sequence[float] = (),
    asked: ZeroShot | None = None,
    gpus: float = 0.0,
    address: str | None = None,
    on_ray: bool = True,
    pages: bool = True,
    verbose: bool = False,
    say: Say = lambda _: None,
) -> list[str]:
    """Evaluate a run; return what a person should read.

    Probe and baselines are fitted on the train split of the run's own cohort and calibrated on
    its tuning split, whichever cohort is scored; nothing after a prediction time reaches a model.
    Another cohort is refused where the model knows a smaller share of the split's events than
    `min_known_events`, unless it has codes of as large a share of what the model was trained on.

    Args:
        run: folder or URI of the run.
        cohort: another one than the run's own.
        split: reported on.
        task: label file of the cohort; `none`: whole patients, without labels.
        output: folder of the results; the run's own unless given.
        min_known_events: share, 0 to 1.
        code_map: a shipped map's name or a CSV file, from another cohort's codes and units to those
            of the run's.
        recalibrate: share of the subjects of another cohort on which intercept and slope are
            refitted, to measure calibration on the others before and after.
        explained: rows at highest risk of which is told what their risk was read from.
        label_shares: of train's labelled patients; the task is learned from each anew, from
            representation and baselines, by a model that was not trained for it.
        asked: how likely a code is within a horizon, by futures that the model draws.
        gpus: of each process that predicts, where a run that was trained in bf16 does so; what
            `explained` and `asked` add is computed on the CPU.
        address: of the Ray to join.
        on_ray: infer by Ray Data; else in this process, as a task of Ray does.
        pages: write figures, results and the report beside metrics, predictions and embeddings.
        verbose: show Ray's own logs.
        say: gets a line for each step.
    """
    check_gpus(gpus)
    check_min_known(min_known_events)
    subject = _subject(runs.fetch_run(run), cohort, split, task, output)
    subject = dataclasses.replace(subject, on_ray=on_ray, gpus=gpus)
    chosen = None if code_map is None else load_code_map(code_map)
    _check_asked(subject, code_map, recalibrate, explained, label_shares, asked)
    # A name of its own: machines that share a store may have processes of one number.
    scratch = files.temporary(subject.run.absolute() / PARTS / "mapped")
    given = {
        "run": subject.run.absolute(),
        "cohort": subject.cohort.absolute(),
        "split": split,
        "task": subject.task or NO_TASK,
        "output": subject.target.absolute(),
        "min_known_events": min_known_events,
        "code_map": code_map,
        "gpus": gpus,
        "recalibrate": recalibrate,
        "explained": explained,
        "label_shares": list(label_shares),
        "zero_shot": None if asked is None else dataclasses.asdict(asked),
    }
    # Results on the run's own cohort belong to the training's MLflow run.
    place = None if subject.own else of_training(subject.run, subject.experiment)
    name = f"{subject.run.resolve().name} on {subject.cohort.resolve().name}"
    with (
        tracked_verb(place, "evaluate", name, given) as record,
        contextlib.ExitStack() as held,
    ):
        try:
            with session(address, verbose=verbose) if on_ray else contextlib.nullcontext():
                check_cohort(subject.cohort, subject.experiment.cache, say, on_ray=on_ray)
                subject, mapped = mapped_subject(subject, chosen, scratch, say)
                coverage = coverage_result(subject, min_known_events, say)
                scores, found, inputs = _score(subject, recalibrate, label_shares, held, say)
                if explained:
                    assert isinstance(scores, TaskScores)
                    rows = inputs.judged.rows
                    found = merged([found, explain(subject, scores, rows, explained, say)])
                if asked is not None:
                    found = merged([found, zero_shot(subject, asked, scratch / "zero_shot", say)])
                if pages:  # counted here, by Ray, and kept for the report
                    cache = subject.experiment.cache
                    split_sizes(subject.cohort, subject.task, cache, on_ray=on_ray)
            found = merged([SuiteResult(lines=mapped), coverage, found])
            within = subject.target.is_relative_to(subject.run)
            with copies.unsent(subject.run if within else subject.target):
                before = files_of(subject.target)
                lines = write_evaluation(subject, scores, found, inputs, record, say, pages)
                after = files_of(subject.target).items()
                changed = {name for name, stamp in after if before.get(name) != stamp}
                # Not what a training of this machine has written meanwhile, or has not sent.
                sync.push(
                    subject.target,
                    only={name for name in changed if name.partition("/")[0] not in TRAINED},
                )
        finally:
            sync.remove(scratch)
    return lines


def _subject(
    run: Path,
    cohort: str | Path | None,
    split: str,
    task: str | None,
    output: str | Path | None,
) -> Subject:
    if output is not None:
        check_output(output, "--output ")
    loaded = checkpoint.load(run)
    home = sync.fetch_cohort(loaded.experiment.data.cohort, missing_ok=True)
    judged_cohort = home if cohort is None else sync.fetch_cohort(cohort)
    if cohort is None:
        check_folder(home, "data.cohort=", "give the cohort as --cohort PATH")
    else:
        check_cohort_folder(judged_cohort, "--cohort ")
    own = judged_cohort.resolve() == home.resolve()
    if output is not None:
        for read in (judged_cohort, home):
            check_outside(output, "--output ", read)
    split_shards(judged_cohort, split)
    trained_for = loaded.experiment.task.name if loaded.experiment.task else None
    wanted = task or loaded.experiment.evaluation.task or trained_for
    if wanted is None and not own and home.is_dir():
        wanted = choose_task(home, None)
    task = None if wanted == NO_TASK else choose_task(judged_cohort, wanted)
    if task is not None and not own:
        if not home.is_dir():
            raise InputError(
                f"{home}: the run's own cohort is gone, and the probe is fitted on it; restore it"
            )
        choose_task(home, task)
    target = output or (run if own else run / "evaluations" / judged_cohort.resolve().name)
    subgroups = dict(loaded.experiment.evaluation.subgroups)
    if subgroups and not own:
        subgroups = {**subgroups_by_place(judged_cohort), **subgroups}
    return Subject(run, loaded, judged_cohort, own, split, task, local(target), subgroups=subgroups)


def _check_asked(
    subject: Subject,
    code_map: str | None,
    recalibrate: float | None,
    explained: int,
    label_shares: Sequence[float],
    asked: ZeroShot | None,
) -> None:
    """Refuse what this run, cohort and kind of label cannot be asked, before anything is read."""
    if recalibrate is not None:
        check_share(recalibrate, subject)
    check_explain(explained, subject)
    check_label_shares(label_shares, subject)
    check_zero_shot(asked, subject)
    if subject.task is not None:
        kind = first_kind(task_files(subject.cohort, subject.task))
        check_kind(subject, kind, recalibrate, explained, label_shares)
    if code_map is not None and subject.own:
        raise InputError(
            f"--code-map {code_map}: the run's own cohort has its codes; --cohort OTHER"
        )


def _score(
    subject: Subject,
    recalibrate: float | None,
    label_shares: Sequence[float],
    held: contextlib.ExitStack,
    say: Say,
) -> tuple[TaskScores | KindScores | None, SuiteResult, EvaluationInputs]:
    """Embed what is needed; fit on the run's cohort, score the split asked for."""
    home, task = subject.experiment.cohort, subject.task
    if task is None:
        say("no labels: embedding whole patients")
        wanted = bool(subject.loaded.family.evaluation.suites) and home.is_dir()
        return None, SuiteResult(), predict(subject, None, None, held, say, fit=wanted)
    labels = known_labels(subject, subject.labels_of(home))
    judged_labels = labels
    if subject.events != home:  # its own too, by another path
        judged_labels = subject.labels_of(subject.events).trained(labels.kind, labels.classes)
    if subject.experiment.evaluation.baselines:
        subject = dataclasses.replace(subject, features=choose_features(subject, say))
    for line in judged_labels.notes():
        say(line)
    no_train = f"{home}: no {subject.task} label in the train split to fit a probe on"
    no_judged = f"{subject.cohort}: no {subject.task} label in the {subject.split} split"
    if not _labelled(labels, "train"):
        raise InputError(no_train)
    if not _labelled(judged_labels, subject.split):
        raise InputError(no_judged)
    if not splits_of(home).get("tuning"):
        raise InputError(
            f"{home}: no tuning split to choose and calibrate on; ingest "
            "it anew with `--splits 0.8,0.1,0.1`"
        )
    inputs = predict(subject, labels, judged_labels, held, say)
    empty = rows_without_events(inputs.judged.rows, subject.split)
    if labels.kind != "binary":
        of_kind, found = score_kinds(subject, labels, inputs, say)
        return of_kind, merged([found, empty]), inputs
    scores, results = _score_binary(subject, inputs, recalibrate, label_shares, say)
    return scores, merged([empty, *results]), inputs


def _labelled(labels: TaskLabels, split: str) -> int:
    return labels.splits[split].labelled if split in labels.splits else 0


def _score_binary(
    subject: Subject,
    inputs: EvaluationInputs,
    recalibrate: float | None,
    label_shares: Sequence[float],
    say: Say,
) -> tuple[TaskScores, list[SuiteResult]]:
    """Fit probe and baselines of a binary label; return their scores and what else it is told."""
    fit = inputs.fit
    say("fitting the probe and the baselines")
    draws = {
        "seed": subject.experiment.seed,
        "num_bootstrap": subject.experiment.evaluation.bootstrap,
    }
    splits = {name: split_of(rows.sample) for name, rows in fit.items()}
    stack = subject.experiment.evaluation.stack
    fitted = fit_task(
        splits["train"],
        splits["tuning"],
        seed=draws["seed"],
        ensemble=subject.experiment.evaluation.ensemble,
        stack=None if stack is None else dataclasses.asdict(stack),
    )
    scored: dict[str, Iterable[Split]] = {"tuning": [splits["tuning"]]} if subject.own else {}
    scored |= {subject.split: map(split_of, inputs.judged.blocks())}
    say("scoring, with bootstrap intervals")
    scores = score_task(fitted, scored, **draws)
    say("scoring subgroups, prediction sets and early hours")
    divisions, left_out = divisions_of(inputs.judged.rows, subject)
    hours = {name: hours_of(rows.sample) for name, rows in fit.items()}
    early = fit_hours(hours["train"], hours["tuning"], fitted, splits, seed=draws["seed"])
    results = [
        left_out,
        train_result(fitted, splits["train"], scores.metrics, subject.split),
        early_warning_result(early, hours_of(inputs.judged.sample), subject.split, **draws),
        subgroup_result(divisions, scores, subject.split, **draws),
    ]
    if subject.split != "tuning":  # on which the sets are fitted
        sets = fit_sets(fitted.model_probability(splits["tuning"]), splits["tuning"].label)
        results.append(prediction_set_result(sets, divisions, scores, subject.split, **draws))
    if label_shares:
        say("learning the task from few labels")
        learned = few_labels_result(
            splits["train"],
            split_of(inputs.judged.sample),
            subject.split,
            shares=label_shares,
            **draws,
        )
        results.append(learned)
    if not subject.own:
        say("measuring calibration and drift in the other cohort")
        results.append(calibration_result(scores, subject.split, share=recalibrate, **draws))
        results.append(drift_of(subject, splits["train"], split_of(inputs.judged.sample)))
    return scores, results
