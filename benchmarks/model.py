"""The one model that every system serves: four numbers in, a standard scaler and a linear regression by SGD.

Owns its parameters and the rows it has learned before anything is measured. Imported by the harness and, in their own
environments, by the peers' servers; so it imports nothing at its top but the standard library.
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
    """Make `count` rows and their targets: a linear function of the first four columns, and noise.

    >>> X, y = rows(2)
    >>> len(X[0]), X == rows(2)[0]
    (4, True)
    """
    source = random.Random(seed)  # noqa: S311 - data, not secrets
    X = [[source.gauss(0.0, 1.0) for _ in range(features)] for _ in range(count)]
    y = [sum(w * x for w, x in zip(WEIGHTS, row, strict=False)) + source.gauss(0.0, 0.1) for row in X]
    return X, y


class InProcess:
    """The model as a program has it that calls scikit-learn by itself; learned :data:`TRAINED_ROWS` rows already."""

    def __init__(self) -> None:
        from sklearn.linear_model import SGDRegressor  # noqa: PLC0415 - River's environment has no scikit-learn
        from sklearn.preprocessing import StandardScaler  # noqa: PLC0415

        self._scaler = StandardScaler()
        self._estimator = SGDRegressor(**PARAMS)
        self.partial_fit(*rows(TRAINED_ROWS))

    def partial_fit(self, X: Any, y: Any) -> None:
        """Learn rows: the scaler first, then the estimator on what it scales."""
        self._scaler.partial_fit(X)
        self._estimator.partial_fit(self._scaler.transform(X), y)

    def predict(self, X: Any) -> Any:
        """Predict rows; returns an array of floats, one for each."""
        return self._estimator.predict(self._scaler.transform(X))
