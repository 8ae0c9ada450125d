"""Tables of results: cells with an interval."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Interval:
    """An estimate on the data and its 95 % percentile bootstrap interval."""

    value: float
    low: float
    high: float

    @property
    def digits(self) -> int:
        """Decimals worth showing: 3, or 1 where the numbers are larger than any share."""
        return 1 if abs(self.value) >= 2 or max(abs(self.low), abs(self.high)) >= 10 else 3

    def __str__(self) -> str:
        d = self.digits
        return f"{self.value:.{d}f} [{self.low:.{d}f}, {self.high:.{d}f}]"


Cell = str | float | Interval
"""Text as it is, a number with 3 decimals, or an estimate with its interval."""


@dataclass(frozen=True)
class Table:
    """A small table of the report."""

    columns: tuple[str, ...]
    """Header of each column; the first column labels the rows."""
    rows: tuple[tuple[Cell, ...], ...]
    caption: str = ""
    """One sentence on how to read it."""
