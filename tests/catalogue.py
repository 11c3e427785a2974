"""All estimators of the catalogue for tests: a recipe, rows that fit it, and the same object of scikit-learn.

Uses nothing of keepfit for expectations: :class:`ByHand` is a loop over scikit-learn's own objects.
"""

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.base import clone
from sklearn.cluster import Birch, MiniBatchKMeans
from sklearn.decomposition import (
    IncrementalPCA,
    LatentDirichletAllocation,
    MiniBatchDictionaryLearning,
    MiniBatchNMF,
)
from sklearn.feature_extraction.text import HashingVectorizer
from sklearn.feature_selection import SelectFromModel
from sklearn.linear_model import Perceptron, SGDClassifier, SGDOneClassSVM, SGDRegressor
from sklearn.multiclass import OneVsOneClassifier, OneVsRestClassifier
from sklearn.multioutput import MultiOutputClassifier, MultiOutputRegressor
from sklearn.naive_bayes import BernoulliNB, CategoricalNB, ComplementNB, GaussianNB, MultinomialNB
from sklearn.neural_network import BernoulliRBM, MLPClassifier, MLPRegressor
from sklearn.preprocessing import MaxAbsScaler, MinMaxScaler, StandardScaler

from keepfit.model.estimators import build
from keepfit.recipe.catalogue import CATALOGUE
from keepfit.recipe.recipe import Recipe, parse
from keepfit.rows import shaping
from keepfit.rows.rows import Rows

LABELS = ["no", "perhaps", "yes"]
SECOND = ["off", "on"]
WIDTH = 4

ORDER: Mapping[str, Any] = {"shuffle": False, "random_state": 0}
SEED: Mapping[str, Any] = {"random_state": 0}
# Takes counts only.
COUNTS = frozenset({
    "BernoulliNB",
    "CategoricalNB",
    "ComplementNB",
    "LatentDirichletAllocation",
    "MiniBatchNMF",
    "MultinomialNB",
})  # fmt: skip

