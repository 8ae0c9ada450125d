"""Value scaling with train statistics."""

import numpy as np
import numpy.typing as npt


def z_score(
    value: npt.NDArray, code: npt.NDArray, mean: npt.NDArray, std: npt.NDArray
) -> npt.NDArray[np.float32]:
    """Return `(value - mean[code]) / std[code]`; 1 where there is no value (NaN).

    A code id of -1 (unknown) has mean 0 and std 1.
    """
    known = code >= 0
    safe = np.where(known, code, 0)
    if len(mean):
        scaled = (value - np.where(known, mean[safe], 0.0)) / np.where(known, std[safe], 1.0)
    else:
        scaled = value
    return np.where(np.isnan(value), 1.0, scaled).astype(np.float32)
