"""The parser every verb shares: errors of one line, and options added where they are needed."""

import argparse
import difflib
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from ehr_ray.storage.paths import is_uri, uri_of, working_folder

Arguments = argparse.Namespace


class Parser(argparse.ArgumentParser):
    """argparse with errors of one line, as everywhere else."""

    fill: Callable[["Parser"], None] | None = None
    """Adds the options when this verb is the one that was asked for: it may import a lot."""
    _words_apart = False
    """Whether argparse is at work on the options alone, then on the words that are left."""

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> tuple[Any, list[str]]:
        """Parse, with the options that `fill` adds; among the words of a verb they stand anywhere.

        What a verb does not know is told by its own name.
        """
        self.add_options()
        # What stands behind `--` is lost by the two readings of Python 3.11 to 3.13.
        if self._verbs() or self._words_apart or "--" in (args or ()):
            return super().parse_known_args(args, namespace)
        self._words_apart = True
        try:
            found, unknown = self.parse_known_intermixed_args(args, namespace)
        finally:
            self._words_apart = False
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return found, unknown

    def _verbs(self) -> dict[str, "Parser"]:
        """Return the parsers of the verbs by name; {} of a verb's own parser."""
        found: dict[str, Parser] = {}
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                found |= action.choices
        return found

    def _options(self) -> list[str]:
        """Return the options that are known, those of the verb that was asked for among them."""
        filled = [verb for verb in self._verbs().values() if verb.fill is None]
        return [name for parser in (self, *filled) for name in parser._option_string_actions]

    def add_options(self) -> None:
        """Add the options that `fill` adds, once."""
        fill, self.fill = self.fill, None
        if fill is not None:
            fill(self)

    def error(self, message: str) -> NoReturn:
        """Exit with 2; of a verb or an option that is none, the nearest is named."""
        if choice := re.match(r"argument (\S+): invalid choice: '(.*)' \(choose from", message):
            name, given = choice.groups()
            if close := difflib.get_close_matches(given, self._verbs(), 1):
                message = f"{name} {given}: no such one; did you mean {close[0]}?"
        elif message.startswith("unrecognized"):
            words = re.findall(r" (--[\w-]+)", message)
            if close := difflib.get_close_matches(words[0] if words else "", self._options(), 1):
                message += f"; did you mean {close[0]}?"
        takes_changes = any(action.dest == "overrides" for action in self._actions)
        if message.startswith("unrecognized") and re.search(r" [\w.]+=", message):
            message += (
                ""
                if takes_changes
                else " (this verb takes no a.b=value, which changes a CONFIG: a run keeps the "
                "config it was trained by)"
            )
        print(f"{self.prog}: {message}; see {self.prog} --help", file=sys.stderr)
        raise SystemExit(2)


def path(text: str) -> Path:
    """Return a path of the command line; a URI is refused."""
    if is_uri(text):
        raise argparse.ArgumentTypeError(f"{text}: a URI; this verb takes paths only")
    return Path(text).absolute()


def positive(text: str) -> int:
    """Return a whole number of the command line, 1 at least; ArgumentTypeError for any other."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: give a whole number, 1 or more")
    return int(text)


def relative(path: str | Path) -> str | Path:
    """Return a path as a user would type it here: its URI, or relative to this folder."""
    if (uri := uri_of(path)) is not None:
        return uri
    here = working_folder()
    return Path(path).relative_to(here) if here and Path(path).is_relative_to(here) else path
