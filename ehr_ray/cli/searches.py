"""Verbs of many runs: `tune`, `crossval` and `benchmark`."""

import shlex
from pathlib import Path
from typing import Any

from ehr_ray.cli.parser import Arguments, add_verb, config_verb, new_screen, path, relative
from ehr_ray.errors import ConfigError, RunError


def tune_arguments(verbs: Any) -> None:
    """Add `tune`."""

    def run(args: Arguments) -> None:
        from ehr_ray.commands.train.pipeline import is_pipeline
        from ehr_ray.commands.tune import tune
        from ehr_ray.experiment import load
        from ehr_ray.runtime.tuning.trial import trial_dir

        if is_pipeline(args.config):
            raise ConfigError(f"{args.config}: a pipeline of stages; tune one of its configs")
        screen = new_screen()
        searched = tune(load(args.config, args.overrides), screen=screen, verbose=args.verbose)
        for line in searched.lines:
            screen.say(line)
        if searched.sweep.best is not None:
            best = trial_dir(relative(searched.root), int(searched.sweep.best["trial"]))
            screen.say(f"next: ehr-ray evaluate {shlex.quote(str(best))}")
        elif not searched.sweep.frame["score"].notna().any():
            raise RunError(f"{searched.root.name}: no trial has a score")

    config_verb(
        verbs,
        "tune",
        run,
        "search a config's space by Ray Tune; the same command again resumes. What varies is "
        "`search` of the config, by default the family's space; how is `tune`: trials=16, "
        "method=random|grid|optuna, scheduler=asha|median|pbt|none, rank=metric|probe, concurrent",
        "ehr-ray tune configs/set_vae.yaml data.cohort=cohorts/p12 tune.trials=16 name=sweep",
    )


def crossval_arguments(verbs: Any) -> None:
    """Add `crossval`."""

    def run(args: Arguments) -> None:
        from ehr_ray.commands.crossval.command import Plan, crossval
        from ehr_ray.experiment import load

        screen = new_screen()
        plan = Plan(
            folds=args.folds,
            repeats=args.repeats,
            members=args.members,
            variants=tuple(name for name in args.variants.split(",") if name),
            variant_repeats=args.variant_repeats,
        )
        experiment = load(args.config, args.overrides)
        for line in crossval(
            experiment, plan, cpus=args.cpus, verbose=args.verbose, say=screen.say
        ):
            screen.say(line)

    parser = config_verb(
        verbs,
        "crossval",
        run,
        "train and judge on repeated stratified folds, as parallel Ray jobs, beside baselines",
        "ehr-ray crossval configs/hcat.yaml data.cohort=cohorts/hancock --folds 5 --repeats 2",
    )
    parser.add_argument("--folds", type=int, default=5, help="parts of the cohort (default 5)")
    parser.add_argument("--repeats", type=int, default=2, help="divisions anew (default 2)")
    parser.add_argument("--members", type=int, default=1, help="seeds averaged in each fold")
    parser.add_argument(
        "--variants", default="", help="ablations: no_imputer,no_gate,only_clinical"
    )
    parser.add_argument(
        "--variant-repeats", type=int, default=1, help="repeats the ablations are run on"
    )
    parser.add_argument("--cpus", type=int, help="CPUs of the Ray started here")


def benchmark_arguments(verbs: Any) -> None:
    """Add `benchmark`."""

    def run(args: Arguments) -> None:
        from ehr_ray.commands.benchmark.command import MODEL, benchmark

        given = {"cohort": args.cohort, "only": args.only, "verbose": args.verbose}
        if args.config is not None:
            from ehr_ray.experiment import load

            given |= {"only": args.only or MODEL, "experiment": load(args.config, args.overrides)}
        benchmark(args.output, **given)

    parser = add_verb(
        verbs,
        "benchmark",
        run,
        "measure speed as ratios within one run: LVCF, loading, training bare and on Ray, a model",
        "ehr-ray benchmark --output benchmark.json\n"
        "  ehr-ray benchmark --config configs/benchmark/set_vae.yaml data.cohort=cohorts/p12",
    )
    parser.add_argument("--output", type=path, default="benchmark.json", help="JSON file")
    parser.add_argument("--cohort", type=path, help="cohort to measure on; default is synthetic")
    parser.add_argument(
        "--only", help="parts to run: a,b,c; faults, scaling and search only by name"
    )
    parser.add_argument(
        "--config", type=Path, help="experiment whose training speed is measured (part model)"
    )
    parser.add_argument("overrides", nargs="*", metavar="path=value", help="changes to the config")
