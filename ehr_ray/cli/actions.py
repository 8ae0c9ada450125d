"""What each verb does: its story is imported from `commands` once its arguments are known.

A verb whose imports take seconds says `screen.starting` before them, after what is told at once.
"""

import json
import shlex
import time
from pathlib import Path
from typing import Any

from ehr_ray.cli.ingest import source_options
from ehr_ray.cli.parser import Arguments, relative
from ehr_ray.cli.stages import evaluate_run, make_cohort, make_phrases, train_run
from ehr_ray.cli.zero_shot import zero_shot_of
from ehr_ray.errors import ConfigError, InputError, RunError
from ehr_ray.runtime.screen import Screen
from ehr_ray.storage.paths import (
    check_cohort_folder,
    check_output,
    check_outside,
    check_run_folder,
    local,
)


def quickstart(args: Arguments, screen: Screen) -> None:
    """Run every step on synthetic patients."""
    check_output(args.output, "--output ")
    screen.say("quickstart: starting, a few seconds")
    from ehr_ray.commands.quickstart import quickstart

    quickstart(args.output, screen=screen, verbose=args.verbose)


def ingest(args: Arguments, screen: Screen) -> None:
    """Make a cohort."""
    check_output(args.output, "--output ")
    options = source_options(args)
    from ehr_ray.commands.ingest import ingest
    from ehr_ray.runtime.verb_tracking import asked_for
    from ehr_ray.train.allocator import keep_freed_memory

    keep_freed_memory()  # page faults of large arrays are a tenth of the time
    summary = ingest(
        args.source,
        args.input,
        args.output,
        splits=args.splits,
        origin=args.origin,
        seed=args.seed,
        max_rejected=args.max_rejected,
        options=options,
        ranges=args.ranges,
        conversions=args.units,
        repeats=args.repeats,
        code_map=args.code_map,
        split_by=args.split_by,
        unlisted=args.unlisted,
        cpus=args.cpus,
        tracking=asked_for(args.tracking_uri, args.experiment),
        progress=screen.passing,
    )
    screen.say(str(summary))


def expand(args: Arguments, screen: Screen) -> None:
    """Carry values forward."""
    check_cohort_folder(args.cohort, "")
    check_output(args.output, "--output ")
    check_outside(args.output, "--output ", args.cohort)
    screen.starting(args.verb)
    from ehr_ray.commands.expand import expand
    from ehr_ray.runtime.verb_tracking import asked_for

    result = expand(
        args.cohort,
        args.output,
        lvcf_minutes=args.lvcf_minutes,
        always_carry=tuple(code for code in args.always_carry.split(",") if code),
        value_stats=args.value_stats,
        scale=args.scale,
        origin=args.origin,
        address=args.address,
        tracking=asked_for(args.tracking_uri, args.experiment),
        smoke=args.smoke,
        verbose=args.verbose,
        say=screen.passing,
    )
    screen.say(
        f"{relative(args.output)}: {result.tokens:,} tokens of {result.patients:,} patients "
        f"in {result.shards} shards, {result.seconds:.1f} s{'; none of it kept' * args.smoke}"
    )
    if result.unscaled:
        screen.say(
            f"{result.unscaled:,} tokens have a value of a code without statistics: it is written "
            "as measured, by mean 0 and standard deviation 1"
        )


def labels(args: Arguments, screen: Screen) -> None:
    """Label a cohort."""
    check_cohort_folder(args.cohort, "--cohort ")
    screen.starting(args.verb)
    from ehr_ray.commands.labels import label

    done = label(
        args.config,
        args.cohort,
        task=args.task,
        predicates=args.predicates,
        address=args.address,
        verbose=args.verbose,
        say=screen.passing,
    )
    screen.say(f"{relative(args.cohort)}: {done}")


def phrases(args: Arguments, screen: Screen) -> None:
    """Embed an experiment's phrases."""
    experiment = _experiment(args)
    screen.starting(args.verb)
    make_phrases(experiment, screen, args.verbose)


def export_pt(args: Arguments, screen: Screen) -> None:
    """Write one .pt a patient."""
    check_output(args.output, "--output ")
    experiment = _experiment(args)
    check_outside(args.output, "--output ", experiment.data.cohort)
    screen.starting(args.verb)
    from ehr_ray.commands.export_pt import export_pt

    count = export_pt(
        experiment,
        args.output,
        task=args.task,
        skip_unlabelled=args.skip_unlabelled,
        half=args.float16,
        verbose=args.verbose,
        say=screen.passing,
    )
    screen.say(f"{relative(args.output)}: {count:,} patients, one .pt each")