# Parameters of a recipe, and the object that they are to make.
MADE: Mapping[str, tuple[dict[str, Any], Callable[[], Any]]] = {
    "BernoulliNB": ({}, BernoulliNB),
    "BernoulliRBM": ({"n_components": 3}, lambda: BernoulliRBM(n_components=3, **SEED)),
    "Birch": ({}, Birch),
    "CategoricalNB": ({"min_categories": 5}, lambda: CategoricalNB(min_categories=5)),
    "ComplementNB": ({}, ComplementNB),
    "GaussianNB": ({}, GaussianNB),
    "HashingVectorizer": (
        {"n_features": 8, "ngram_range": [1, 2]},
        lambda: HashingVectorizer(n_features=8, ngram_range=(1, 2)),
    ),
    "IncrementalPCA": ({"n_components": 2}, lambda: IncrementalPCA(n_components=2)),
    "LatentDirichletAllocation": (
        {"n_components": 3},
        lambda: LatentDirichletAllocation(n_components=3, **SEED),
    ),
    "MLPClassifier": (
        {"hidden_layer_sizes": [6]},
        lambda: MLPClassifier(hidden_layer_sizes=[6], **ORDER),
    ),
    "MLPRegressor": ({"hidden_layer_sizes": [6]}, lambda: MLPRegressor(hidden_layer_sizes=[6], **ORDER)),
    "MaxAbsScaler": ({}, MaxAbsScaler),
    "MinMaxScaler": ({"feature_range": [-1, 1]}, lambda: MinMaxScaler(feature_range=(-1, 1))),
    "MiniBatchDictionaryLearning": (
        {"n_components": 3},
        lambda: MiniBatchDictionaryLearning(n_components=3, **ORDER),
    ),
    "MiniBatchKMeans": ({"n_clusters": 3}, lambda: MiniBatchKMeans(n_clusters=3, **SEED)),
    "MiniBatchNMF": ({"n_components": 2}, lambda: MiniBatchNMF(n_components=2, **SEED)),
    "MultiOutputClassifier": (
        {"estimator": {"SGDClassifier": {"loss": "log_loss"}}},
        lambda: MultiOutputClassifier(SGDClassifier(loss="log_loss", **ORDER)),
    ),
    "MultiOutputRegressor": (
        {"estimator": {"SGDRegressor": {"alpha": 0.001}}},
        lambda: MultiOutputRegressor(SGDRegressor(alpha=0.001, **ORDER)),
    ),
    "MultinomialNB": ({}, MultinomialNB),
    "OneVsOneClassifier": ({"estimator": {"Perceptron": {}}}, lambda: OneVsOneClassifier(Perceptron(**ORDER))),
    "OneVsRestClassifier": ({"estimator": {"GaussianNB": {}}}, lambda: OneVsRestClassifier(GaussianNB())),
    "PassiveAggressiveClassifier": (
        {"C": 0.5},
        lambda: SGDClassifier(penalty=None, learning_rate="pa1", eta0=0.5, **ORDER),
    ),
    "PassiveAggressiveRegressor": (
        {"C": 0.5},
        lambda: SGDRegressor(loss="epsilon_insensitive", penalty=None, learning_rate="pa1", eta0=0.5, **ORDER),
    ),
    "Perceptron": ({"penalty": "l2"}, lambda: Perceptron(penalty="l2", **ORDER)),
    "SGDClassifier": ({"loss": "log_loss"}, lambda: SGDClassifier(loss="log_loss", **ORDER)),
    "SGDOneClassSVM": ({}, lambda: SGDOneClassSVM(**ORDER)),
    "SGDRegressor": ({"average": True}, lambda: SGDRegressor(average=True, **ORDER)),
    "SelectFromModel": (
        {"estimator": {"SGDRegressor": {}}, "threshold": "median"},
        lambda: SelectFromModel(SGDRegressor(**ORDER), threshold="median"),
    ),
    "StandardScaler": ({}, StandardScaler),
}
NAMES = sorted(MADE)


def document(name: str) -> dict[str, Any]:
    """Return the recipe of an estimator as it is posted."""
    posted: dict[str, Any] = {"estimator": name, "params": MADE[name][0]}
    if name == "HashingVectorizer":
        posted["features"] = {"note": "text"}
    if name == "MultiOutputClassifier":
        posted["classes"] = [LABELS, SECOND]
    elif name.endswith(("Classifier", "NB", "Perceptron")):
        posted["classes"] = LABELS
    return posted


def recipe(name: str) -> Recipe:
    """Return the recipe of an estimator."""
    return parse(document(name))


