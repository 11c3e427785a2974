"""Running metrics of a bundle, and the metrics of a score call.

Owns the prequential (test-then-train) error: each batch is predicted before it is learned (Gama, Sebastião and
Rodrigues, 2013). Never changes the model. Invariant: the running values are exact sums over all rows evaluated so far,
so that they do not depend on how a run was cut into processes.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn import metrics as sk

from keepfit.estimators import Kind


@dataclass(slots=True)
class Running:
    """Sums over the rows that were predicted before they were learned."""

    rows: int = 0
    total: float = 0.0

    def update(self, kind: Kind, y: Any, predicted: Any) -> None:
        """Take in one batch: absolute errors of a regressor, hits of a classifier."""
        self.rows += len(y)
        self.total += float(np.abs(y - predicted).sum() if kind == "regressor" else (y == predicted).sum())

    def values(self, kind: Kind) -> dict[str, float | int]:
        """The metrics by name; empty before the first row was evaluated.

        >>> running = Running()
        >>> running.update("regressor", np.array([1.0, 2.0]), np.array([1.5, 2.0]))
        >>> running.values("regressor")
        {'mean_absolute_error': 0.25, 'rows': 2}
        """
        if not self.rows:
            return {}
        name = "mean_absolute_error" if kind == "regressor" else "accuracy"
        return {name: self.total / self.rows, "rows": self.rows}


def regression_score(y: Any, predicted: Any) -> dict[str, float | None]:
    """`max_error`, `mean_absolute_error` and `r2` (None for a single row, where it is not defined)."""
    return {
        "max_error": float(sk.max_error(y, predicted)),
        "mean_absolute_error": float(sk.mean_absolute_error(y, predicted)),
        "r2": float(sk.r2_score(y, predicted)) if len(y) > 1 else None,
    }


def classification_score(y: Any, predicted: Any, probabilities: Any, classes: Any) -> dict[str, float | None]:
    """`accuracy`, `f1` (macro) and `log_loss` (None where the estimator gives no probabilities)."""
    return {
        "accuracy": float(sk.accuracy_score(y, predicted)),
        "f1": float(sk.f1_score(y, predicted, average="macro", zero_division=0.0)),
        "log_loss": None if probabilities is None else float(sk.log_loss(y, probabilities, labels=classes)),
    }
