"""Scaling: what the scalers compute from a matrix.

Owns the computation of StandardScaler, MinMaxScaler and MaxAbsScaler. Never learns. Invariant: results are those of
scikit-learn bit for bit, because they come from the same operations in the same order. The functions take a scaler of
scikit-learn, or a record with the attributes of one (:mod:`keepfit.scoring.records`).
"""

from typing import Any

import numpy as np

from keepfit.rows.values import Floats


def standard(scaler: Any, X: Floats) -> Floats:
    """Return what StandardScaler gives for `X`, shape (n, width), which is overwritten."""
    if scaler.with_mean:
        X -= scaler.mean_
    if scaler.with_std:
        X /= scaler.scale_
    return X


def min_max(scaler: Any, X: Floats) -> Floats:
    """Return what MinMaxScaler gives for `X`, shape (n, width), which is overwritten."""
    X *= scaler.scale_
    X += scaler.min_
    return np.clip(X, *scaler.feature_range, out=X) if scaler.clip else X


def max_abs(scaler: Any, X: Floats) -> Floats:
    """Return what MaxAbsScaler gives for `X`, shape (n, width), which is overwritten."""
    X /= scaler.scale_
    return np.clip(X, -1.0, 1.0, out=X) if scaler.clip else X
