"""Which function computes what, for each record.

Owns the tables. Never computes by itself; the functions are in the module of each family.
:mod:`keepfit.model.fast_predict` has the tables for the classes of scikit-learn.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from keepfit.rows.values import Floats
from keepfit.scoring import bayes, clusters, linear, network, scalers, wrappers

# Takes a record and a matrix.
Computation = Callable[[Any, Floats], Any]


def scale(scaler: Any, X: Floats) -> Floats:
    """Return `X`, which is overwritten, as the record of a scaler scales it."""
    scaled: Floats = SCALE[type(scaler)](scaler, X)
    return scaled


def predict(record: Any, X: Floats) -> Any:
    """Return the predictions, shape (n,) or (n, outputs), labels as codes; None where rounding decides."""
    return PREDICT[type(record)](record, X)


def probabilities(record: Any, X: Floats) -> Any:
    """Return the probabilities of the classes, shape (n, classes), or a list with those of each output."""
    return PROBABILITIES[type(record)](record, X)


def _rest_label(record: Any, X: Floats) -> Any:
    is_linear = type(record.estimators_[0]) is linear.LinearClassifier
    score = linear.decision if is_linear else _second_probability
    return wrappers.rest_label(record, X, score, wrappers.threshold(is_linear=is_linear))


def _second_probability(record: Any, X: Floats) -> Any:
    return probabilities(record, X)[:, 1]


SCALE: Mapping[type[Any], Computation] = {
    scalers.StandardScaler: scalers.standard,
    scalers.MinMaxScaler: scalers.min_max,
    scalers.MaxAbsScaler: scalers.max_abs,
}
LIKELIHOODS: Mapping[type[Any], bayes.Likelihood] = {
    bayes.GaussianBayes: bayes.gaussian,
    bayes.MultinomialBayes: bayes.multinomial,
    bayes.ComplementBayes: bayes.complement,
    bayes.BernoulliBayes: bayes.bernoulli,
}
PREDICT: Mapping[type[Any], Computation] = {
    linear.LinearRegressor: linear.values,
    linear.LinearClassifier: linear.label,
    linear.InlierDetector: linear.inlier_label,
    network.NetworkRegressor: network.values,
    network.NetworkClassifier: network.label,
    clusters.Clusters: clusters.nearest,
    wrappers.OneVsRest: _rest_label,
    wrappers.MultiOutput: partial(wrappers.output_predictions, predict=predict),
    **{record: partial(bayes.label, likelihood) for record, likelihood in LIKELIHOODS.items()},
}
PROBABILITIES: Mapping[type[Any], Computation] = {
    linear.LinearClassifier: linear.probabilities,
    network.NetworkClassifier: network.probabilities,
    wrappers.OneVsRest: partial(wrappers.rest_probabilities, probabilities=probabilities),
    wrappers.MultiOutput: partial(wrappers.output_probabilities, probabilities=probabilities),
    **{record: partial(bayes.probabilities, likelihood) for record, likelihood in LIKELIHOODS.items()},
}
