"""Chains: incremental steps one after the other, the last of which answers.

Owns the order in which steps learn: each learns the rows as the one before gives them *after* it has learned, as a loop
of ``partial_fit`` and ``transform`` written by hand does; scikit-learn's own Pipeline has no ``partial_fit``. Never
learns while it predicts. Invariant: every step sees the same rows in the same order. A single estimator passes through
all functions here as a chain without steps before it.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from sklearn.decomposition import IncrementalPCA
from sklearn.feature_selection import SelectFromModel
from sklearn.multioutput import MultiOutputClassifier

from keepfit.model import estimators, fast_fit, fast_predict


@dataclass(slots=True)
class Pipeline:
    """`steps` transform what `last` learns and answers."""

    steps: list[Any]
    last: Any


def build(parts: Iterable[tuple[str, Mapping[str, Any]]]) -> Any:
    """Make the estimator, or the chain, of names and parameters; errors are those of :func:`estimators.build`."""
    return joined([estimators.build(name, params) for name, params in parts])


def joined(parts: Sequence[Any]) -> Any:
    """Return the estimator, or the pipeline, of `parts`, as :func:`parts` gives them."""
    *steps, last = parts
    return Pipeline(steps, last) if steps else last


def parts(estimator: Any) -> list[Any]:
    """All that learn, in order."""
    return [*estimator.steps, estimator.last] if type(estimator) is Pipeline else [estimator]


def last(estimator: Any) -> Any:
    """The one that answers."""
    return estimator.last if type(estimator) is Pipeline else estimator


def learners(estimator: Any) -> list[Any]:
    """Those that know the classes of an output each, after the first call."""
    end = last(estimator)
    if isinstance(end, MultiOutputClassifier):
        found: list[Any] = end.estimators_
        return found
    return [end.estimator_] if isinstance(end, SelectFromModel) else [end]


def learn(estimator: Any, X: Any) -> Any:
    """Have all steps before the last learn `X`, which may be overwritten; return it as the last is to learn it.

    Raises
    ------
    ValueError
        A step's own.
    """
    if type(estimator) is Pipeline:
        for step in estimator.steps:
            fast_fit.partial_fit_scaler(step, X)
            X = fast_predict.transform(step, X)
    return X


def forward(estimator: Any, X: Any) -> Any:
    """Transform `X`, which may be overwritten, to what the last is to predict; learns nothing.

    Raises
    ------
    ValueError
        A step's own.
    """
    if type(estimator) is Pipeline:
        for step in estimator.steps:
            X = fast_predict.transform(step, X)
    return X


def detach_links(estimator: Any) -> tuple[list[Any], list[int]]:
    """Cut what pickle cannot follow, and note what it would forget; :func:`attach_links` makes it whole again.

    Those are the chain of a Birch tree's leaves, which pickle follows by recursion and would fail at some hundred, and
    the layout of each IncrementalPCA's components: the first rows of a larger Fortran-ordered array, which pickle
    copies. A product with the copy is summed in another order, and differs in its last bit.
    """
    leaves, leaf = [], getattr(last(estimator), "__dict__", {}).get("dummy_leaf_")
    while leaf is not None:
        leaves.append(leaf)
        leaf = leaf.next_leaf_
    for leaf in leaves:
        leaf.prev_leaf_ = leaf.next_leaf_ = None
    return leaves, [_leading(part.components_) for part in _components(estimator)]


def attach_links(estimator: Any, links: tuple[list[Any], list[int]]) -> None:
    """Make whole what :func:`detach_links` took apart, or what was unpickled of it."""
    leaves, rows = links
    if not leaves and not rows:
        return
    for left, right in pairwise(leaves):
        left.next_leaf_, right.prev_leaf_ = right, left
    nodes = [last(estimator).root_] if leaves else []
    for node in nodes:
        size = len(node.subclusters_)
        if size:
            # Birch writes into the left ones and reads the right ones.
            node.centroids_, node.squared_norm_ = node.init_centroids_[:size], node.init_sq_norm_[:size]
        nodes += [cluster.child_ for cluster in node.subclusters_ if cluster.child_ is not None]
    for part, count in zip(_components(estimator), rows, strict=True):
        kept = part.components_
        if _leading(kept) != count:
            part.components_ = np.empty((count, kept.shape[1]), order="F")[: len(kept)]
            part.components_[:] = kept


def _components(estimator: Any) -> list[Any]:
    return [part for part in parts(estimator) if type(part) is IncrementalPCA and hasattr(part, "components_")]


def _leading(array: Any) -> int:
    """Rows of the Fortran-ordered array that this one is the beginning of; 0 where it is none."""
    across, along = array.strides
    return along // array.itemsize if across == array.itemsize else 0
