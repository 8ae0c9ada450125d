"""Functional principal components of imputed curves, each vital sign on its own.

N patients, H hours, V vitals, K components.
"""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

Curves = NDArray[np.float32]
Array = NDArray[np.float64]

COMPONENTS: Final = 10


@dataclass(frozen=True, eq=False)
class Functional:
    """A fitted FPCA (Ramsay and Silverman 2005, chapter 8) of V vital signs."""

    models: tuple[Any, ...]
    """One `skfda` model a vital sign."""

    @property
    def explained(self) -> Array:
        """Share of the variance of the fitted curves that each component explains, [V, K]."""
        return np.stack([model.explained_variance_ratio_ for model in self.models])

    @property
    def components(self) -> Array:
        """Return the components, [V, K, H]."""
        return np.stack([model.components_.data_matrix[..., 0] for model in self.models])

    @property
    def mean(self) -> Array:
        """Return the mean curves, [V, H]: a curve is near the mean plus scores @ components."""
        return np.stack([model.mean_.data_matrix[0, :, 0] for model in self.models])

    def scores(self, curves: Curves) -> Array:
        """Return the scores of curves [N, H, V], all of a vital sign together, [N, V * K]."""
        parts = [model.transform(_data(curves, v)) for v, model in enumerate(self.models)]
        return np.concatenate(parts, axis=1)

    def project(self, curves: Curves) -> Curves:
        """Return curves [N, H, V] as the components tell them."""
        back = np.empty(curves.shape, np.float32)
        for vital, model in enumerate(self.models):
            own = model.transform(_data(curves, vital))
            back[:, :, vital] = model.inverse_transform(own).data_matrix[..., 0]
        return back


def fit(curves: Curves) -> Functional:
    """Fit the components on curves [N, H, V] without gaps; fewer where hours or patients are."""
    from skfda.preprocessing.dim_reduction import FPCA

    size = max(1, min(COMPONENTS, curves.shape[1] - 1, len(curves) - 1))
    with threadpool_limits(1):
        models = [FPCA(n_components=size).fit(_data(curves, v)) for v in range(curves.shape[2])]
    return Functional(tuple(models))


def _data(curves: Curves, vital: int) -> Any:
    from skfda import FDataGrid

    hours = np.arange(curves.shape[1], dtype=float)
    return FDataGrid(curves[:, :, vital].astype(float), hours)
