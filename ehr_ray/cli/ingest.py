"""The options of the sources, which `ingest` takes besides its own."""

import dataclasses
from typing import Any

from ehr_ray.cli.parser import Arguments, Parser
from ehr_ray.errors import InputError


def add_source(parser: Parser) -> None:
    """Add `--source`, with the names there are."""
    from ehr_ray.sources.source import SOURCES

    parser.add_argument("--source", required=True, help=f"one of {', '.join(SOURCES)}")


def add_source_options(parser: Parser) -> None:
    """Add every source's options; one flag serves the sources that share its name."""
    from ehr_ray.sources.source import SOURCES, get_source

    flags: dict[str, dict[str, list[str]]] = {}
    for name in SOURCES:
        for field in dataclasses.fields(get_source(name).options):
            text = field.metadata.get("help", "")
            if field.default not in (None, dataclasses.MISSING):
                text += f" (default {field.default})"
            flags.setdefault(field.name, {}).setdefault(text, []).append(name)
    group = parser.add_argument_group("options of the sources")
    for flag, texts in flags.items():
        told = "; ".join(f"{', '.join(names)}: {text}" for text, names in texts.items())
        group.add_argument(
            f"--{flag.replace('_', '-')}",
            dest=f"opt_{flag}",
            metavar=flag.upper(),
            help=told.replace("%", "%%"),
        )


def source_options(args: Arguments) -> dict[str, Any]:
    """Return the options given of the source asked for; InputError for those of another."""
    from ehr_ray.sources.source import get_source

    given = {k[4:]: v for k, v in vars(args).items() if k.startswith("opt_") and v is not None}
    known = {field.name for field in dataclasses.fields(get_source(args.source).options)}
    for name in given:
        if name not in known:
            raise InputError(f"--{name.replace('_', '-')}: not an option of --source {args.source}")
    return given
