"""Pipelines: transformers that learn one after another, and a final estimator.

Owns the order of learning: each step learns the rows as the step before transforms them *after* it has learned, like a
loop of ``partial_fit`` and ``transform`` calls. scikit-learn's own Pipeline has no ``partial_fit``. Never learns while
it predicts. Invariant: every step gets the same rows in the same order. All functions take a single estimator too, as a
pipeline without transformers.
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
    """`transformers` transform the rows that `final` learns and predicts."""

    transformers: list[Any]
    final: Any


def build(named_steps: Iterable[tuple[str, Mapping[str, Any]]]) -> Any:
    """Build the estimator or pipeline of names and parameters; raises what :func:`estimators.build` raises."""
    return from_steps([estimators.build(name, params) for name, params in named_steps])


def from_steps(steps: Sequence[Any]) -> Any:
    """Return the single estimator, or the pipeline, of `steps`; the inverse of :func:`steps_of`."""
    *transformers, final = steps
    return Pipeline(transformers, final) if transformers else final


def steps_of(estimator: Any) -> list[Any]:
    """Return all steps in order, the final estimator last."""
    return [*estimator.transformers, estimator.final] if type(estimator) is Pipeline else [estimator]


def final_of(estimator: Any) -> Any:
    """Return the final estimator."""
    return estimator.final if type(estimator) is Pipeline else estimator


def output_estimators(estimator: Any) -> list[Any]:
    """Return the estimators that hold the classes of an output each, after the first call."""
    final = final_of(estimator)
    if isinstance(final, MultiOutputClassifier):
        found: list[Any] = final.estimators_
        return found
    return [final.estimator_] if isinstance(final, SelectFromModel) else [final]


def fit_transformers(estimator: Any, X: Any) -> Any:
    """Let all transformers learn `X`, which may be overwritten; return it as the final estimator gets it.

    Raises
    ------
    ValueError
        The error of a step.
    """
    if type(estimator) is Pipeline:
        for step in estimator.transformers:
            fast_fit.partial_fit_scaler(step, X)
            X = fast_predict.transform(step, X)
    return X


def transform(estimator: Any, X: Any) -> Any:
    """Return `X`, which may be overwritten, as the final estimator gets it; learns nothing.

    Raises
    ------
    ValueError
        The error of a step.
    """
    if type(estimator) is Pipeline:
        for step in estimator.transformers:
            X = fast_predict.transform(step, X)
    return X


def detach_links(estimator: Any) -> tuple[list[Any], list[int]]:
    """Remove references that pickle cannot follow, and return them with what pickle loses, for :func:`attach_links`.

    The references are the linked list of a Birch tree's leaves, which pickle follows by recursion and fails at some
    hundred. What is lost is the memory layout of each IncrementalPCA's components: they are the first rows of a larger
    Fortran-ordered array, and pickle copies them. A product with the copy is summed in another order and differs in its
    last bit.
    """
    leaves, leaf = [], getattr(final_of(estimator), "__dict__", {}).get("dummy_leaf_")
    while leaf is not None:
        leaves.append(leaf)
        leaf = leaf.next_leaf_
    for leaf in leaves:
        leaf.prev_leaf_ = leaf.next_leaf_ = None
    return leaves, [_leading_rows(step.components_) for step in _with_components(estimator)]


def attach_links(estimator: Any, links: tuple[list[Any], list[int]]) -> None:
    """Restore what :func:`detach_links` removed from `estimator`, or from the one of which it is an unpickled copy."""
    leaves, rows = links
    if not leaves and not rows:
        return
    for left, right in pairwise(leaves):
        left.next_leaf_, right.prev_leaf_ = right, left
    nodes = [final_of(estimator).root_] if leaves else []
    for node in nodes:
        size = len(node.subclusters_)
        if size:
            # In Birch the left ones are views of the right ones, which it writes.
            node.centroids_, node.squared_norm_ = node.init_centroids_[:size], node.init_sq_norm_[:size]
        nodes += [cluster.child_ for cluster in node.subclusters_ if cluster.child_ is not None]
    for step, count in zip(_with_components(estimator), rows, strict=True):
        components = step.components_
        if _leading_rows(components) != count:
            step.components_ = np.empty((count, components.shape[1]), order="F")[: len(components)]
            step.components_[:] = components


def _with_components(estimator: Any) -> list[Any]:
    return [step for step in steps_of(estimator) if type(step) is IncrementalPCA and hasattr(step, "components_")]


def _leading_rows(array: Any) -> int:
    """Return the number of rows of the Fortran-ordered array whose first rows `array` is; 0 if there is none."""
    across, along = array.strides
    return along // array.itemsize if across == array.itemsize else 0
