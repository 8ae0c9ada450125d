"""The parser every verb shares: errors of one line, an example in each help text."""

import argparse
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from ehr_ray.storage.paths import is_uri, uri_of

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


def add_verb(
    verbs: Any, name: str, run: Callable[[Arguments], None], help: str, example: str
) -> Parser:
    """Add a verb whose help ends with an example."""
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


def config_verb(
    verbs: Any, name: str, run: Callable[[Arguments], None], help: str, example: str
) -> Parser:
    """Add a verb that takes a CONFIG and overrides `a.b=value`."""
    parser = add_verb(verbs, name, run, help, example)
    parser.add_argument("config", type=Path, help="YAML of the experiment; see configs/")
    parser.add_argument("overrides", nargs="*", metavar="a.b=value", help="values to change")
    return parser


def path(text: str) -> Path:
    """Return a path of the command line; a URI is refused."""
    if is_uri(text):
        raise argparse.ArgumentTypeError(f"{text}: a URI; this verb takes paths only")
    return Path(text).absolute()


def new_screen() -> Any:
    """Return the display of progress; Ray is not imported for it before it is needed."""
    from ehr_ray.runtime.progress import Screen

    return Screen()


def relative(path: str | Path) -> str | Path:
    """Return a path as a user would type it here: its URI, or relative to this folder."""
    if (uri := uri_of(path)) is not None:
        return uri
    try:
        return Path(path).relative_to(Path.cwd())
    except ValueError:
        return path
