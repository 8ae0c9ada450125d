"""What a source says of a table that it reads: its columns, and the events that a row gives."""

from collections.abc import Mapping
from dataclasses import dataclass

from ehr_ray.sources.parsing.kinds import Kind


@dataclass(frozen=True)
class Event:
    """An event that each row of a table gives.

    Args:
        code: words and `{column}`s, joined by `//`; `{a|b}` is `b` where `a` is blank.
        time: its column; a row where it is blank gives no such event.
        value: its column, if it has a value.
        not_before: times that it is moved to where it is earlier, as mistyped ends are.
        billed: whether it stands a second after its time, since it is written only then.
        needs: a column without which a row gives no such event.
    """

    code: str
    time: str
    value: str | None = None
    not_before: tuple[str, ...] = ()
    needs: str | None = None
    billed: bool = False


@dataclass(frozen=True)
class Titles:
    """Where the words for a table's codes stand: the rows of `table` with its `key` columns.

    The key is what follows `prefix` in a code; `text` are the columns with the words.
    """

    table: str
    prefix: str
    key: tuple[str, ...]
    text: tuple[str, ...]


@dataclass(frozen=True)
class Table:
    """A table that is read.

    Args:
        name: as its file without the ending.
        columns: name -> kind, followed by `?` where it may be blank. `key` is always read.
        events: what a row gives.
        titles: where its codes are explained.
        present: a column without which a row is passed over.
        numeric: a quantity; rows where it is words are passed over, since words are not kept.
        never_done: a column and what it holds in rows that are passed over, as those entered by
            mistake; not every version of the table has it.
        words: a column with a quantity's words by its name: an inequality there is read where the
            quantity itself is blank, if the table has it.
        key: the column that says whose a row is.
        optional: columns that a file may lack; they are blank then.
        loose_quotes: whether a cell between tabs may begin with a quote that never ends, as names
            of vocabularies do.
    """

    name: str
    columns: Mapping[str, str]
    events: tuple[Event, ...] = ()
    titles: tuple[Titles, ...] = ()
    present: str | None = None
    numeric: str | None = None
    never_done: tuple[str, str] | None = None
    words: tuple[str, str] | None = None
    key: str = "subject_id"
    optional: frozenset[str] = frozenset()
    loose_quotes: bool = False

    def kind(self, column: str) -> tuple[Kind, bool]:
        """Return (kind, whether it may be blank)."""
        text = self.columns[column]
        kind: Kind = text.removesuffix("?")  # type: ignore[assignment]
        return kind, text.endswith("?")
