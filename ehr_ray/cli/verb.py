"""A verb as the table of verbs has it."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ehr_ray.cli.parser import Arguments, Parser
from ehr_ray.runtime.screen import Screen

Option = tuple[str, dict[str, Any]] | Callable[[Parser], None]
"""Name and arguments of `add_argument`, or a function that adds what has to be gathered first."""


def option(name: str, help: str, **more: Any) -> Option:
    """Return an option of the table."""
    return name, {"help": help, **more}


@dataclass(frozen=True)
class Verb:
    """A row of the table."""

    name: str
    help: str
    example: str
    run: Callable[[Arguments, Screen], None]
    options: tuple[Option, ...]
    resumes: bool = False
    """Whether the same command again goes on from a saved state."""
    more: str = ""
    """What its own help says besides."""

    def add_to(self, verbs: Any) -> None:
        """Add the verb to the parser's; its help ends with the example."""
        parser: Parser = verbs.add_parser(
            self.name,
            help=self.help,
            description=f"{self.help[0].upper()}{self.help[1:]}.\n{self.more}".strip(),
            epilog=f"example:\n  {self.example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        parser.add_argument("-v", "--verbose", action="store_true", help="show Ray's own logs")
        parser.set_defaults(run=self.run)
        parser.fill = self._fill

    def _fill(self, parser: Parser) -> None:
        for item in self.options:
            if callable(item):
                item(parser)
            else:
                parser.add_argument(item[0], **item[1])
