"""The numbers that CategoricalNB takes: codes of categories, which are whole numbers from 0.

scikit-learn counts each code up to the largest one, so that a timestamp would take gigabytes, and its messages name no
column. Owns the check of a matrix before it is learned or predicted, and its messages. Never changes a number.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from sklearn.naive_bayes import CategoricalNB

from keepfit.errors import InvalidError
from keepfit.model import pipeline

# Codes of a column. For each code, the estimator has two numbers for each class.
CODES_MAX = 2**16


def check(estimator: Any, X: Any, names: Callable[[], Sequence[str]], *, learning: bool) -> None:
    """Check the matrix `X` that the final estimator gets, if that is a CategoricalNB, or a wrapper of one.

    `names` returns the names of the columns of the first step.

    Raises
    ------
    InvalidError
        With the column of the first number that is no code, or that the estimator has not learned.
    """
    final = pipeline.final_of(estimator)
    if not _counts_categories(final):
        return
    if final is not estimator:
        # Other steps have made other columns.
        names = list
    known = None if learning else _numbers_of_categories(final)
    for index in range(X.shape[1]):
        column = X[:, index]
        least, most = column.min(), column.max()
        if least < 0:
            raise InvalidError(f"{_named(index, names())}: {least:g} is no code of a category: codes are 0 or more.")
        if most >= CODES_MAX:
            raise InvalidError(
                f"{_named(index, names())}: {most:.15g} is not the code of a category: CategoricalNB has at most "
                f"{CODES_MAX} for a column. Expand a timestamp to hour, weekday or month, or declare a category."
            )
        if known and most >= known[index]:
            raise InvalidError(
                f"{_named(index, names())}: {int(most)} is a category that was not learned; the model knows 0 to "
                f"{known[index] - 1} (min_categories reserves more)."
            )


def known_rows(estimator: Any, X: Any) -> Any:
    """Return whether all categories of each row of the matrix `X` were learned, shape (n,); None if that says nothing.

    It says something of a CategoricalNB, or a wrapper of one, that gets `X` itself and has learned.
    """
    known = _numbers_of_categories(estimator) if _counts_categories(estimator) else []
    return ((X >= 0) & (np.array(known) > X)).all(axis=1) if known else None


def _counts_categories(final: Any) -> bool:
    return isinstance(getattr(final, "estimator", final), CategoricalNB)


def _numbers_of_categories(final: Any) -> list[int]:
    """Return how many categories of each column each estimator has learned; none if one has learned nothing."""
    each = [getattr(one, "category_count_", []) for one in getattr(final, "estimators_", [final])]
    return [min(count.shape[1] for count in counts) for counts in zip(*each, strict=False)]


def _named(index: int, names: Sequence[str]) -> str:
    return f"column {names[index]!r}" if index < len(names) else f"column {index}"
