"""What single predictions were read from: changes of their log odds, as a table and as figures.

V variables of a record, H hours (or spans of hours), K variables of the map.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ehr_ray.evaluation.plotting import FONT, ORANGE, PURPLE, plain, styled
from ehr_ray.evaluation.table import Table
from ehr_ray.evaluation.tasks.probe import sigmoid

Array = NDArray[np.float64]

NAMED: Final = 3
"""Variables of a patient that the table names."""
_LONGEST: Final = 28
"""Signs of a code's name in a figure."""
READ: Final = (
    "Each number is the log odds of the risk less those without the events in question, as if they "
    "had not been recorded: above 0 they raised the risk. Of variables that tell the same each may "
    "show little, and the numbers do not add up to the risk."
)


@dataclass(frozen=True, eq=False)
class Attribution:
    """What one prediction was read from; every effect is a change of its log odds."""

    log_odds: float
    """Of the whole record."""
    codes: NDArray[np.int64]
    """int [V], vocabulary ids of the record's variables, the largest effect first."""
    by_code: Array
    """float [V], of all events of a variable."""
    hours: NDArray[np.int64]
    """int [H], ascending: first hour of each span with events, after the origin."""
    width: int
    """Hours of a span."""
    by_hour: Array
    """float [H], of all events with a time in a span."""
    cells: Array
    """float [K, H], of the first K variables in a span; NaN where one has no event."""

    @property
    def risk(self) -> float:
        """Return the probability of the whole record."""
        return float(sigmoid(np.array(self.log_odds)))


def attribution_table(
    found: Sequence[Attribution], labels: Sequence[bool], names: Sequence[str]
) -> Table:
    """Return a row for each prediction, with the variables that moved it most."""
    rows = []
    for number, (one, label) in enumerate(zip(found, labels, strict=True), start=1):
        most = zip(one.codes[:NAMED], one.by_code[:NAMED], strict=True)
        told = ", ".join(f"{names[code]} {effect:+.2f}" for code, effect in most)
        rows.append((f"{number}", f"{one.risk:.0%}", "yes" if label else "no", told))
    return Table(
        columns=("Patient", "Risk", "Outcome", "Moved most by"), rows=tuple(rows), caption=READ
    )


def attribution_figure(found: Attribution, names: Sequence[str]) -> Figure:
    """Draw a map of variables by hours, with the effect of each hour above and variable beside."""
    shown, spans = len(found.cells), len(found.hours)
    figure = Figure(figsize=(9.4, 1.9 + 0.27 * max(shown, 3)), layout="constrained")
    grid = figure.add_gridspec(2, 2, height_ratios=(1, 0.35 * shown + 0.5), width_ratios=(3, 1))
    above = styled(figure.add_subplot(grid[0, 0]))
    middle = styled(figure.add_subplot(grid[1, 0], sharex=above))
    beside = styled(figure.add_subplot(grid[1, 1], sharey=middle))
    above.bar(np.arange(spans), found.by_hour, color=_colours(found.by_hour))
    above.tick_params(labelbottom=False)
    above.set_ylabel("all", fontsize=FONT)
    cells = found.cells if found.cells.size else np.full((max(shown, 1), max(spans, 1)), np.nan)
    largest = np.max(np.abs(cells), initial=1e-6, where=~np.isnan(cells))
    image = middle.imshow(
        cells, cmap="PuOr_r", vmin=-largest, vmax=largest, aspect="auto", interpolation="none"
    )
    middle.grid(visible=False)
    ticks = np.unique(np.linspace(0, max(spans - 1, 0), 8).round().astype(int))[:spans]
    middle.set_xticks(ticks, [f"{found.hours[tick]}" for tick in ticks])
    unit = "hour" if found.width == 1 else f"spans of {found.width} hours, from hour"
    middle.set_xlabel(f"{unit} (those with events)", fontsize=FONT)
    labels = [plain(_short(names[code])) for code in found.codes[:shown]]
    middle.set_yticks(np.arange(shown), labels)
    beside.barh(np.arange(shown), found.by_code[:shown], color=_colours(found.by_code[:shown]))
    beside.tick_params(labelleft=False)
    beside.set_xlabel("all hours", fontsize=FONT)
    figure.colorbar(image, ax=beside, label="change of log odds")
    return figure


def _colours(effects: Array) -> list[str]:
    return [ORANGE if effect > 0 else PURPLE for effect in effects]


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}…"
