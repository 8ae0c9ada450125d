"""The verb that makes cohorts, `ingest`: its options are those of the sources."""

import contextlib
import dataclasses
import os
from collections.abc import Callable
from typing import Any

from ehr_ray.cli.parser import Arguments, Parser, add_verb, new_screen
from ehr_ray.errors import InputError
from ehr_ray.storage.paths import location


def ingest_arguments(verbs: Any) -> None:
    """Add `ingest`, with the options of every source."""
    from ehr_ray.sources.source import SOURCES, get_source

    def run(args: Arguments) -> None:
        from ehr_ray.commands.ingest import ingest

        screen = new_screen()
        given = {k[4:]: v for k, v in vars(args).items() if k.startswith("opt_") and v is not None}
        known = {field.name for field in dataclasses.fields(get_source(args.source).options)}
        for name in given:
            if name not in known:
                raise InputError(
                    f"--{name.replace('_', '-')}: not an option of --source {args.source}"
                )
        with _ray_logs(args.verbose):
            summary = ingest(
                args.source,
                args.input,
                args.output,
                splits=args.splits,
                seed=args.seed,
                max_rejected=args.max_rejected,
                options=given,
                cpus=args.cpus,
                progress=screen.passing,
            )
        screen.say(str(summary))

    parser = add_verb(
        verbs,
        "ingest",
        run,
        "turn raw data into a cohort: a MEDS dataset with splits, statistics and labels",
        "ehr-ray ingest --source physionet2012 --input physionet2012/ --output cohorts/p12",
    )
    parser.add_argument("--source", required=True, help=f"one of {', '.join(SOURCES)}")
    parser.add_argument("--input", type=location, help="file, folder or URI of raw data")
    parser.add_argument(
        "--output", type=location, required=True, help="folder or URI of the cohort"
    )
    parser.add_argument(
        "--splits",
        help="shares of train,tuning,held_out (default 0.8,0.1,0.1, or the source's own), "
        "or all:held_out",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the hash that splits subjects")
    parser.add_argument(
        "--max-rejected", type=float, default=0.01, help="share of bad rows or files allowed"
    )
    parser.add_argument("--cpus", type=int, help="1: this process; more: as Ray Data tasks")
    _source_options(parser, SOURCES, get_source)


def _source_options(parser: Parser, sources: Any, get_source: Callable[[str], Any]) -> None:
    """Add every source's options; one flag serves the sources that share its name."""
    flags: dict[str, list[str]] = {}
    for name in sources:
        for field in dataclasses.fields(get_source(name).options):
            text = f"{name}: {field.metadata.get('help', '')}"
            if field.default not in (None, dataclasses.MISSING):
                text += f" (default {field.default})"
            flags.setdefault(field.name, []).append(text)
    group = parser.add_argument_group("options of the sources")
    for flag, texts in flags.items():
        group.add_argument(
            f"--{flag.replace('_', '-')}",
            dest=f"opt_{flag}",
            help="; ".join(texts).replace("%", "%%"),
        )


@contextlib.contextmanager
def _ray_logs(verbose: bool) -> Any:
    from ehr_ray.runtime.session import QUIET

    if not verbose:
        for name, value in QUIET.items():
            os.environ.setdefault(name, value)
    yield
