"""How values are scaled by train statistics: one mechanism for every family and for `expand`.

A value becomes `(value - location) / scale` by the location and scale of its code in train. Robust
is the default of training (`data.scale`): a few typing errors move a mean and can blow a standard
deviation up a hundredfold, which would erase the variable; quantiles stay where they are.
"""

from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Floats = npt.NDArray[np.float64]

Scaling = Literal["robust", "standard"]

CENTRES: Final = {"robust": "train median", "standard": "train mean"}
"""What a scaled value of 0 is."""
UNITS: Final = {
    "robust": "robust standard deviations of train (interquartile range / 1.349)",
    "standard": "train standard deviations",
}
"""What a scaled value of 1 is, from there."""
_MEDIAN: Final = 3
_WIDTHS: Final = ((2, 4, 1.349), (1, 5, 3.290), (0, 6, 4.653))
"""Places of two of `QUANTILES` and how many standard deviations of a normal they lie apart."""


def location_and_scale(
    scaling: Scaling, mean: "Floats", std: "Floats", quantiles: "Floats"
) -> "tuple[Floats, Floats]":
    """Return the location and the scale of each code, float64 [V]; scales are above 0.

    standard: mean and population standard deviation. robust: the median, and the interquartile
    range over 1.349, which is the standard deviation where values are normal. Where that range is
    0, most values being one, the wider ones stand in: 5 to 95 %, 1 to 99 %, then the standard
    deviation. A code without quantiles has its mean and standard deviation.

    Args:
        scaling: which of both.
        mean: of the values in train, [V].
        std: their standard deviation, [V].
        quantiles: those of `QUANTILES`, [V, 7]; NaN for codes without values in train.
    """
    import numpy as np  # here: a config is checked without it

    location, scale = mean, np.where(std > 0, std, 1.0)
    if scaling == "robust":
        median = quantiles[:, _MEDIAN]
        location = np.where(np.isfinite(median), median, mean)
        for low, high, width in reversed(_WIDTHS):
            spread = (quantiles[:, high] - quantiles[:, low]) / width
            scale = np.where(spread > 0, spread, scale)
    return location, scale
