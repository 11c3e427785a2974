"""Models for the tests of scorers: bundles that have learned, and what a worker sends for rows."""

import warnings
from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np

from keepfit.errors import KeepfitError
from keepfit.jobs import messages
from keepfit.jobs.messages import WorkerReply
from keepfit.model.bundle import Bundle
from keepfit.model.scorers import encoded_scorer
from keepfit.recipe.recipe import parse
from keepfit.rows.rows import Rows
from keepfit.rows.shaping import shape
from keepfit.scoring import encoding
from keepfit.scoring.scorer import Scorer

# Name of a case: estimator and parameters.
CASES: Mapping[str, tuple[str, dict[str, Any]]] = {
    "regressor": ("SGDRegressor", {}),
    "averaged": ("SGDRegressor", {"average": True, "loss": "huber"}),
    "hinge": ("SGDClassifier", {}),
    "log_loss": ("SGDClassifier", {"loss": "log_loss"}),
    "modified_huber": ("SGDClassifier", {"loss": "modified_huber"}),
    "perceptron": ("Perceptron", {}),
    "passive classifier": ("PassiveAggressiveClassifier", {}),
    "passive regressor": ("PassiveAggressiveRegressor", {"C": 0.5}),
    "one class": ("SGDOneClassSVM", {}),
    "gaussian": ("GaussianNB", {}),
    "multinomial": ("MultinomialNB", {}),
    "complement": ("ComplementNB", {"norm": True}),
    "bernoulli": ("BernoulliNB", {"binarize": 1.0}),
    "bernoulli of 0 and 1": ("BernoulliNB", {"binarize": None}),
    "network of relu": ("MLPRegressor", {"hidden_layer_sizes": [6]}),
    "network of tanh": ("MLPRegressor", {"hidden_layer_sizes": [9, 5], "activation": "tanh"}),
    "network of logistic": ("MLPClassifier", {"hidden_layer_sizes": [6, 4], "activation": "logistic"}),
    "network of identity": ("MLPClassifier", {"hidden_layer_sizes": [3], "activation": "identity"}),
    "clusters": ("MiniBatchKMeans", {"n_clusters": 3}),
    "rest of log_loss": ("OneVsRestClassifier", {"estimator": {"SGDClassifier": {"loss": "log_loss"}}}),
    "rest of perceptrons": ("OneVsRestClassifier", {"estimator": {"Perceptron": {}}}),
    "rest of gaussians": ("OneVsRestClassifier", {"estimator": {"GaussianNB": {}}}),
    "rest of networks": ("OneVsRestClassifier", {"estimator": {"MLPClassifier": {"hidden_layer_sizes": [4]}}}),
    "outputs of huber": ("MultiOutputClassifier", {"estimator": {"SGDClassifier": {"loss": "modified_huber"}}}),
    "outputs of hinge": ("MultiOutputClassifier", {"estimator": {"SGDClassifier": {}}}),
    "outputs of gaussians": ("MultiOutputClassifier", {"estimator": {"GaussianNB": {}}}),
    "outputs of numbers": ("MultiOutputRegressor", {"estimator": {"SGDRegressor": {}}}),
    "steps to a regressor": (
        "SGDRegressor",
        {
            "steps": [
                {"StandardScaler": {"with_mean": False}},
                {"MinMaxScaler": {"feature_range": [-2, 3], "clip": True}},
            ]
        },
    ),
    "steps to a classifier": (
        "SGDClassifier",
        {"steps": [{"MaxAbsScaler": {}}, {"StandardScaler": {"with_std": False}}], "loss": "log_loss"},
    ),
    "outputs of networks": ("MultiOutputRegressor", {"estimator": {"MLPRegressor": {"hidden_layer_sizes": [4]}}}),
}
# Estimators that take counts only.
COUNTS_ONLY = frozenset({"BernoulliNB", "ComplementNB", "MultinomialNB"})
FEATURES: Mapping[str, dict[str, Any] | None] = {
    "unnamed": None,
    "numbers": {"a": "number", "b": "number", "c": "number"},
    "mixed": {"make": "category", "a": "number", "size": "category", "b": "number"},
    "categories": {"make": "category", "size": {"type": "category", "missing": "indicator"}},
    "missing": {
        "a": {"type": "number", "missing": "mean"},
        "make": {"type": "category", "missing": "zero"},
        "b": {"type": "number", "missing": "indicator"},
        "on": {"type": "boolean", "missing": "zero"},
    },
    "times": {
        "at": {"type": "timestamp", "expand": ["hour", "weekday", "month"], "missing": "indicator"},
        "on": "boolean",
        "then": "timestamp",
    },
}
UNNAMED_WIDTH = 4
# The labels that the recipe names, and those of the rows, in the order of their first occurrence.
LABELS: Mapping[str, tuple[list[Any] | None, list[Any]]] = {
    "named": (["no", "yes"], ["yes", "no"]),
    "single": (None, ["only"]),
    "three": (None, ["b", "a", "é"]),
    "late": (None, [7, -3, 12, 0]),
    "booleans": (None, [True, False]),
    "mixed": (None, [True, 1, "1", "true"]),
}
MAKES = ["nike", "puma", "é", "", 3, "3", "asics"]