def prepare(args: Arguments, screen: Screen) -> None:
    """Make model-ready rows."""
    if args.export is not None:
        check_output(args.export, "--export ", file=True)
    experiment = _experiment(args)
    if args.export is not None:
        check_outside(args.export, "--export ", experiment.data.cohort)
    screen.starting(args.verb)
    from ehr_ray.commands.prepare import prepare

    for line in prepare(experiment, screen, export=args.export, verbose=args.verbose):
        screen.say(line)


def train(args: Arguments, screen: Screen) -> None:
    """Train one run, or the stages of a pipeline."""
    from ehr_ray.commands.train.pipeline import is_pipeline, load_pipeline, run_pipeline

    if args.smoke:
        if is_pipeline(args.config):
            raise ConfigError(f"{args.config}: --smoke tries one run; give a config of a stage")
        experiment = _experiment(args)
        screen.starting(args.verb)
        from ehr_ray.commands.train.smoke import smoke

        screen.say(smoke(experiment, screen=screen, verbose=args.verbose))
        return
    if not is_pipeline(args.config):
        experiment = _experiment(args)
        screen.starting(args.verb)
        train_run(experiment, screen, args.verbose)
        return
    pipeline = load_pipeline(args.config, args.overrides)
    for stage in pipeline.stages:
        if pipeline.ingest is None and stage.experiment.data.expanded is None:
            check_cohort_folder(stage.experiment.data.cohort)
        _check_outputs(stage.experiment)
    screen.starting(args.verb)
    judged = {stage.experiment.name for stage in pipeline.stages if stage.verb == "evaluate"}
    verbs = {
        "phrases": lambda experiment: make_phrases(experiment, screen, args.verbose),
        "train": lambda experiment: train_run(
            experiment, screen, args.verbose, judged_later=experiment.name in judged
        ),
        "evaluate": lambda experiment: evaluate_run(experiment, screen, args.verbose),
    }
    run_pipeline(
        pipeline, verbs, lambda stage, cohort: make_cohort(stage, cohort, screen), screen.say
    )


def tune(args: Arguments, screen: Screen) -> None:
    """Search."""
    from ehr_ray.commands.train.pipeline import is_pipeline

    if is_pipeline(args.config):
        raise ConfigError(f"{args.config}: a pipeline of stages; tune one of its configs")
    experiment = _experiment(args)
    screen.starting(args.verb)
    from ehr_ray.commands.tune import tune
    from ehr_ray.runtime.tuning.trial import trial_dir

    searched = tune(experiment, screen=screen, verbose=args.verbose)
    for line in searched.lines:
        screen.say(line)
    if searched.sweep.best is not None:
        best = trial_dir(relative(searched.root), int(searched.sweep.best["trial"]))
        screen.say(f"next: ehr-ray evaluate {shlex.quote(str(best))}")
    elif not searched.sweep.frame["score"].notna().any():
        raise RunError(f"{searched.root.name}: no trial has a score")


def crossval(args: Arguments, screen: Screen) -> None:
    """Train and judge on folds."""
    from ehr_ray.experiment import load

    given = {
        "folds": args.folds,
        "repeats": args.repeats,
        "members": args.members,
        "variant_repeats": args.variant_repeats,
        "chosen": _listed(args.variants),
        "tasks": _listed(args.task),
    }
    # JSON is YAML in which no name means anything else: `no` stays a text.
    plan = [f"crossval.{k}={json.dumps(v)}" for k, v in given.items() if v is not None]
    experiment = load(args.config, [*args.overrides, *plan])
    check_cohort_folder(experiment.data.cohort)
    _check_outputs(experiment)
    screen.starting(args.verb)
    from ehr_ray.commands.crossval.command import crossval

    for line in crossval(experiment, cpus=args.cpus, verbose=args.verbose, say=screen.say):
        screen.say(line)


def evaluate(args: Arguments, screen: Screen) -> None:
    """Measure a run."""
    asked = zero_shot_of(args)
    check_run_folder(args.run_folder)
    if args.cohort is not None:
        check_cohort_folder(args.cohort, "--cohort ")
    if args.output is not None:
        check_output(args.output, "--output ")
    label_shares = _numbers("--label-shares", args.label_shares)
    screen.starting(args.verb)
    from ehr_ray.commands.evaluate.command import evaluate

    for line in evaluate(
        args.run_folder,
        cohort=args.cohort,
        split=args.split,
        task=args.task,
        output=args.output,
        min_known_events=args.min_known_events,
        recalibrate=args.recalibrate,
        explained=args.explain,
        label_shares=label_shares,
        asked=asked,
        code_map=args.code_map,
        gpus=args.gpus,
        address=args.address,
        verbose=args.verbose,
        say=screen.passing,
    ):
        screen.say(line)


