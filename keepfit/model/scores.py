"""Metrics of a score call.

Owns the choice of metrics and their names, which are scikit-learn's. Never learns; metrics computed during learning are
in :mod:`keepfit.model.prequential`.
"""

from typing import Any

import numpy as np
from sklearn import metrics as sk


def regression_score(y: Any, predicted: Any) -> dict[str, float | None]:
    """Return `max_error`, `mean_absolute_error` and `r2` (None for a single row, where it is undefined)."""
    return {
        "max_error": float(sk.max_error(y, predicted)),
        "mean_absolute_error": float(sk.mean_absolute_error(y, predicted)),
        "r2": float(sk.r2_score(y, predicted)) if len(y) > 1 else None,
    }


def classification_score(y: Any, predicted: Any, probabilities: Any, n_classes: int) -> dict[str, float | None]:
    """Return `accuracy`, `f1` (macro) and `log_loss` (None where the estimator gives no probabilities) of codes.

    `probabilities` has `n_classes` columns; codes from `n_classes` on belong to labels that were never learned.
    """
    log_loss = None
    if probabilities is not None:
        unknown = max(n_classes, int(y.max()) + 1) - n_classes
        padded = np.pad(probabilities, ((0, 0), (0, unknown)))
        log_loss = float(sk.log_loss(y, padded, labels=np.arange(n_classes + unknown)))
    return {
        "accuracy": float(sk.accuracy_score(y, predicted)),
        "f1": float(sk.f1_score(y, predicted, average="macro", zero_division=0.0)),
        "log_loss": log_loss,
    }
