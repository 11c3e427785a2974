"""Records: the arrays and parameters of a fitted scaler or estimator that its predictions need, and nothing else.

Owns which attributes those are, under scikit-learn's names, so that one function computes with either; and the check of
one record: shapes and finite numbers. Never holds an object that could run code. Invariant: a record that was checked
has arrays whose shapes fit each other. :mod:`keepfit.scoring.encoding` reads and writes records.
"""

from functools import cached_property
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from keepfit.errors import ScorerError
from keepfit.rows.values import Floats
from keepfit.scoring.class_labels import CLASSES_MIN
from keepfit.scoring.functions import is_finite

# Infinity is valid here: the logarithm of a count of zero.
INFINITE_ENDINGS = ("log_prob_", "log_prior_")


class Record(msgspec.Struct, array_like=True, frozen=True, dict=True):
    """What every record has."""

    @property
    def n_features_in_(self) -> int:
        """Number of columns of the matrix."""
        raise NotImplementedError

    def check(self) -> None:
        """Check the shapes of the arrays, and that their numbers are finite.

        Raises
        ------
        ScorerError
            With the name of the record.
        """
        for name in self.__struct_fields__:
            value = getattr(self, name)
            for array in value if type(value) is list else (value,):
                is_number = type(array) is float or type(array) is np.ndarray
                if is_number and not (_has_no_nan(array) if name.endswith(INFINITE_ENDINGS) else _is_finite(array)):
                    raise ScorerError(f"{name} of {type(self).__name__} is not finite.")
        if not self.fits():
            raise ScorerError(f"The arrays of {type(self).__name__} do not fit each other.")

    def fits(self) -> bool:
        """Return whether the shapes of the arrays fit each other."""
        raise NotImplementedError

    @property
    def multiply_adds(self) -> int:
        """Multiplications and additions for one row, approximately."""
        return sum(array.size for array in self.arrays)

    @property
    def arrays(self) -> list[Floats]:
        """All arrays of the record."""
        found: list[Floats] = []
        for name in self.__struct_fields__:
            value = getattr(self, name)
            for each in value if type(value) is list else (value,):
                if isinstance(each, Record):
                    found += each.arrays
                elif type(each) is np.ndarray:
                    found.append(each)
        return found


def _is_finite(value: Any) -> bool:
    return is_finite(value) if type(value) is np.ndarray else bool(np.isfinite(value))


def _has_no_nan(value: Any) -> bool:
    return not bool(np.isnan(value).any())


def _vectors(width: int, *arrays: Any) -> bool:
    """Return whether all arrays have the shape (width,)."""
    return all(array.shape == (width,) for array in arrays)


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
        return _vectors(self.width, *[array for array in (self.mean_, self.scale_) if array is not None])


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
        return _vectors(len(self.scale_), self.scale_, self.min_)


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
        return _vectors(len(self.scale_), self.scale_)


class Estimator(Record, frozen=True):
    """A final estimator; `classes_` are codes, in order."""

    @property
    def n_classes(self) -> int:
        """Number of classes; 0 unless this is a classifier."""
        return 0

    @property
    def outputs(self) -> tuple[int, ...]:
        """Number of classes of each output."""
        return (self.n_classes,)

    @property
    def has_probabilities(self) -> bool:
        """Whether this is a classifier with probabilities."""
        return False

    @cached_property
    def classes_(self) -> NDArray[np.intp]:
        """The codes of the classes."""
        return np.arange(self.n_classes)


class LinearRegressor(Estimator, tag="linear_regressor", frozen=True):
    """An SGDRegressor."""

    coef_: Floats
    intercept_: Floats

    @property
    def n_features_in_(self) -> int:
        """Number of columns."""
        return int(self.coef_.shape[0])

    def fits(self) -> bool:
        """Return whether there is a weight for each column, and one intercept."""
        return self.coef_.ndim == 1 and self.intercept_.shape == (1,)


class LinearClassifier(Estimator, tag="linear_classifier", frozen=True):
    """An SGDClassifier or a Perceptron; `loss` is None if it has no probabilities."""

    coef_: Floats
    intercept_: Floats
    loss: Literal["log_loss", "modified_huber"] | None

    @property
    def n_features_in_(self) -> int:
        """Number of columns."""
        return int(self.coef_.shape[1])

    @property
    def n_classes(self) -> int:
        """Number of classes: two have one row of weights, more have one each."""
        return max(CLASSES_MIN, int(self.coef_.shape[0]))

    @property
    def has_probabilities(self) -> bool:
        """Whether the loss gives probabilities."""
        return self.loss is not None

    def fits(self) -> bool:
        """Return whether there are weights and an intercept for each class, or of two for the second."""
        return (
            self.coef_.ndim == 2
            and self.coef_.shape[0] != CLASSES_MIN
            and self.intercept_.shape == (self.coef_.shape[0],)
        )


class InlierDetector(Estimator, tag="inlier_detector", frozen=True):
    """An SGDOneClassSVM."""

    coef_: Floats
    offset_: Floats

    @property
    def n_features_in_(self) -> int:
        """Number of columns."""
        return int(self.coef_.shape[0])

    def fits(self) -> bool:
        """Return whether there is a weight for each column, and one offset."""
        return self.coef_.ndim == 1 and self.offset_.shape == (1,)


Scaler = StandardScaler | MinMaxScaler | MaxAbsScaler
Final = LinearRegressor | LinearClassifier | InlierDetector
