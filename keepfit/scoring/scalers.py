"""Scaling: what StandardScaler, MinMaxScaler and MaxAbsScaler compute from a matrix, and their records.

Owns these computations. Never learns. Invariant: results are those of scikit-learn bit for bit, because they come from
the same operations in the same order. The functions take a scaler of scikit-learn, or the record with its attributes.
"""

from collections.abc import Callable, Iterable
from functools import cached_property
from operator import add, mul, sub, truediv
from typing import Any

import numpy as np

from keepfit.rows.values import Floats
from keepfit.scoring.records import Record, are_vectors


class StandardScaler(Record, tag="standard", frozen=True):
    """A StandardScaler; without `with_mean` or `with_std` the array is None."""

    mean_: Floats | None
    scale_: Floats | None
    width: int

    @cached_property
    def with_mean(self) -> bool:
        """Whether the mean is subtracted."""
        return self.mean_ is not None

    @cached_property
    def with_std(self) -> bool:
        """Whether values are divided by the standard deviation."""
        return self.scale_ is not None

    @property
    def n_features_in_(self) -> int:
        """Number of columns."""
        return self.width

    def fits(self) -> bool:
        """Return whether both arrays have one number for each column."""
        return are_vectors(self.width, *[array for array in (self.mean_, self.scale_) if array is not None])


class MinMaxScaler(Record, tag="min_max", frozen=True):
    """A MinMaxScaler."""

    scale_: Floats
    min_: Floats
    low: float
    high: float
    clip: bool

    @cached_property
    def feature_range(self) -> tuple[float, float]:
        """The range to which values are clipped."""
        return self.low, self.high

    @property
    def n_features_in_(self) -> int:
        """Number of columns."""
        return int(self.scale_.shape[0])

    def fits(self) -> bool:
        """Return whether both arrays have one number for each column."""
        return are_vectors(len(self.scale_), self.scale_, self.min_)


class MaxAbsScaler(Record, tag="max_abs", frozen=True):
    """A MaxAbsScaler."""

    scale_: Floats
    clip: bool

    @property
    def n_features_in_(self) -> int:
        """Number of columns."""
        return int(self.scale_.shape[0])

    def fits(self) -> bool:
        """Return whether the array has one number for each column."""
        return are_vectors(len(self.scale_), self.scale_)


Scaler = StandardScaler | MinMaxScaler | MaxAbsScaler


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


def row_function(scaler: Scaler) -> Callable[[Iterable[float]], Iterable[float]]:
    """Return a function that scales the numbers of a single row as :data:`Scaler` does, without clipping.

    Python computes with the same doubles as numpy, one by one: the same operations give the same bits. For a short row
    that takes less time than the calls of numpy, which touch much more memory.
    """
    if isinstance(scaler, StandardScaler):
        mean = None if scaler.mean_ is None else scaler.mean_.tolist()
        scale = None if scaler.scale_ is None else scaler.scale_.tolist()
        if mean is None or scale is None:
            operation, by = (sub, mean) if scale is None else (truediv, scale)
            return lambda row: row if by is None else map(operation, row, by)
        return lambda row: map(truediv, map(sub, row, mean), scale)
    factors = scaler.scale_.tolist()
    if isinstance(scaler, MaxAbsScaler):
        return lambda row: map(truediv, row, factors)
    added = scaler.min_.tolist()
    return lambda row: map(add, map(mul, row, factors), added)
