"""Arguments of the verbs that run one job: quickstart, expand, prepare, train, evaluate, embed."""

import shlex
from typing import Any

from ehr_ray.cli.parser import Arguments, add_verb, config_verb, new_screen, path, relative
from ehr_ray.storage.paths import location


def quickstart_arguments(verbs: Any) -> None:
    """Add `quickstart`."""

    def run(args: Arguments) -> None:
        from ehr_ray.commands.quickstart import quickstart

        quickstart(args.output, verbose=args.verbose)

    parser = add_verb(
        verbs,
        "quickstart",
        run,
        "ingest, LVCF, train, evaluate and report on synthetic patients, in minutes",
        "ehr-ray quickstart --output quickstart",
    )
    parser.add_argument("--output", type=path, default="quickstart", help="new folder")


def expand_arguments(verbs: Any) -> None:
    """Add `expand`."""

    def run(args: Arguments) -> None:
        from ehr_ray.commands.expand import expand

        screen = new_screen()
        always = tuple(code for code in args.always_carry.split(",") if code)
        result = expand(
            args.cohort,
            args.output,
            lvcf_minutes=args.lvcf_minutes,
            always_carry=always,
            value_stats=args.value_stats,
            address=args.address,
            verbose=args.verbose,
            say=screen.passing,
        )
        screen.say(
            f"{relative(args.output)}: {result.tokens:,} tokens of {result.patients:,} patients "
            f"in {result.shards} shards, {result.seconds:.1f} s"
        )

    parser = add_verb(
        verbs,
        "expand",
        run,
        "carry last values forward over a cohort, as a distributed Ray Data job, to Parquet",
        "ehr-ray expand cohorts/p12 --output expanded/p12 --lvcf-minutes 2880",
    )
    parser.add_argument("cohort", type=location, help="folder or URI of the cohort")
    parser.add_argument("--output", type=location, required=True, help="folder of the expansion")
    parser.add_argument(
        "--lvcf-minutes", type=float, default=2880.0, help="longest age carried (default 2880)"
    )
    parser.add_argument("--always-carry", default="", help="codes carried for ever: a,b,c")
    parser.add_argument("--value-stats", type=location, help="CSV of code, mean, std for z-scores")
    parser.add_argument("--address", help="Ray cluster to join")


def prepare_arguments(verbs: Any) -> None:
    """Add `prepare`."""

    def run(args: Arguments) -> None:
        from ehr_ray.commands.prepare import prepare
        from ehr_ray.experiment import load

        screen = new_screen()
        experiment = load(args.config, args.overrides)
        for line in prepare(experiment, screen, export=args.export, verbose=args.verbose):
            screen.say(line)

    parser = config_verb(
        verbs,
        "prepare",
        run,
        "materialise a family's model-ready dataset, the same rows training streams",
        "ehr-ray prepare configs/set_vae.yaml data.cohort=cohorts/p12",
    )
    parser.add_argument(
        "--export",
        type=location,
        help="file to write all patients to in the family's own format (hourly_tensors.h5)",
    )


def train_arguments(verbs: Any) -> None:
    """Add `train`."""

    def run(args: Arguments) -> None:
        from ehr_ray.commands.train.pipeline import is_pipeline, load_pipeline, run_pipeline
        from ehr_ray.experiment import load

        if not is_pipeline(args.config):
            one(load(args.config, args.overrides), args.verbose)
            return
        from ehr_ray.cli.phrases import embed

        stages = load_pipeline(args.config, args.overrides)
        judged = {stage.experiment.name for stage in stages if stage.verb == "evaluate"}
        verbs_of_stages = {
            "phrases": lambda experiment: embed(experiment, args.verbose),
            "train": lambda experiment: one(
                experiment, args.verbose, judged_later=experiment.name in judged
            ),
            "evaluate": lambda experiment: judge(experiment, args.verbose),
        }
        run_pipeline(stages, verbs_of_stages, new_screen().say)

    def judge(experiment: Any, verbose: bool) -> None:
        from ehr_ray.commands.evaluate.command import evaluate

        screen = new_screen()
        address = experiment.cluster.address
        run = experiment.location
        for line in evaluate(run, address=address, verbose=verbose, say=screen.passing):
            screen.say(line)

    def one(experiment: Any, verbose: bool, *, judged_later: bool = False) -> None:
        from ehr_ray.commands.train.command import train

        screen = new_screen()
        trained = train(experiment, screen=screen, verbose=verbose)
        if trained.already_finished:
            screen.say(f"{trained.run}: already trained to step {trained.step}; nothing to do")
        best = "" if trained.best is None else f", best selection metric {trained.best:.5g}"
        screen.say(f"{relative(trained.run)}: {trained.step} steps{best}")
        known = trained.already_finished and (trained.run / "metrics.json").is_file()
        if experiment.evaluation.after_training and not judged_later and not known:
            judge(experiment, verbose)
        else:
            screen.say(f"next: ehr-ray evaluate {shlex.quote(str(relative(trained.run)))}")

    config_verb(
        verbs,
        "train",
        run,
        "train by Ray Train, one run or a pipeline of them; the same command again resumes",
        "ehr-ray train configs/set_vae.yaml data.cohort=cohorts/p12 cluster.num_workers=2",
    )


def evaluate_arguments(verbs: Any) -> None:
    """Add `evaluate`."""

    def run(args: Arguments) -> None:
        from ehr_ray.commands.evaluate.command import evaluate

        screen = new_screen()
        for line in evaluate(
            args.run_folder,
            cohort=args.cohort,
            split=args.split,
            task=args.task,
            output=args.output,
            address=args.address,
            verbose=args.verbose,
            say=screen.passing,
        ):
            screen.say(line)

    parser = add_verb(
        verbs,
        "evaluate",
        run,
        "measure a run beside simple baselines: metrics, figures and report.html",
        "ehr-ray evaluate runs/set_vae --task mortality",
    )
    parser.add_argument("run_folder", metavar="RUN", type=location, help="folder of a trained run")
    parser.add_argument("--cohort", type=location, help="another cohort; nothing is refitted on it")
    parser.add_argument("--split", default="held_out", help="split reported on")
    parser.add_argument(
        "--task",
        help="label file of the cohort, such as mortality; none: no labels, whole stays",
    )
    parser.add_argument("--output", type=location, help="folder of the results")
    parser.add_argument("--address", help="Ray cluster to join")


def embed_arguments(verbs: Any) -> None:
    """Add `embed`."""

    def run(args: Arguments) -> None:
        from ehr_ray.commands.embed import embed

        screen = new_screen()
        rows = embed(
            args.run_folder,
            args.cohort,
            args.output,
            address=args.address,
            verbose=args.verbose,
            say=screen.passing,
        )
        screen.say(f"{relative(args.output)}: embeddings of {rows:,} patients")

    parser = add_verb(
        verbs,
        "embed",
        run,
        "embed a cohort by batch inference on Ray Data: one row a patient",
        "ehr-ray embed runs/set_vae --cohort cohorts/p12 --output p12.parquet",
    )
    parser.add_argument("run_folder", metavar="RUN", type=location, help="folder of a trained run")
    parser.add_argument("--cohort", type=location, required=True, help="cohort to embed")
    parser.add_argument("--output", type=location, required=True, help="Parquet file to write")
    parser.add_argument("--address", help="Ray cluster to join")
