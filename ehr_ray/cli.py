"""The command line: `ehr-ray VERB ...`, and the same through `python jobs/VERB.py ...`."""

import argparse
import logging
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from ehr_ray import disk
from ehr_ray.errors import RunError, UserError
from ehr_ray.places import is_uri, place, spoken, uri_of

Arguments = argparse.Namespace


class Parser(argparse.ArgumentParser):
    """argparse with errors of one line, as everywhere else."""

    def error(self, message: str) -> NoReturn:
        """Exit with 2."""
        if message.startswith("unrecognized") and re.search(r" [\w.]+=", message):
            message += (
                " (a.b=value follows a CONFIG, with options before it or behind all; a verb of a "
                "RUN takes no a.b=value: a run keeps the config it was trained by)"
            )
        print(f"{self.prog}: {message}; see {self.prog} --help", file=sys.stderr)
        raise SystemExit(2)


RESUMED = ("train", "tune", "crossval")
"""Verbs that keep states to go on from."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a verb; exit 2 on bad usage or input, 1 on a failed run, with one line on stderr."""
    parsed = build_parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO if parsed.verbose else logging.WARNING)
    try:
        parsed.run(parsed)
    except UserError as error:
        _fail(str(error), 2)
    except RunError as error:
        _fail(str(error), 1)
    except KeyboardInterrupt:
        where = " to go on from the last saved state" if parsed.verb in RESUMED else ""
        _fail(f"interrupted; run the same command again{where}", 130)
    except Exception as error:
        if parsed.verbose:
            raise
        if isinstance(error, OSError) and error.errno in disk.REMEDIES:
            _fail(str(disk.failed(error.filename or parsed.verb, error)), 1)
        first = str(error).strip().splitlines()
        reason = f"{type(error).__name__}: {first[0] if first else ''}"
        _fail(f"{parsed.verb} failed: {reason} (run with -v for the traceback)", 1)


def build_parser() -> Parser:
    """Return the parser of every verb."""
    parser = Parser(
        prog="ehr-ray",
        description="Train representation models of electronic health records on Ray.",
        epilog="Start with `ehr-ray quickstart`; `ehr-ray VERB --help` shows an example of each.",
    )
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    from ehr_ray.cli_ingest import add_ingest
    from ehr_ray.cli_phrases import add_export_pt, add_phrases
    from ehr_ray.cli_tune import add_benchmark, add_crossval, add_tune

    for add in (
        _quickstart,
        add_ingest,
        _expand,
        add_phrases,
        add_export_pt,
        _prepare,
        _train,
        add_tune,
        add_crossval,
        _evaluate,
        _embed,
        add_benchmark,
    ):
        add(verbs)
    return parser


def _add(
    verbs: Any, name: str, run: Callable[[Arguments], None], help: str, example: str
) -> Parser:
    parser: Parser = verbs.add_parser(
        name,
        help=help,
        description=help[0].upper() + help[1:] + ".",
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("-v", "--verbose", action="store_true", help="show Ray's own logs")
    parser.set_defaults(run=run)
    return parser


def _quickstart(verbs: Any) -> None:
    def run(args: Arguments) -> None:
        from ehr_ray.runtime.quickstart import quickstart

        quickstart(args.output, verbose=args.verbose)

    parser = _add(
        verbs,
        "quickstart",
        run,
        "ingest, LVCF, train, evaluate and report on synthetic patients, in minutes",
        "ehr-ray quickstart --output quickstart",
    )
    parser.add_argument("--output", type=_path, default=Path("quickstart"), help="new folder")


def _expand(verbs: Any) -> None:
    def run(args: Arguments) -> None:
        from ehr_ray.runtime.expand import expand

        screen = _screen()
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
            f"{args.output}: {result.tokens:,} tokens of {result.patients:,} patients "
            f"in {result.shards} shards, {result.seconds:.1f} s"
        )

    parser = _add(
        verbs,
        "expand",
        run,
        "carry last values forward over a cohort, as a distributed Ray Data job, to Parquet",
        "ehr-ray expand cohorts/p12 --output expanded/p12 --lvcf-minutes 2880",
    )
    parser.add_argument("cohort", type=place, help="folder or URI of the cohort")
    parser.add_argument("--output", type=place, required=True, help="folder of the expansion")
    parser.add_argument(
        "--lvcf-minutes", type=float, default=2880.0, help="longest age carried (default 2880)"
    )
    parser.add_argument("--always-carry", default="", help="codes carried for ever: a,b,c")
    parser.add_argument("--value-stats", type=place, help="CSV of code, mean, std for z-scores")
    parser.add_argument("--address", help="Ray cluster to join")


def _config_verb(
    verbs: Any, name: str, run: Callable[[Arguments], None], help: str, example: str
) -> Parser:
    parser = _add(verbs, name, run, help, example)
    parser.add_argument("config", type=Path, help="YAML of the experiment; see configs/")
    parser.add_argument("overrides", nargs="*", metavar="a.b=value", help="values to change")
    return parser


