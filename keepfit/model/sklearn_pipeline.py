"""Pipelines of scikit-learn that were uploaded fitted: how they learn on.

Owns the order of the calls. scikit-learn's Pipeline has no ``partial_fit``; the steps have. Never learns in a step that
has no ``partial_fit``: such a step stays as it was fitted. Invariant: the calls are those of this loop, which users
write by hand::

    for step in transformers:
        step.partial_fit(X, y)      # if it has partial_fit
        X = step.transform(X)
    final.partial_fit(X, y)

All functions take any other object too, as a pipeline without transformers.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sklearn.pipeline import Pipeline

# Steps that do nothing.
NO_STEP = (None, "passthrough")
# What scikit-learn warns of when an estimator that learned a data frame gets an array in the order of its columns.
NO_NAMES = "X does not have valid feature names"


def steps_of(learner: Any) -> list[Any]:
    """Return the steps of a pipeline in their order, those of pipelines inside it too."""
    if type(learner) is not Pipeline:
        return [learner]
    return [part for _, step in learner.steps if not _is_nothing(step) for part in steps_of(step)]


def partial_fit(learner: Any, X: Any, *target: Any, **optional: Any) -> None:
    """Let `learner` learn; `target` is y, or nothing, and `optional` is for the last step.

    Raises
    ------
    Exception
        The errors of a step. Steps before it have learned then.
    """
    with without_names_warning(learner):
        *transformers, final = steps_of(learner)
        for step in transformers:
            if hasattr(step, "partial_fit"):
                step.partial_fit(X, *target)
            X = step.transform(X)
        final.partial_fit(X, *target, **optional)


@contextmanager
def without_names_warning(learner: Any) -> Iterator[None]:
    """Suppress the warning about names of columns: rows have them in the order in which they were learned."""
    if not hasattr(learner, "feature_names_in_"):
        yield
        return
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=NO_NAMES)
        yield


def _is_nothing(step: Any) -> bool:
    return step is None or (isinstance(step, str) and step in NO_STEP)
