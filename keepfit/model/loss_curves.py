"""Loss curves: the lists that scikit-learn's neural networks extend by one value in every call.

Owns which values of them are kept. Without a bound, a bundle would grow by 19 bytes with each request. Never changes a
value that later learning or a prediction reads: ``partial_fit`` compares only the value that it has just appended with
``best_loss_``, which is stored apart. Invariant: after :func:`shorten` a list has at most its last :data:`LENGTH_MAX`
values.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from sklearn.neural_network import MLPClassifier, MLPRegressor

NETWORKS = (MLPClassifier, MLPRegressor)
# The second is None unless ``fit`` was called, with early stopping, before an object was uploaded.
CURVES = ("loss_curve_", "validation_scores_")
LENGTH_MAX = 1
# Attributes of wrappers and pipelines with what they contain. Only objects of these packages are searched: in other
# objects the names may mean anything.
INNER = ("estimator", "estimator_", "estimators_", "steps")
PACKAGES = ("sklearn", "river")


def shorten(estimator: Any) -> None:
    """Drop all but the last value of the loss curves of `estimator`, and of those inside a wrapper or a pipeline.

    >>> from sklearn.multioutput import MultiOutputRegressor
    >>> model = MultiOutputRegressor(MLPRegressor(hidden_layer_sizes=[2]))
    >>> for _ in range(3):
    ...     _ = model.partial_fit([[1.0]], [[2.0, 3.0]])
    >>> shorten(model)
    >>> [len(each.loss_curve_) for each in model.estimators_]
    [1, 1]
    """
    kind = type(estimator)
    # A subclass may read its curves.
    if kind in NETWORKS:
        for name in CURVES:
            values = estimator.__dict__.get(name)
            if type(values) is list:
                del values[:-LENGTH_MAX]
    elif kind.__module__.partition(".")[0] in PACKAGES:
        attributes = getattr(estimator, "__dict__", {})
        for name in INNER:
            for one in _parts(attributes.get(name)):
                shorten(one)


def _parts(inner: Any) -> Iterable[Any]:
    """Return the objects in a value of :data:`INNER`."""
    if isinstance(inner, Mapping):
        return inner.values()
    return inner if isinstance(inner, list) else (inner,)