def _prepare(verbs: Any) -> None:
    def run(args: Arguments) -> None:
        from ehr_ray.config import load
        from ehr_ray.runtime.trainer import prepare

        screen = _screen()
        experiment = load(args.config, args.overrides)
        for line in prepare(experiment, screen, export=args.export, verbose=args.verbose):
            screen.say(line)

    parser = _config_verb(
        verbs,
        "prepare",
        run,
        "materialise a family's model-ready dataset, the same rows training streams",
        "ehr-ray prepare configs/set_vae.yaml data.cohort=cohorts/p12",
    )
    parser.add_argument(
        "--export",
        type=place,
        help="file to write all patients to in the family's own format (hourly_tensors.h5)",
    )


def _train(verbs: Any) -> None:
    def run(args: Arguments) -> None:
        from ehr_ray.config import load
        from ehr_ray.runtime.pipeline import is_pipeline, load_pipeline, run_pipeline

        if not is_pipeline(args.config):
            one(load(args.config, args.overrides), args.verbose)
            return
        from ehr_ray.cli_phrases import embed

        stages = load_pipeline(args.config, args.overrides)
        judged = {stage.experiment.name for stage in stages if stage.verb == "evaluate"}
        verbs_of_stages = {
            "phrases": lambda experiment: embed(experiment, args.verbose),
            "train": lambda experiment: one(
                experiment, args.verbose, judged_later=experiment.name in judged
            ),
            "evaluate": lambda experiment: judge(experiment, args.verbose),
        }
        run_pipeline(stages, verbs_of_stages, _screen().say)

    def judge(experiment: Any, verbose: bool) -> None:
        from ehr_ray.runtime.evaluation import evaluate

        screen = _screen()
        address = experiment.cluster.address
        run = experiment.place
        for line in evaluate(run, address=address, verbose=verbose, say=screen.passing):
            screen.say(line)

    def one(experiment: Any, verbose: bool, *, judged_later: bool = False) -> None:
        from ehr_ray.runtime.trainer import train

        screen = _screen()
        trained = train(experiment, screen=screen, verbose=verbose)
        if trained.already_finished:
            screen.say(f"{trained.run}: already trained to step {trained.step}; nothing to do")
        best = "" if trained.best is None else f", best selection metric {trained.best:.5g}"
        screen.say(f"{_relative(trained.run)}: {trained.step} steps{best}")
        known = trained.already_finished and (trained.run / "metrics.json").is_file()
        if experiment.evaluation.after_training and not judged_later and not known:
            judge(experiment, verbose)
        else:
            screen.say(f"next: ehr-ray evaluate {shlex.quote(str(_relative(trained.run)))}")

    _config_verb(
        verbs,
        "train",
        run,
        "train by Ray Train, one run or a pipeline of them; the same command again resumes",
        "ehr-ray train configs/set_vae.yaml data.cohort=cohorts/p12 cluster.num_workers=2",
    )


def _evaluate(verbs: Any) -> None:
    def run(args: Arguments) -> None:
        from ehr_ray.runtime.evaluation import evaluate

        screen = _screen()
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

    parser = _add(
        verbs,
        "evaluate",
        run,
        "measure a run beside simple baselines: metrics, figures and report.html",
        "ehr-ray evaluate runs/set_vae --task mortality",
    )
    parser.add_argument("run_folder", metavar="RUN", type=place, help="folder of a trained run")
    parser.add_argument("--cohort", type=place, help="another cohort; nothing is refitted on it")
    parser.add_argument("--split", default="held_out", help="split reported on")
    parser.add_argument(
        "--task",
        help="label file of the cohort, such as mortality; none: no labels, whole stays",
    )
    parser.add_argument("--output", type=place, help="folder of the results")
    parser.add_argument("--address", help="Ray cluster to join")


def _embed(verbs: Any) -> None:
    def run(args: Arguments) -> None:
        from ehr_ray.runtime.inference import embed

        screen = _screen()
        rows = embed(
            args.run_folder,
            args.cohort,
            args.output,
            address=args.address,
            verbose=args.verbose,
            say=screen.passing,
        )
        screen.say(f"{args.output}: embeddings of {rows:,} patients")

    parser = _add(
        verbs,
        "embed",
        run,
        "embed a cohort by batch inference on Ray Data: one row a patient",
        "ehr-ray embed runs/set_vae --cohort cohorts/p12 --output p12.parquet",
    )
    parser.add_argument("run_folder", metavar="RUN", type=place, help="folder of a trained run")
    parser.add_argument("--cohort", type=place, required=True, help="cohort to embed")
    parser.add_argument("--output", type=place, required=True, help="Parquet file to write")
    parser.add_argument("--address", help="Ray cluster to join")


def _path(text: str) -> Path:
    if is_uri(text):
        raise argparse.ArgumentTypeError(f"{text}: a URI; this verb takes paths only")
    return Path(text)


def _screen() -> Any:
    from ehr_ray.runtime.progress import Screen

    return Screen()


def _relative(path: Path) -> str | Path:
    """Return a path as a user would type it here: its URI, or relative to this folder."""
    if (uri := uri_of(path)) is not None:
        return uri
    try:
        return path.relative_to(Path.cwd())
    except ValueError:
        return path


def _fail(message: str, code: int) -> NoReturn:
    sys.stdout.flush()
    print(f"ehr-ray: {spoken(' '.join(message.split()))}", file=sys.stderr)
    raise SystemExit(code)


if __name__ == "__main__":
    main()