def scorer_of(bundle: Bundle, generation: int, version: int) -> Scorer | None:
    """Return the scorer that a gateway decodes; None if the model has none."""
    data = encoded_scorer(bundle, generation, version, 1 << 30)
    return encoding.decode(data, bundle.recipe) if data else None


def kinds(features: str) -> list[tuple[str, bool]]:
    """Return kind and nullability of each column."""
    columns = FEATURES[features]
    if columns is None:
        return [("number", False)] * UNNAMED_WIDTH
    return [(each, False) if isinstance(each, str) else (each["type"], "missing" in each) for each in columns.values()]


def document(case: str, features: str, scaler: str | None, encoding: str, labels: str) -> dict[str, Any]:
    """Return a recipe as it is posted."""
    name, params = CASES[case]
    params = dict(params)
    steps = params.pop("steps", None)
    posted = {
        **({"steps": [*steps, {name: params}]} if steps else {"estimator": name, "params": params}),
        "features": FEATURES[features],
        "scaler": scaler if any(kind != "category" for kind, _ in kinds(features)) else None,
        "encoding": encoding,
        "max_categories": 3,
        "n_features": 8,
    }
    classes: Any = LABELS[labels][0] if labels else None
    return posted | {"classes": [classes, classes] if classes and name == "MultiOutputClassifier" else classes}


def value(kind: str, random: np.random.Generator, counts: bool) -> Any:
    """Return a value of a column."""
    if kind == "category":
        return MAKES[int(random.integers(5))]
    if kind == "boolean":
        return bool(random.integers(2))
    if kind == "timestamp":
        return float(random.integers(0, 10**9))
    return int(random.integers(0, 5)) if counts else float(random.normal(1, 3))


@cache
def learned(case: str, features: str, scaler: str | None, encoding: str, labels: str) -> Bundle:
    """Return a bundle that has learned rows; labels come with later calls. Shared: predicting changes nothing."""
    recipe, random = parse(document(case, features, scaler, encoding, labels)), np.random.default_rng(7)
    bundle, counts = Bundle.new(recipe), CASES[case][0] in COUNTS_ONLY
    for call in range(4):
        n = 1 if call == 1 else 9
        X = [
            [
                None if nullable and random.integers(4) == 0 else value(kind, random, counts)
                for kind, nullable in kinds(features)
            ]
            for _ in range(n)
        ]
        y: list[Any] | None = None
        if recipe.entry.target == "numbers":
            y = random.normal(0, 5, (n, 2) if recipe.entry.multi_output else n).tolist()
        elif recipe.entry.target == "labels":
            known = LABELS[labels][1][: call + 1]
            drawn = [[known[int(random.integers(len(known)))] for _ in range(n)] for _ in range(2)]
            y = [list(pair) for pair in zip(*drawn, strict=True)] if recipe.entry.multi_output else drawn[0]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            bundle.partial_fit(shape(recipe, X, y, learning=True))
    return bundle


def worker_answer(bundle: Bundle, rows: Rows, *, proba: bool) -> bytes | None:
    """Return the JSON text that a worker sends for `rows`; None for an error."""
    with warnings.catch_warnings():
        # Large numbers overflow.
        warnings.simplefilter("ignore", RuntimeWarning)
        try:
            predictions = bundle.predict(rows)
            result = {"predictions": predictions, **bundle.confidences(rows)} if proba else predictions
        except (KeepfitError, ValueError, TypeError, ArithmeticError, IndexError):
            return None
    (reply,) = messages.decode_replies(b"\x91" + messages.encode_reply(WorkerReply(1, result=result), as_json=True))
    assert reply.error is None
    found: bytes = reply.result
    return found
