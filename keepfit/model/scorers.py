"""Scorers of bundles: the arrays and parameters that predictions need, taken from what a bundle has learned.

Owns the way from an estimator of scikit-learn to its record. Never changes a bundle, and shares no array with one that
learns on. Invariant: a scorer answers what the bundle would answer, bit for bit; a model whose answers need more than
numpy has none. Workers send scorers to gateways (:mod:`keepfit.scoring.encoding`).
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from sklearn.cluster import MiniBatchKMeans
from sklearn.linear_model import Perceptron, SGDClassifier, SGDOneClassSVM, SGDRegressor
from sklearn.multiclass import OneVsRestClassifier
from sklearn.multioutput import MultiOutputClassifier, MultiOutputRegressor
from sklearn.naive_bayes import BernoulliNB, ComplementNB, GaussianNB, MultinomialNB
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.preprocessing import MaxAbsScaler, MinMaxScaler, StandardScaler

from keepfit.errors import ScorerError
from keepfit.model import pipeline
from keepfit.model.bundle import Bundle
from keepfit.model.smoothing import smoothed
from keepfit.scoring import bayes, clusters, encoding, linear, network, scalers, wrappers
from keepfit.scoring.records import Record
from keepfit.scoring.state import State, is_eligible


def encoded_scorer(bundle: Bundle, generation: int, version: int, bytes_max: int) -> bytes:
    """Return the encoded scorer of a version of a model; b"" if it has none, or one of more than `bytes_max` bytes."""
    if not is_eligible(bundle.recipe) or not bundle.is_fitted:
        return b""
    # Each label takes a byte at least.
    if sum(map(len, bundle.columns.labels)) > bytes_max:
        return b""
    try:
        state = _state(bundle, generation, version)
        if state.array_bytes > bytes_max:
            return b""
        # What a gateway would refuse is not sent.
        state.check(bundle.recipe)
        encoded = encoding.encode(state)
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


def _standard(scaler: Any) -> scalers.StandardScaler:
    return scalers.StandardScaler(
        scaler.mean_ if scaler.with_mean else None,
        scaler.scale_ if scaler.with_std else None,
        int(scaler.n_features_in_),
    )


def _min_max(scaler: Any) -> scalers.MinMaxScaler:
    low, high = map(float, scaler.feature_range)
    return scalers.MinMaxScaler(scaler.scale_, scaler.min_, low, high, bool(scaler.clip))


def _max_abs(scaler: Any) -> scalers.MaxAbsScaler:
    return scalers.MaxAbsScaler(scaler.scale_, bool(scaler.clip))


def _linear_regressor(estimator: Any) -> linear.LinearRegressor:
    return linear.LinearRegressor(estimator.coef_, np.atleast_1d(estimator.intercept_))


def _linear_classifier(estimator: Any) -> linear.LinearClassifier:
    has_probabilities = type(estimator) is SGDClassifier and estimator.loss in ("log_loss", "modified_huber")
    loss = estimator.loss if has_probabilities else None
    return linear.LinearClassifier(estimator.coef_, np.atleast_1d(estimator.intercept_), loss)


def _inlier_detector(estimator: Any) -> linear.InlierDetector:
    return linear.InlierDetector(estimator.coef_, np.atleast_1d(estimator.offset_))


def _gaussian(estimator: Any) -> bayes.GaussianBayes:
    # Priors of the recipe may be whole numbers.
    return bayes.GaussianBayes(estimator.theta_, estimator.var_, np.asarray(estimator.class_prior_, np.float64))


def _bernoulli(estimator: Any) -> bayes.BernoulliBayes:
    binarize = None if estimator.binarize is None else float(estimator.binarize)
    return bayes.BernoulliBayes(estimator.feature_log_prob_, estimator.class_log_prior_, binarize)


def _multinomial(estimator: Any) -> bayes.MultinomialBayes:
    return bayes.MultinomialBayes(estimator.feature_log_prob_, estimator.class_log_prior_)


def _complement(estimator: Any) -> bayes.ComplementBayes:
    return bayes.ComplementBayes(estimator.feature_log_prob_, estimator.class_log_prior_)


def _network_regressor(estimator: Any) -> network.NetworkRegressor:
    return network.NetworkRegressor(
        estimator.coefs_, estimator.intercepts_, estimator.activation, estimator.out_activation_
    )


def _network_classifier(estimator: Any) -> network.NetworkClassifier:
    return network.NetworkClassifier(
        estimator.coefs_, estimator.intercepts_, estimator.activation, estimator.out_activation_
    )


def _clusters(estimator: Any) -> clusters.Clusters:
    return clusters.Clusters(estimator.cluster_centers_)


def _one_vs_rest(estimator: Any) -> wrappers.OneVsRest:
    return wrappers.OneVsRest(list(map(_record_of, estimator.estimators_)))


def _multi_output(estimator: Any) -> wrappers.MultiOutput:
    return wrappers.MultiOutput(list(map(_record_of, estimator.estimators_)))


RECORDS: Mapping[type[Any], Callable[[Any], Record]] = {
    StandardScaler: _standard,
    MinMaxScaler: _min_max,
    MaxAbsScaler: _max_abs,
    SGDRegressor: _linear_regressor,
    SGDClassifier: _linear_classifier,
    Perceptron: _linear_classifier,
    SGDOneClassSVM: _inlier_detector,
    GaussianNB: _gaussian,
    MultinomialNB: _multinomial,
    ComplementNB: _complement,
    BernoulliNB: _bernoulli,
    MLPRegressor: _network_regressor,
    MLPClassifier: _network_classifier,
    MiniBatchKMeans: _clusters,
    OneVsRestClassifier: _one_vs_rest,
    MultiOutputClassifier: _multi_output,
    MultiOutputRegressor: _multi_output,
}