def embed(args: Arguments, screen: Screen) -> None:
    """Embed a cohort."""
    check_run_folder(args.run_folder)
    check_cohort_folder(args.cohort, "--cohort ")
    one_file = Path(local(args.output)).suffix == ".parquet"
    check_output(args.output, "--output ", file=one_file)
    check_outside(args.output, "--output ", args.cohort)
    screen.starting(args.verb)
    from ehr_ray.commands.embed import embed

    rows = embed(
        args.run_folder,
        args.cohort,
        args.output,
        min_known_events=args.min_known_events,
        code_map=args.code_map,
        gpus=args.gpus,
        address=args.address,
        verbose=args.verbose,
        say=screen.passing,
    )
    screen.say(f"{relative(args.output)}: embeddings of {rows:,} patients")


def benchmark(args: Arguments, screen: Screen) -> None:
    """Measure speed."""
    began = time.monotonic()  # before the imports: a part has a limit of time
    check_output(args.output, "--output ", file=True)
    if args.cohort is not None:
        check_cohort_folder(args.cohort, "--cohort ")
    if args.overrides and args.config is None:
        raise ConfigError(f"{args.overrides[0]}: changes a config; name it by --config CONFIG")
    given = {
        "cohort": args.cohort,
        "only": args.only,
        "verbose": args.verbose,
        "device": args.device,
        "began": began,
    }
    if args.config is not None:
        given["experiment"] = _experiment(args, on_cohort=False)
    screen.starting(args.verb)
    from ehr_ray.commands.benchmark.command import MODEL, benchmark

    if args.config is not None:
        given["only"] = args.only or MODEL
    benchmark(args.output, **given)


def export(args: Arguments, screen: Screen) -> None:
    """Write a model to hand on."""
    check_run_folder(args.run_folder)
    check_output(args.output, "")
    screen.starting(args.verb)
    from ehr_ray.commands.export.command import export

    names = export(args.run_folder, args.output, torch_export=args.torch_export)
    screen.say(f"{relative(args.output)}: {', '.join(map(str, names))}")


def doctor(args: Arguments, screen: Screen) -> None:
    """Look at this machine."""
    experiment = None if args.config is None else _experiment(args, on_cohort=False)
    screen.starting(args.verb)
    from ehr_ray.commands.doctor.command import counted, doctor

    checks = doctor(experiment, start_ray=args.ray)
    for check in checks:
        screen.say(str(check))
    warnings = sum(bool(check.remedy) for check in checks)
    if refused := [check.remedy for check in checks if check.refused]:
        raise ConfigError(refused[0])
    screen.say(counted(warnings, "warning") if warnings else "nothing in the way of a run")


def new_family(args: Arguments, screen: Screen) -> None:
    """Write the files of a family, and say what comes next."""
    from ehr_ray.commands.new_family.command import new_family

    for path in new_family(Path.cwd(), args.name):
        screen.say(str(path))
    screen.say(
        f"next: pytest tests/contract/test_family.py -k {args.name} --update-golden stores its "
        f"first losses, and pytest tests/contract tests/unit/families/{args.name} then passes; "
        "how to go on: ehr_ray/families/README.md"
    )


def _experiment(args: Arguments, *, on_cohort: bool = True) -> Any:
    """Return the experiment of CONFIG and its overrides; what is wrong is told before imports."""
    from ehr_ray.experiment import load

    experiment = load(args.config, args.overrides)
    if on_cohort and experiment.data.expanded is None:
        check_cohort_folder(experiment.data.cohort)
    _check_outputs(experiment)
    return experiment


def _check_outputs(experiment: Any) -> None:
    """Refuse an experiment whose run's folder, or cache, cannot be where it says."""
    for given, option in (
        (experiment.location, "output/name "),
        (experiment.cache, "data.cache_dir="),
    ):
        check_output(given, option)
        check_outside(given, option, experiment.data.cohort)


def _listed(text: str | None) -> list[str] | None:
    """Return the names of a list with commas; None where nothing was given."""
    return None if text is None else [name for name in text.split(",") if name]


def _numbers(option: str, text: str) -> list[float]:
    """Return the numbers of a list with commas."""
    try:
        return [float(number) for number in text.split(",") if number.strip()]
    except ValueError:
        raise InputError(
            f"{option} {text}: give numbers with commas between, as 0.01,0.1"
        ) from None
