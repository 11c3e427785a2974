"""Records: the arrays and parameters of a fitted scaler or estimator that its predictions need, and nothing else.

Owns which attributes those are, under scikit-learn's names, so that one function computes with either; and the check of
one record: shapes and finite numbers. Never holds an object that could run code. Invariant: a record that was checked
has arrays whose shapes fit each other. :mod:`keepfit.scoring.encoding` reads and writes records.
"""

from functools import cached_property
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from keepfit.errors import ScorerError
from keepfit.rows.values import Floats
from keepfit.scoring.functions import is_finite

# Infinity is valid here: the logarithm of a count of zero.
INFINITE_ENDINGS = ("log_prob_", "log_prior_")
# Calls of numpy for the answer of a linear model.
FIXED_CALLS = 10
# Multiplications and additions in the time of a logistic function, which Python computes value by value.
LOGISTIC_COST = 50


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


def are_vectors(width: int, *arrays: Any) -> bool:
    """Return whether all arrays have the shape (width,)."""
    return all(array.shape == (width,) for array in arrays)


class Estimator(Record, frozen=True):
    """A final estimator; `classes_` are codes, in order."""

    @property
    def n_classes(self) -> int:
        """Number of classes; 0 unless this is a classifier."""
        return 0

    @property
    def calls(self) -> int:
        """Calls of numpy for one answer, approximately."""
        return FIXED_CALLS

    @property
    def row_cost(self) -> int:
        """Multiplications and additions for a row, approximately, without those for its probabilities."""
        return sum(array.size for array in self.arrays)

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
