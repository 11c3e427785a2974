"""The nearest cluster: predictions of MiniBatchKMeans, and its record.

Owns the choice of the nearest centre. Never learns. Invariant: a cluster that is returned is that of scikit-learn. It
multiplies matrices with another library than numpy, so distances may differ in their last bits: rows whose two nearest
centres are equally far, but for rounding, have no answer here.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from keepfit.rows.values import Floats
from keepfit.scoring.records import Estimator

# Of a sum of d products each of |x| |c|, the rounding error is below d times this (Higham, 2002, section 3.1); with a
# margin for the squares, for both computations, and for two distances.
ROUNDING = 16 * float(np.finfo(np.float64).eps)


class Clusters(Estimator, tag="clusters", frozen=True):
    """A MiniBatchKMeans."""

    cluster_centers_: Floats

    @property
    def n_features_in_(self) -> int:
        """Number of columns."""
        return int(self.cluster_centers_.shape[1])

    def fits(self) -> bool:
        """Return whether each centre has a value for each column."""
        return self.cluster_centers_.ndim == 2


def nearest(estimator: Any, X: Floats) -> NDArray[np.int32] | None:
    """Return the number of the nearest centre of each row, shape (n,); None if rounding decides for one of them.

    Takes a fitted MiniBatchKMeans of scikit-learn, or its record, and a finite matrix, shape (n, width).
    """
    centres = estimator.cluster_centers_
    n, (count, width) = len(X), centres.shape
    if count == 1:
        return np.zeros(n, np.int32)
    squares = (centres * centres).sum(axis=1)
    distances = squares - 2.0 * (X @ centres.T)
    found = distances.argmin(axis=1)
    two = np.partition(distances, 1, axis=1)[:, :2]
    largest = squares.max()
    size = largest + 2.0 * np.sqrt((X * X).sum(axis=1) * largest)
    is_clear = two[:, 1] - two[:, 0] > ROUNDING * (width + 4) * size
    return found.astype(np.int32) if is_clear.all() else None
