"""The first call: how many rows it takes, and the rows that wait for it.

Some estimators begin with several rows only (as many as there are clusters, say), and their users send single ones.
Owns that number for each of them, and how rows that have waited become one call. Never learns. Invariant: what the
first call learns are all rows so far, in the order in which they came, so the model is that of a loop by hand whose
first batch is as large as it has to be.
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

# They are kept in the bundle, and read and written with each of them that comes.
ROWS_MAX = 10_000
BYTES_MAX = 1 << 26
# Of a single row no variance can be told.
VARIANCE_ROWS = 2
# Those whose rows have a column for each of their components.
MADE_OF_COMPONENTS = (
    BernoulliRBM,
    IncrementalPCA,
    LatentDirichletAllocation,
    MiniBatchDictionaryLearning,
    MiniBatchNMF,
)


def rows_needed(estimator: Any, width: int) -> int:
    """Rows that the first call takes of an estimator or a chain that is given `width` columns."""
    needed = 1
    for step in pipeline.parts(estimator):
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
    """Columns of the rows that a step gives."""
    if isinstance(step, MADE_OF_COMPONENTS):
        return _components(step, width)
    if isinstance(step, MiniBatchKMeans):
        clusters: int = step.n_clusters
        return clusters
    return int(step.n_features) if isinstance(step, HashingVectorizer) else width


def _components(step: Any, width: int) -> int:
    components = step.n_components
    return int(components) if isinstance(components, int) else width


def check(estimator: Any, width: int | None, name: str) -> None:
    """Refuse what would keep too many rows waiting, or could never begin; `width` is None where it is not known yet.

    Raises
    ------
    InvalidError
        With the number, and what would be right.
    """
    given = width
    for step in pipeline.parts(estimator):
        components = getattr(step, "n_components", None)
        if isinstance(step, IncrementalPCA) and given is not None and (components or 1) > given:
            raise InvalidError(f"params of {name}: n_components={components} is more than the {given} columns.")
        given = None if given is None and not _fixes_width(step) else _width_after(step, given or 0)
    needed = rows_needed(estimator, width or 1)
    if needed > ROWS_MAX:
        raise InvalidError(f"params of {name}: the first call takes {needed} rows, more than {ROWS_MAX} that may wait.")


def _fixes_width(step: Any) -> bool:
    return isinstance(step, MiniBatchKMeans | HashingVectorizer) or isinstance(getattr(step, "n_components", None), int)


def check_waiting(waiting: Sequence[Rows], rows: Rows, needed: int, *, labelled: bool) -> None:
    """Refuse `rows` that cannot wait together with those before.

    Raises
    ------
    InvalidError
        With what is different, or too much.
    """
    if needed > ROWS_MAX:
        raise InvalidError(f"the first call takes {needed} rows of this width, more than {ROWS_MAX} that may wait")
    if sum([len(one.encode()) for one in (*waiting, rows)]) > BYTES_MAX:
        raise InvalidError(f"the rows that wait for the first call would take more than {BYTES_MAX} bytes")
    if not waiting:
        return
    first = waiting[0]
    if rows.width != first.width:
        raise InvalidError(f"the rows have {rows.width} values where those before have {first.width}")
    size = 1 if labelled else 8
    if rows.y is not None and first.y is not None and len(rows.y) * first.n != len(first.y) * rows.n:
        had = len(first.y) // (size * first.n)
        raise InvalidError(f"y has {len(rows.y) // (size * rows.n)} values in each row where those before have {had}")


def joined(parts: Sequence[Rows]) -> Rows:
    """All rows as one call; those without weights count once where others have weights.

    >>> joined([Rows(1, bytes(8), []), Rows(2, bytes(16), [], None, bytes(16))]).weights()
    array([1., 0., 0.])
    """
    if len({part.sample_weight is None for part in parts}) == 1:
        return concatenate(parts)
    weighted = []
    for part in parts:
        weights = part.sample_weight or np.ones(part.n).astype(LITTLE_ENDIAN).tobytes()
        weighted.append(Rows(part.n, part.numbers, part.categories, part.y, weights))
    return concatenate(weighted)


def shrink(estimator: Any) -> int:
    """Make an estimator that has learned nothing so small that a few rows are enough; return how many.

    With it rows are tried that are to wait: what cannot be learned shall be refused with the request that brings it,
    and not when others' rows are learned together with it.
    """
    for step in pipeline.parts(estimator):
        if isinstance(step, IncrementalPCA):
            step.n_components = 1
        elif isinstance(step, MiniBatchKMeans):
            step.n_clusters, step.init = 1, "random"
        elif isinstance(step, MiniBatchNMF):
            step.n_components = 1
    return VARIANCE_ROWS


def matrix_width(recipe: Recipe, rows: Rows | None = None) -> int | None:
    """Columns of the matrix that the first estimator is given; None where neither recipe nor rows tell."""
    if recipe.features is None:
        return None if rows is None else rows.width
    return recipe.layout.width