def made(name: str) -> Any:
    """Build the estimator `name`, with the parameters that it requires."""
    return build(name, {"estimator": MADE[name][0]["estimator"]} if CATALOGUE[name].wraps else {})


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows as a client sends them."""

    X: list[list[Any]]
    y: list[Any] | None

    def learned(self, recipe: Recipe) -> Rows:
        """Return the rows to learn."""
        return shaping.shape(recipe, self.X, self.y, learning=True)

    def asked(self, recipe: Recipe) -> Rows:
        """Return the rows to predict."""
        return shaping.shape(recipe, self.X, learning=False)


def batch(name: str, n: int, seed: int = 0) -> Batch:
    """Return `n` rows that fit an estimator; all labels are among the first three."""
    random = np.random.default_rng([seed, n])
    values = random.integers(0, 5, (n, WIDTH)) if name in COUNTS else random.normal(0, 2, (n, WIDTH))
    X: list[list[Any]] = values.tolist()
    if name == "HashingVectorizer":
        X = [[" ".join(f"word{int(value)}" for value in random.integers(0, 9, 5))] for _ in range(n)]
    sums = (values @ [1.0, -2.0, 0.5, 0.0]).tolist()
    labels = [LABELS[(seed + row) % 3] for row in range(n)]
    y: list[Any] | None = None
    if name == "MultiOutputClassifier":
        y = [[label, SECOND[row % 2]] for row, label in enumerate(labels)]
    elif name == "MultiOutputRegressor":
        y = [[value, 1.0 - value] for value in sums]
    elif "classes" in document(name):
        y = labels
    elif name.endswith("Regressor") or name == "SelectFromModel":
        y = sums
    return Batch(X, y)


class ByHand:
    """scikit-learn's own object in a loop; labels are positions in the sorted list of all labels."""

    def __init__(self, name: str) -> None:
        self.name, self.model = name, MADE[name][1]()
        named = document(name).get("classes")
        self.lists: list[list[str]] = [] if named is None else named if name == "MultiOutputClassifier" else [named]
        self._begun = False

    def learn(self, given: Batch) -> None:
        """Make one ``partial_fit`` call."""
        classes = [np.arange(len(labels)) for labels in self.lists]
        optional: dict[str, Any] = {}
        if classes and not self._begun:
            optional["classes"] = classes if len(classes) > 1 else classes[0]
        target = [] if given.y is None else [np.array(self._codes(given.y))]
        self.model.partial_fit(self._matrix(given), *target, **optional)
        self._begun = True

    def kept(self) -> Any:
        """Return the object with only the last value of a network's loss curve."""
        if not hasattr(self.model, "loss_curve_"):
            return self.model
        model = copy(self.model)
        model.loss_curve_ = model.loss_curve_[-1:]
        return model

    def answer(self, given: Batch) -> list[Any]:
        """Return values, labels or transformed rows."""
        X = self._matrix(given)
        # A vectorizer notes where in memory its stop words are.
        model = clone(self.model) if self.name == "HashingVectorizer" else self.model
        found = model.predict(X) if hasattr(model, "predict") else model.transform(X)
        listed: list[Any] = (found.toarray() if hasattr(found, "toarray") else found).tolist()
        if len(self.lists) > 1:
            return [[labels[code] for labels, code in zip(self.lists, row, strict=True)] for row in listed]
        return [self.lists[0][code] for code in listed] if self.lists else listed

    def _matrix(self, given: Batch) -> Any:
        return [row[0] for row in given.X] if self.name == "HashingVectorizer" else np.array(given.X, dtype=float)

    def _codes(self, y: Sequence[Any]) -> list[Any]:
        if len(self.lists) > 1:
            return [[labels.index(one) for labels, one in zip(self.lists, row, strict=True)] for row in y]
        return [self.lists[0].index(one) for one in y] if self.lists else list(y)


def state(thing: Any) -> list[Any]:
    """Return all that an object holds, bit for bit and in order, down to every array of every nested object."""
    found: list[Any] = []
    seen: dict[int, Any] = {}

    def walk(value: Any) -> None:
        if isinstance(value, np.ndarray) and value.dtype.kind != "O":
            found.append((value.dtype.str, value.shape, value.tobytes()))
        elif isinstance(value, np.generic):
            found.append((value.dtype.str, value.tobytes()))
        elif value is None or isinstance(value, bool | int | str | bytes | np.dtype | type):
            found.append(repr(value))
        elif isinstance(value, float):
            found.append(value.hex())
        elif id(value) in seen:
            found.append("again")
        elif callable(value) and hasattr(value, "__qualname__"):
            found.append(value.__qualname__)
        else:
            seen[id(value)] = value
            children = list(value) if isinstance(value, list | tuple | np.ndarray) else None
            if isinstance(value, dict):
                children = [part for pair in value.items() for part in pair]
            if children is None:
                children = value.__reduce_ex__(5)
            found.append((type(value).__name__, len(children)))
            # Held, because visited objects are identified by their id.
            seen[id(children)] = children
            for child in children:
                walk(child)

    walk(thing)
    return found
