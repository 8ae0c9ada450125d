"""One look for all figures: colours, fonts, axes."""

from collections.abc import Mapping
from typing import Any, Final

from matplotlib.axes import Axes
from matplotlib.figure import Figure

BLUE, ORANGE, GREEN = "#0072B2", "#D55E00", "#009E73"


PURPLE, SKY, GREY, INK = "#AA4499", "#56B4E9", "#8A8F98", "#2B3038"


STYLES: Final[Mapping[str, tuple[str, Any, float]]] = {
    "model": (BLUE, "-", 2.4),
    "probe": (SKY, "--", 1.8),
    "gbm": (ORANGE, "-", 1.5),
    "gbm_rich": ("#9C3F00", "-.", 1.5),
    "trees_and_model": ("#E69F00", (0, (6, 1, 1, 1)), 1.5),
    "logistic": (GREEN, "--", 1.5),
    "logistic_rich": ("#005C43", ":", 1.5),
    "average_rich": ("#6B4C00", (0, (4, 1, 1, 1, 1, 1)), 1.5),
    "pca": (PURPLE, "-.", 1.5),
    "untrained": (GREY, ":", 1.8),
}
"""Colour, line style and width of each row of the comparison."""


FONT: Final = 9


def new_axes(figure: Figure, rows: int = 1, columns: int = 1, index: int = 0) -> Axes:
    """Add axes in the report's style to a figure."""
    return styled(figure.add_subplot(rows, columns, index + 1))


def styled(axis: Axes) -> Axes:
    """Give axes the report's style."""
    axis.spines[["top", "right"]].set_visible(False)
    axis.spines[["left", "bottom"]].set_color("#9AA0A8")
    axis.tick_params(colors=INK, labelsize=FONT - 1, length=3, color="#9AA0A8")
    axis.grid(color="#E8EAED", linewidth=0.7)
    axis.set_axisbelow(True)
    return axis


def plain(text: str) -> str:
    r"""Return a text as matplotlib draws it sign by sign: dollars enclose no formula.

    >>> plain("COST$")
    'COST\\$'
    """
    return text.replace("$", r"\$")
