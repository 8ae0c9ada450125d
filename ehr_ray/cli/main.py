"""The command line: `ehr-ray VERB ...`, and the same through `python jobs/VERB.py ...`."""

import logging
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from ehr_ray.cli.parser import Parser
from ehr_ray.cli.verbs import VERBS
from ehr_ray.errors import RunError, UserError, one_line
from ehr_ray.runtime.screen import Screen


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a verb; exit 2 on bad usage or input, 1 on a failed run, with one line on stderr."""
    asked = "_ARGCOMPLETE" in os.environ  # a shell asks what may follow
    parser = build_parser(whole=asked)
    if asked:
        from argcomplete import autocomplete

        autocomplete(parser)
    parsed = parser.parse_args(arguments)
    if parsed.verbose:
        logging.basicConfig(level=logging.INFO)
    else:  # a warning is a line for the user, whoever in the program says it
        logging.basicConfig(level=logging.WARNING, format="%(message)s")
    screen = Screen()
    try:
        parsed.run(parsed, screen)
    except UserError as error:
        _fail(screen, str(error), 2)
    except RunError as error:
        _fail(screen, str(error), 1)
    except KeyboardInterrupt:
        resumes = any(verb.resumes for verb in VERBS if verb.name == parsed.verb)
        where = " to go on from the last saved state" if resumes else ""
        _fail(screen, f"interrupted; run the same command again{where}", 130)
    except Exception as error:
        if parsed.verbose:
            raise
        from ehr_ray.storage import files

        if isinstance(error, OSError) and error.errno in files.REMEDIES:
            _fail(screen, str(files.failed(error.filename or parsed.verb, error)), 1)
        first = str(error).strip().splitlines()
        reason = f"{type(error).__name__}: {first[0] if first else ''}"
        _fail(screen, f"{parsed.verb} failed: {reason} (run with -v for the traceback)", 1)


def build_parser(*, whole: bool = False) -> Parser:
    """Return the parser of every verb, whose options are added once one is asked for or `whole`."""
    parser = Parser(
        prog="ehr-ray",
        description="Train representation models of electronic health records on Ray.",
        epilog="Start with `ehr-ray quickstart`; `ehr-ray VERB --help` shows an example of each.",
    )
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for verb in VERBS:
        verb.add_to(verbs)
    for one in verbs.choices.values() if whole else ():
        one.add_options()
    return parser


def _fail(screen: Screen, message: str, code: int) -> NoReturn:
    sys.stdout.flush()
    screen.say(f"ehr-ray: {one_line(message)}")
    raise SystemExit(code)


if __name__ == "__main__":
    main()
