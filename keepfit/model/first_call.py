"""The first call of an estimator: how many rows it needs, and how they are collected.

Some estimators need several rows in their first call (for example one per cluster), while clients send single rows.
Owns that number for each estimator, and how collected rows become one call. Never learns. Invariant: the first call
learns all rows so far in their order, so that the model equals that of a plain loop with a first batch of that size.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.cluster import MiniBatchKMeans
from sklearn.decomposition import (
    IncrementalPCA,
    LatentDirichletAllocation,
    MiniBatchDictionaryLearning,
    MiniBatchNMF,
)
from sklearn.feature_extraction.text import HashingVectorizer
from sklearn.neural_network import BernoulliRBM

from keepfit.errors import InvalidError
from keepfit.model import pipeline
from keepfit.recipe.recipe import Recipe
from keepfit.rows.rows import Rows, concatenate
from keepfit.rows.values import LITTLE_ENDIAN

# Limits of the collected rows. They are stored in the bundle, which is read and written with each request.
ROWS_MAX = 10_000
BYTES_MAX = 1 << 26
# A single row has no variance.
VARIANCE_ROWS = 2
# Transformers whose output has a column per component.
WITH_COMPONENTS = (
    BernoulliRBM,
    IncrementalPCA,
    LatentDirichletAllocation,
    MiniBatchDictionaryLearning,
    MiniBatchNMF,
)


def rows_needed(estimator: Any, width: int) -> int:
    """Return the number of rows that the first call of an estimator or pipeline needs, for `width` columns."""
    needed = 1
    for step in pipeline.steps_of(estimator):
        needed = max(needed, _needed(step, width))
        width = _width_after(step, width)
    return needed


def _needed(step: Any, width: int) -> int:
    if isinstance(step, IncrementalPCA):
        return max(VARIANCE_ROWS, step.n_components or width)
    if isinstance(step, MiniBatchKMeans):
        clusters: int = step.n_clusters
        return clusters
    if isinstance(step, MiniBatchNMF) and str(step.init).startswith("nndsvd"):
        return _components(step, width)
    return 1


def _width_after(step: Any, width: int) -> int:
    """Return the number of columns of a step's output."""
    if isinstance(step, WITH_COMPONENTS):
        return _components(step, width)
    if isinstance(step, MiniBatchKMeans):
        clusters: int = step.n_clusters
        return clusters
    return int(step.n_features) if isinstance(step, HashingVectorizer) else width


def width_of_final(estimator: Any, width: int) -> int:
    """Return the number of columns that the last step of a pipeline gets, for `width` columns."""
    for step in pipeline.steps_of(estimator)[:-1]:
        width = _width_after(step, width)
    return width


def _components(step: Any, width: int) -> int:
    components = step.n_components
    return int(components) if isinstance(components, int) else width


def component_values(estimator: Any, width: int) -> int:
    """Return the size of the largest matrix of components that a step learns, for `width` columns; 0 without one."""
    largest = 0
    for step in pipeline.steps_of(estimator):
        if isinstance(step, WITH_COMPONENTS):
            largest = max(largest, width * _components(step, width))
        width = _width_after(step, width)
    return largest


def check_rows_needed(estimator: Any, width: int | None, name: str) -> None:
    """Check that the first call needs no more rows than may wait; `width` is None if it is not known yet.

    Raises
    ------
    InvalidError
        With the number, and what would be right.
    """
    step_width = width
    for step in pipeline.steps_of(estimator):
        components = getattr(step, "n_components", None)
        if isinstance(step, IncrementalPCA) and step_width is not None and (components or 1) > step_width:
            raise InvalidError(f"params of {name}: n_components={components} is more than the {step_width} columns.")
        is_unknown = step_width is None and not _fixes_width(step)
        step_width = None if is_unknown else _width_after(step, step_width or 0)
    needed = rows_needed(estimator, width or 1)
    if needed > ROWS_MAX:
        raise InvalidError(
            f"params of {name}: the first call needs {needed} rows, more than the {ROWS_MAX} that may wait."
        )


def _fixes_width(step: Any) -> bool:
    return isinstance(step, MiniBatchKMeans | HashingVectorizer) or isinstance(getattr(step, "n_components", None), int)


def check_waiting(waiting: Sequence[Rows], rows: Rows, needed: int, *, labelled: bool) -> None:
    """Check that `rows` can wait together with those before.

    Raises
    ------
    InvalidError
        With the difference, or the limit.
    """
    if needed > ROWS_MAX:
        raise InvalidError(f"the first call needs {needed} rows of this width, more than the {ROWS_MAX} that may wait")
    if sum([len(one.encode()) for one in (*waiting, rows)]) > BYTES_MAX:
        raise InvalidError(f"the rows that wait for the first call would exceed {BYTES_MAX} bytes")
    if not waiting:
        return
    first = waiting[0]
    if rows.width != first.width:
        raise InvalidError(f"the rows have {rows.width} values where those before have {first.width}")
    size = 1 if labelled else 8
    if rows.y is not None and first.y is not None and len(rows.y) * first.n != len(first.y) * rows.n:
        expected = len(first.y) // (size * first.n)
        raise InvalidError(
            f"y has {len(rows.y) // (size * rows.n)} values in each row where those before have {expected}"
        )


def concatenate_rows(requests: Sequence[Rows]) -> Rows:
    """Return all rows as one call; rows without weights get the weight 1 if others have weights.

    >>> concatenate_rows([Rows(1, bytes(8), []), Rows(2, bytes(16), [], None, bytes(16))]).weights()
    array([1., 0., 0.])
    """
    if len({rows.sample_weight is None for rows in requests}) == 1:
        return concatenate(requests)
    weighted = []
    for rows in requests:
        weights = rows.sample_weight or np.ones(rows.n).astype(LITTLE_ENDIAN).tobytes()
        weighted.append(Rows(rows.n, rows.numbers, rows.categories, rows.y, weights))
    return concatenate(weighted)


def shrink(estimator: Any) -> int:
    """Reduce an estimator that has learned nothing so that a few rows are enough for its first call; return how many.

    Rows are tried with it before they wait, so that a fault is reported with its request and not later with others.
    """
    for step in pipeline.steps_of(estimator):
        if isinstance(step, IncrementalPCA):
            step.n_components = 1
        elif isinstance(step, MiniBatchKMeans):
            step.n_clusters, step.init = 1, "random"
        elif isinstance(step, MiniBatchNMF):
            step.n_components = 1
    return VARIANCE_ROWS


def matrix_width(recipe: Recipe, rows: Rows | None = None) -> int | None:
    """Return the number of columns of the first estimator's matrix; None if neither recipe nor rows tell it."""
    if recipe.features is None:
        return None if rows is None else rows.width
    return recipe.layout.width
