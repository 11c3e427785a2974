"""Scorers of bundles: the arrays and parameters that predictions need, taken from what a bundle has learned.

Owns the way from an estimator of scikit-learn to its record. Never changes a bundle, and shares no array with one that
learns on. Invariant: a scorer answers what the bundle would answer, bit for bit; a model whose answers need more than
numpy has none. Workers send scorers to gateways (:mod:`keepfit.scoring.encoding`).
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from sklearn.linear_model import Perceptron, SGDClassifier, SGDOneClassSVM, SGDRegressor
from sklearn.preprocessing import MaxAbsScaler, MinMaxScaler, StandardScaler

from keepfit.errors import ScorerError
from keepfit.model import pipeline
from keepfit.model.bundle import Bundle
from keepfit.model.smoothing import smoothed
from keepfit.scoring import encoding, records
from keepfit.scoring.scorer import Scorer
from keepfit.scoring.state import State, is_eligible


def scorer_of(bundle: Bundle, generation: int, version: int) -> Scorer | None:
    """Return the scorer of a version of a model; None if its predictions need a worker."""
    if not is_eligible(bundle.recipe) or not bundle.is_fitted:
        return None
    try:
        state = _state(bundle, generation, version)
        # The bundle learns on in its own arrays.
        return encoding.decode(encoding.encode_state(state), bundle.recipe)
    except (ScorerError, AttributeError, TypeError, ValueError):
        return None


def encoded_scorer(bundle: Bundle, generation: int, version: int, bytes_max: int) -> bytes:
    """Return the encoded scorer of a version of a model; b"" if it has none, or one of more than `bytes_max` bytes."""
    if not is_eligible(bundle.recipe) or not bundle.is_fitted:
        return b""
    try:
        state = _state(bundle, generation, version)
        if state.array_bytes > bytes_max:
            return b""
        # What a gateway would refuse is not sent.
        state.check(bundle.recipe)
        encoded = encoding.encode_state(state)
    except (ScorerError, AttributeError, TypeError, ValueError):
        return b""
    return encoded if len(encoded) <= bytes_max else b""


def _state(bundle: Bundle, generation: int, version: int) -> State:
    columns, (*steps, final) = bundle.columns, pipeline.steps_of(bundle.estimator)
    return State(
        generation,
        version,
        bundle.rows_seen,
        None if columns.scaler is None else _record_of(columns.scaler),
        [list(known) for known in columns.labels],
        columns.mean_values,
        columns.rule,
        [_record_of(step) for step in steps],
        _record_of(smoothed(final)),
        [list(labels.known) for labels in bundle.label_lists] if bundle.recipe.entry.kind == "classifier" else [],
    )


def _record_of(learned: Any) -> Any:
    """Return the record of a fitted scaler or estimator of scikit-learn.

    Raises
    ------
    ScorerError
        If its class has none.
    """
    make = RECORDS.get(type(learned))
    if make is None:
        raise ScorerError(f"{type(learned).__name__} has no record.")
    return make(learned)


def _standard(scaler: Any) -> records.StandardScaler:
    return records.StandardScaler(
        scaler.mean_ if scaler.with_mean else None,
        scaler.scale_ if scaler.with_std else None,
        int(scaler.n_features_in_),
    )


def _min_max(scaler: Any) -> records.MinMaxScaler:
    low, high = map(float, scaler.feature_range)
    return records.MinMaxScaler(scaler.scale_, scaler.min_, low, high, bool(scaler.clip))


def _max_abs(scaler: Any) -> records.MaxAbsScaler:
    return records.MaxAbsScaler(scaler.scale_, bool(scaler.clip))


def _linear_regressor(estimator: Any) -> records.LinearRegressor:
    return records.LinearRegressor(estimator.coef_, np.atleast_1d(estimator.intercept_))


def _linear_classifier(estimator: Any) -> records.LinearClassifier:
    has_probabilities = type(estimator) is SGDClassifier and estimator.loss in ("log_loss", "modified_huber")
    loss = estimator.loss if has_probabilities else None
    return records.LinearClassifier(estimator.coef_, np.atleast_1d(estimator.intercept_), loss)


def _inlier_detector(estimator: Any) -> records.InlierDetector:
    return records.InlierDetector(estimator.coef_, np.atleast_1d(estimator.offset_))


RECORDS: Mapping[type[Any], Callable[[Any], records.Record]] = {
    StandardScaler: _standard,
    MinMaxScaler: _min_max,
    MaxAbsScaler: _max_abs,
    SGDRegressor: _linear_regressor,
    SGDClassifier: _linear_classifier,
    Perceptron: _linear_classifier,
    SGDOneClassSVM: _inlier_detector,
}
