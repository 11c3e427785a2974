"""Metrics of a score call.

Owns the choice of metrics and their names, which are scikit-learn's. Never learns; metrics computed during learning are
in :mod:`keepfit.model.prequential`. Invariant: rows without an answer are counted, and are in no metric.
"""

from typing import Any

import numpy as np
from sklearn import metrics as sk

from keepfit.model.sums import log_losses

Score = dict[str, float | None]
UNANSWERED = "rows_without_prediction"


def score(y: Any, predicted: Any, probabilities: Any = None, *, labelled: bool, rows: int | None = None) -> Score:
    """Return the metrics of a classifier (`labelled`) or a regressor.

    Parameters
    ----------
    y, predicted : shape (n,): codes of labels, of any value, or numbers; a prediction that is not finite is none
    probabilities : shape (n, classes); codes without a column have the probability 0; None where there are none
    rows : number of rows that were asked about; more than n if some could not be predicted

    Returns
    -------
    The metrics of the rows that have a prediction, each None if it is undefined for them, and
    ``rows_without_prediction`` if there are such rows.
    """
    asked = len(y) if rows is None else rows
    if labelled:
        answered, found = len(y), classification_score(y, predicted, probabilities)
    else:
        finite = np.isfinite(predicted)
        answered, found = int(finite.sum()), regression_score(y[finite], predicted[finite])
    return {**found, UNANSWERED: asked - answered} if answered < asked else found


def regression_score(y: Any, predicted: Any) -> Score:
    """Return `max_error`, `mean_absolute_error` and `r2` (None for a single row, where it is undefined)."""
    if not len(y):
        return {"max_error": None, "mean_absolute_error": None, "r2": None}
    return {
        "max_error": float(sk.max_error(y, predicted)),
        "mean_absolute_error": float(sk.mean_absolute_error(y, predicted)),
        "r2": float(sk.r2_score(y, predicted)) if len(y) > 1 else None,
    }


def classification_score(y: Any, predicted: Any, probabilities: Any) -> Score:
    """Return `accuracy`, `f1` (macro) and `log_loss` (None where no row has probabilities) of codes."""
    if not len(y):
        return {"accuracy": None, "f1": None, "log_loss": None}
    losses = () if probabilities is None else log_losses(y, probabilities)
    return {
        "accuracy": float(sk.accuracy_score(y, predicted)),
        "f1": float(sk.f1_score(y, predicted, average="macro", zero_division=0.0)),
        "log_loss": float(np.mean(losses)) if len(losses) else None,
    }
