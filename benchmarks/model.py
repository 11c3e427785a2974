"""The one model that every system serves: four numbers in, a standard scaler and a linear regression by SGD.

Owns its parameters and the rows that it has learned before a measurement. The harness imports it, and so do the peers'
servers in their own environments, so its top imports the standard library only.
"""

import random
from typing import Any

PARAMS = {"alpha": 0.0001, "eta0": 0.01, "learning_rate": "invscaling", "shuffle": False, "random_state": 0}
SCALER = "StandardScaler"
ESTIMATOR = "SGDRegressor"
FEATURES = 4
WEIGHTS = (1.0, 2.0, -1.0, 0.5)
TRAINED_ROWS = 500


def rows(count: int, seed: int = 0, features: int = FEATURES) -> tuple[list[list[float]], list[float]]:
    """Return `count` rows and their targets: a linear function of the first four columns plus noise.

    >>> X, y = rows(2)
    >>> len(X[0]), X == rows(2)[0]
    (4, True)
    """
    source = random.Random(seed)  # noqa: S311 - data, not secrets
    X = [[source.gauss(0.0, 1.0) for _ in range(features)] for _ in range(count)]
    y = [sum(w * x for w, x in zip(WEIGHTS, row, strict=False)) + source.gauss(0.0, 0.1) for row in X]
    return X, y


class InProcess:
    """The model in a program that calls scikit-learn directly; it has learned :data:`TRAINED_ROWS` rows."""

    def __init__(self) -> None:
        from sklearn.linear_model import SGDRegressor  # noqa: PLC0415 - River's environment has no scikit-learn
        from sklearn.preprocessing import StandardScaler  # noqa: PLC0415

        self._scaler = StandardScaler()
        self._estimator = SGDRegressor(**PARAMS)
        self.partial_fit(*rows(TRAINED_ROWS))

    def partial_fit(self, X: Any, y: Any) -> None:
        """Learn rows: first the scaler, then the estimator with scaled rows."""
        self._scaler.partial_fit(X)
        self._estimator.partial_fit(self._scaler.transform(X), y)

    def predict(self, X: Any) -> Any:
        """Return the predictions of rows, an array of floats, shape (n,)."""
        return self._estimator.predict(self._scaler.transform(X))
