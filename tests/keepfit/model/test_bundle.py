"""The life of a bundle: learn, predict, score, seal, unseal and learn on."""

import pickle
import subprocess
import sys
import tracemalloc
import warnings
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import Perceptron, SGDClassifier, SGDRegressor
from sklearn.naive_bayes import GaussianNB
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.preprocessing import StandardScaler

from keepfit.errors import EnvelopeError, InvalidError, RuntimeMismatchError
from keepfit.model.bundle import Bundle
from keepfit.model.columns import Columns
from keepfit.model.serialization import seal, try_predict, unseal
from keepfit.recipe.catalogue import CATALOGUE
from keepfit.recipe.recipe import Recipe, parse
from keepfit.rows.rows import Rows
from keepfit.rows.shaping import shape
from keepfit.security import envelope
from keepfit.security.envelope import Header, Keyring
from tests import catalogue

ROOT = Path(__file__).parents[3]
RING = Keyring.from_text("k1:" + "5e" * 32)
HASH = "ab" * 32
HEADER = Header(envelope.BUNDLE, HASH, 1, 2, 3, 4, "", envelope.runtime())

# What an estimator needs so that a few rows are enough, and which of them take counts only.
PARAMS: dict[str, dict[str, Any]] = {
    "MiniBatchKMeans": {"n_clusters": 3},
    "MLPClassifier": {"hidden_layer_sizes": [6]},
    "MLPRegressor": {"hidden_layer_sizes": [6]},
}
COUNTS_ONLY = {"BernoulliNB", "CategoricalNB", "ComplementNB", "MultinomialNB"}
LABELS = ["no", "perhaps", "yes"]

# Behind every encoding, a few that differ in what they keep; all are in test_every_estimator.py.
each_form = pytest.mark.parametrize(
    ("name", "form"),
    [
        (name, form)
        for name in ("SGDRegressor", "GaussianNB", "MLPClassifier", "MiniBatchKMeans", "MultinomialNB")
        for form in ("plain", "ordinal", "onehot", "hash")
        # Hashing gives negative numbers.
        if form != "hash" or name not in COUNTS_ONLY
    ],
)


@dataclass(frozen=True, slots=True)
class Sample:
    """A recipe and requests that fit it."""

    recipe: Recipe
    requests: Sequence[Rows]
    unseen: Rows

    def learned(self, count: int) -> Bundle:
        """Return a bundle that has learned the first `count` requests."""
        bundle = Bundle.new(self.recipe)
        for rows in self.requests[:count]:
            bundle.partial_fit(rows)
        return bundle


def sample(name: str, form: str = "plain", requests: int = 4) -> Sample:
    """Return requests of twelve rows each for any estimator; every one has a new label."""
    entry, counts = CATALOGUE[name], name in COUNTS_ONLY
    document: dict[str, Any] = {"estimator": name, "params": PARAMS.get(name, {})}
    if entry.kind == "classifier":
        document["classes"] = LABELS
    if form != "plain":
        document |= {
            "features": {"a": "number", "make": "category", "b": "number"},
            "scaler": None if counts else "StandardScaler",
            "encoding": form,
            "max_categories": 8,
            "n_features": 8,
        }
    recipe = parse(document)
    random = np.random.default_rng(11)

    def rows(request: int, *, learning: bool) -> Rows:
        values = random.integers(0, 5, (12, 3)) if counts else random.normal(0, 3, (12, 3))
        X = [
            list(row) if form == "plain" else [row[0], f"make{(request + i) % (request + 3)}", row[2]]
            for i, row in enumerate(values.tolist())
        ]
        y: list[Any] | None = None
        if entry.kind == "regressor":
            y = (values[:, 0] - 2.0 * values[:, 2]).tolist()
        elif entry.kind == "classifier":
            y = [LABELS[int(i)] for i in np.arange(12) % 3]
        return shape(recipe, X, y if learning else None, learning=learning)

    return Sample(recipe, [rows(request, learning=True) for request in range(requests)], rows(1, learning=False))


def state(bundle: Bundle) -> list[Any]:
    """Return all that a bundle has learned, bit for bit."""
    return catalogue.state([bundle.columns, bundle.estimator, bundle.prequential, bundle.rows_seen])


@each_form
def test_predicting_changes_nothing(name: str, form: str) -> None:
    """predict, predict_proba and score leave every byte of the pickled bundle unchanged."""
    example = sample(name, form)
    bundle = example.learned(3)
    before = seal(bundle, RING, HEADER)
    first = bundle.predict(example.unseen)
    assert len(first) == example.unseen.n
    assert bundle.predict(example.unseen) == first
    if hasattr(bundle.estimator, "predict_proba"):
        probabilities = bundle.predict_proba(example.unseen)
        assert np.shape(probabilities) == (example.unseen.n, len(bundle.classes))
    if bundle.recipe.entry.takes_y:
        bundle.score(example.requests[0])
    bundle.metrics()
    assert seal(bundle, RING, HEADER) == before


@each_form
def test_a_sealed_and_unsealed_bundle_learns_on_unchanged(name: str, form: str) -> None:
    """fit, seal, unseal, fit after every request gives the bundle of one uninterrupted run."""
    example = sample(name, form)
    whole, cut = Bundle.new(example.recipe), Bundle.new(example.recipe)
    for rows in example.requests:
        whole.partial_fit(rows)
        header, cut = unseal(seal(cut, RING, HEADER), RING, example.recipe, HASH)
        assert header == HEADER
        cut.partial_fit(rows)
    assert cut.predict(example.unseen) == whole.predict(example.unseen)
    assert (cut.rows_seen, cut.metrics()) == (whole.rows_seen, whole.metrics())
    assert cut.rows_seen == 12 * len(example.requests)
    assert state(cut) == state(whole)


# A plain scikit-learn loop, as the user's own program would have it.

PLAIN: dict[str, tuple[dict[str, Any], Callable[[], Any]]] = {
    "SGDRegressor": ({}, lambda: SGDRegressor(shuffle=False, random_state=0)),
    "PassiveAggressiveRegressor": (
        {"C": 0.5},
        lambda: SGDRegressor(
            loss="epsilon_insensitive",
            penalty=None,
            learning_rate="pa1",
            eta0=0.5,
            shuffle=False,
            random_state=0,
        ),
    ),
    "MLPRegressor": (
        {"hidden_layer_sizes": [5]},
        lambda: MLPRegressor(hidden_layer_sizes=[5], shuffle=False, random_state=0),
    ),
    "SGDClassifier": ({"loss": "log_loss"}, lambda: SGDClassifier(loss="log_loss", shuffle=False, random_state=0)),
    "Perceptron": ({}, lambda: Perceptron(shuffle=False, random_state=0)),
    "MLPClassifier": (
        {"hidden_layer_sizes": [5]},
        lambda: MLPClassifier(hidden_layer_sizes=[5], shuffle=False, random_state=0),
    ),
    "GaussianNB": ({"var_smoothing": 0.01}, lambda: GaussianNB(var_smoothing=0.01)),
}


def arrays(fitted: Any) -> dict[str, list[bytes]]:
    """Return every learned array and number of an object as bytes."""
    found = {}
    for key, value in vars(fitted).items():
        if key.endswith("_") and not key.startswith("_"):
            parts = value if isinstance(value, list) else [value]
            if all(isinstance(part, int | float | np.ndarray | np.generic) for part in parts):
                found[key] = [np.asarray(part).tobytes() for part in parts]
    return found


class PlainLoop:
    """StandardScaler, label codes and estimator in ten lines, without keepfit."""

    def __init__(self, estimator: Any, encoding: str, width: int, classes: list[str] | None) -> None:
        self.scaler, self.codes, self.estimator = StandardScaler(), dict[str, int](), estimator
        self.encoding, self.width, self.classes = encoding, width, classes
        self.error, self.evaluated = 0.0, 0
        self.learned: list[Any] = []

    @property
    def asked(self) -> Any:
        """The estimator that answers: naive Bayes with a variance of zero gets a share of that of all rows."""
        if not isinstance(self.estimator, GaussianNB) or self.estimator.var_.all():
            return self.estimator
        smoothed = copy(self.estimator)
        variance = np.var(np.concatenate(self.learned), axis=0).max()
        smoothed.var_ = smoothed.var_ + smoothed.var_smoothing * (variance or 1.0)
        return smoothed

    def matrix(self, year: float, make: str) -> Any:
        """Return one row as the estimator gets it."""
        is_full = len(self.codes) == self.width - 1
        code = self.codes.get(make, self.width - 1 if is_full else -1)
        onehot = [float(position == code) for position in range(self.width)]
        scaled = self.scaler.transform([[year]])[0].tolist()
        return np.array([scaled + (onehot if self.encoding == "onehot" else [self.codes.get(make, -1) + 1.0])])

    def step(self, year: float, make: str, y: Any) -> None:
        """Test, then train, on one row."""
        if self.codes:
            (predicted,) = self.asked.predict(self.matrix(year, make))
            self.error += abs(y - predicted) if self.classes is None else predicted == y
            self.evaluated += 1
        if self.encoding == "ordinal" or len(self.codes) < self.width - 1:
            self.codes.setdefault(make, len(self.codes))
        self.scaler.partial_fit([[year]])
        # The estimator of a bundle knows labels by their position among the sorted ones.
        classes = {} if self.classes is None else {"classes": range(len(self.classes))}
        self.learned.append(self.matrix(year, make))
        self.estimator.partial_fit(self.learned[-1], [y], **classes)


def both(name: str, encoding: str, data: list[tuple[float, str, Any]]) -> tuple[Bundle, PlainLoop]:
    """Let a bundle and a plain loop learn the same single rows."""
    params, estimator = PLAIN[name]
    classes = LABELS if CATALOGUE[name].kind == "classifier" else None
    recipe = parse(
        {
            "estimator": name,
            "params": params,
            "features": {"year": "number", "make": "category"},
            "scaler": "StandardScaler",
            "encoding": encoding,
            "max_categories": 4,
            "classes": classes,
        }
    )
    bundle, loop = Bundle.new(recipe), PlainLoop(estimator(), encoding, 4, classes)
    for year, make, y in data:
        bundle.partial_fit(shape(recipe, [[year, make]], [y], learning=True))
        loop.step(year, make, y if classes is None else classes.index(y))
    return bundle, loop


def assert_same(bundle: Bundle, loop: PlainLoop) -> None:
    """Check that every array, label code and metric of the bundle equals the loop's; of loss curves the last value."""
    learned = arrays(loop.estimator)
    if "loss_curve_" in learned:
        learned["loss_curve_"] = learned["loss_curve_"][-1:]
    assert {"coef_", "coefs_", "theta_"} & learned.keys()
    assert arrays(bundle.estimator) == learned
    assert arrays(bundle.columns.scaler) == arrays(loop.scaler)
    assert bundle.columns.labels == [loop.codes]
    key = "mean_absolute_error" if loop.classes is None else "accuracy"
    found = bundle.metrics()
    if loop.evaluated:
        assert (found[key], found["rows"]) == (float(loop.error / loop.evaluated), loop.evaluated)
    else:
        assert found == {}


@pytest.mark.parametrize("encoding", ["ordinal", "onehot"])
@pytest.mark.parametrize("name", PLAIN)
def test_exact_updates_equal_a_plain_loop(name: str, encoding: str) -> None:
    """Over single rows a bundle equals a plain scikit-learn test-then-train loop in every array and metric."""
    random = np.random.default_rng(5)
    makes = [f"make{int(i)}" for i in np.minimum(random.geometric(0.3, 120), 6)]
    targets = random.choice(LABELS, 120) if CATALOGUE[name].kind == "classifier" else random.normal(40, 3, 120)
    with warnings.catch_warnings():
        # GaussianNB divides by the variance of its first row, which is 0.
        warnings.simplefilter("ignore", RuntimeWarning)
        bundle, loop = both(
            name, encoding, list(zip(random.normal(2005, 9, 120).tolist(), makes, targets.tolist(), strict=True))
        )
    assert bundle.rows_seen == 120
    assert len(set(makes)) > 4
    assert_same(bundle, loop)
    years, known = random.normal(2005, 9, 20), random.choice(sorted(set(makes)), 20)
    rows = shape(
        bundle.recipe, [[year, str(make)] for year, make in zip(years.tolist(), known, strict=True)], learning=False
    )
    wanted = [loop.asked.predict(loop.matrix(year, make))[0] for year, make in zip(years, known, strict=True)]
    if loop.classes is None:
        assert bundle.predict(rows) == pytest.approx(wanted, rel=1e-9)
    else:
        assert bundle.predict(rows) == [loop.classes[code] for code in wanted]


@settings(deadline=None, max_examples=30)
@given(
    st.sampled_from(["SGDRegressor", "PassiveAggressiveRegressor"]),
    st.sampled_from(["ordinal", "onehot"]),
    st.lists(
        st.tuples(st.floats(-1e3, 1e3), st.sampled_from(["nike", "puma", "asics", "", "é", "x"]), st.floats(-1e3, 1e3)),
        min_size=1,
        max_size=12,
    ),
)
def test_exact_updates_equal_a_plain_loop_for_any_rows(
    name: str, encoding: str, data: list[tuple[float, str, float]]
) -> None:
    """For any rows a bundle equals the plain loop, or both fail at the same row."""
    try:
        bundle, loop = both(name, encoding, data)
    except ValueError as error:
        assert "overflow" in str(error)  # noqa: PT017 - scikit-learn's own refusal, which the loop would meet as well
        return
    assert_same(bundle, loop)


def test_one_request_is_one_call() -> None:
    """The rows of a request are predicted together, then learned in one partial_fit call."""
    recipe = parse({"estimator": "SGDRegressor", "scaler": "StandardScaler"})
    bundle, estimator, scaler = Bundle.new(recipe), SGDRegressor(shuffle=False, random_state=0), StandardScaler()
    random, total, evaluated = np.random.default_rng(3), 0.0, 0
    for size in (1, 5, 2, 7):
        X, y = random.normal(size=(size, 3)), random.normal(size=size)
        weights = random.uniform(0.1, 2, size)
        bundle.partial_fit(shape(recipe, X.tolist(), y.tolist(), weights.tolist(), learning=True))
        if hasattr(estimator, "coef_"):
            total += np.abs(y - estimator.predict(scaler.transform(X))).sum()
            evaluated += size
        scaler.partial_fit(X)
        estimator.partial_fit(scaler.transform(X), y, sample_weight=weights)
    assert arrays(bundle.estimator) == arrays(estimator)
    found = bundle.metrics()
    assert (found["mean_absolute_error"], found["rows"]) == (pytest.approx(total / evaluated), evaluated)


def test_sample_weight_has_effect() -> None:
    """A weight of 2 gives another result than a weight of 1."""
    recipe = parse({"estimator": "SGDRegressor"})
    bundles_by_weight = [Bundle.new(recipe) for _ in range(2)]
    for weight, bundle in enumerate(bundles_by_weight, start=1):
        bundle.partial_fit(shape(recipe, [[1.0]], [1.0], [weight], learning=True))
    assert bundles_by_weight[0].estimator.coef_ != bundles_by_weight[1].estimator.coef_


@pytest.mark.parametrize("encoding", ["ordinal", "onehot", "hash"])
def test_unseen_labels_are_unknown_until_learned(encoding: str) -> None:
    """All unseen labels have the same prediction; a learned one has its own."""
    recipe = parse({"estimator": "SGDRegressor", "features": {"make": "category"}, "encoding": encoding})

    def predict(make: str) -> float:
        (value,) = bundle.predict(shape(recipe, [[make]], learning=False))
        return float(value)

    bundle = Bundle.new(recipe)
    for make, size in (("nike", 4.0), ("adidas", 5.0)) * 5:
        bundle.partial_fit(shape(recipe, [[make]], [size], learning=True))
    unseen, other = predict("puma"), predict("reebok")
    assert unseen == other
    assert unseen not in (predict("nike"), predict("adidas"))
    bundle.partial_fit(shape(recipe, [["puma"]], [100.0], learning=True))
    assert predict("puma") not in (unseen, predict("reebok"))


def test_a_category_that_cannot_be_predicted_is_learned() -> None:
    """CategoricalNB cannot predict numbers that it has not learned; such rows are learned and not evaluated."""
    for features, first, later in (
        ({"make": "category"}, [["nike"], ["puma"]], [["asics"]]),
        ({"size": "number"}, [[0], [1]], [[5]]),
    ):
        recipe = parse({"estimator": "CategoricalNB", "features": features, "classes": ["no", "yes"]})
        bundle = Bundle.new(recipe)
        bundle.partial_fit(shape(recipe, first, ["no", "yes"], learning=True))
        bundle.partial_fit(shape(recipe, later, ["yes"], learning=True))
        # A label that was not learned has the code 0, which is that of infrequent labels; a number has none.
        evaluated = 1 if "make" in features else 0
        assert (bundle.rows_seen, bundle.metrics().get("rows", 0)) == (3, evaluated)
        bundle.partial_fit(shape(recipe, later, ["yes"], learning=True))
        assert bundle.metrics()["rows"] == evaluated + 1
        assert bundle.predict(shape(recipe, later, learning=False)) == ["yes"]
        try_predict(bundle)


def test_evaluation_hides_no_error() -> None:
    """Rows that can be neither predicted nor learned raise the estimator's own error."""
    recipe = parse({"estimator": "SGDRegressor"})
    bundle = Bundle.new(recipe)
    bundle.partial_fit(shape(recipe, [[1, 2]], [1], learning=True))
    with pytest.raises(ValueError, match="features"):
        bundle.partial_fit(shape(recipe, [[1, 2, 3]], [1], learning=True))


@pytest.mark.parametrize("classes", [["b", "a"], [3, -1, 2], [True, False]], ids=str)
def test_labels_keep_their_type(classes: list[Any]) -> None:
    """Strings, integers and booleans are predicted as such; classes have the order of the probabilities."""
    recipe = parse({"estimator": "GaussianNB", "classes": classes})
    bundle = Bundle.new(recipe)
    X = [[float(i), float(i % 2)] for i in range(12)]
    y = [classes[i // (12 // len(classes))] for i in range(12)]
    bundle.partial_fit(shape(recipe, X, y, learning=True))
    predictions = bundle.predict(shape(recipe, X, learning=False))
    assert [type(label) for label in predictions] == [type(classes[0])] * 12
    assert predictions == y
    assert bundle.classes == sorted(classes)
    assert [type(label) for label in bundle.classes] == [type(classes[0])] * len(classes)
    best = np.argmax(bundle.predict_proba(shape(recipe, X, learning=False)), axis=1)
    assert [bundle.classes[i] for i in best] == predictions


def test_a_class_without_rows_is_known() -> None:
    """The first call names all classes to the estimator, so that a label may appear later."""
    recipe = parse({"estimator": "SGDClassifier", "params": {"loss": "log_loss"}, "classes": LABELS})
    bundle = Bundle.new(recipe)
    bundle.partial_fit(shape(recipe, [[0.0]], ["no"], learning=True))
    assert bundle.classes == LABELS
    bundle.partial_fit(shape(recipe, [[1.0]], ["yes"], learning=True))
    assert np.shape(bundle.predict_proba(shape(recipe, [[1.0]], learning=False))) == (1, 3)


def test_regression_score_equals_scikit_learns() -> None:
    """score() of a regressor has max_error, mean_absolute_error and r2 as scikit-learn computes them."""
    example = sample("SGDRegressor", "onehot")
    bundle, rows = example.learned(3), example.requests[3]
    y, predicted = rows.target(), bundle.predict(rows)
    assert bundle.score(rows) == {
        "max_error": sk.max_error(y, predicted),
        "mean_absolute_error": sk.mean_absolute_error(y, predicted),
        "r2": sk.r2_score(y, predicted),
    }


@pytest.mark.parametrize("name", ["GaussianNB", "Perceptron"])
def test_classification_score_equals_scikit_learns(name: str) -> None:
    """score() of a classifier has accuracy, macro f1, and log_loss if there are probabilities."""
    example = sample(name)
    bundle, rows = example.learned(3), example.requests[3]
    y, predicted = rows.target(), bundle.predict(rows)
    score = bundle.score(rows)
    assert score["accuracy"] == sk.accuracy_score(y, predicted)
    assert score["f1"] == sk.f1_score(y, predicted, average="macro")
    if name == "GaussianNB":
        assert score["log_loss"] == pytest.approx(sk.log_loss(y, bundle.predict_proba(rows), labels=LABELS))
    else:
        assert score["log_loss"] is None


def test_another_width_is_rejected() -> None:
    """Rows of another width than the learned ones raise InvalidError with both widths."""
    recipe = parse({"estimator": "SGDRegressor"})
    bundle = Bundle.new(recipe)
    bundle.partial_fit(shape(recipe, [[1, 2]], [1], learning=True))
    with pytest.raises(InvalidError, match="have 3 values where the model has learned 2"):
        bundle.predict(shape(recipe, [[1, 2, 3]], learning=False))


@pytest.mark.parametrize("name", ["SGDRegressor", "Perceptron", "SGDClassifier", "MiniBatchKMeans"])
def test_missing_probabilities_are_reported(name: str) -> None:
    """An estimator that has no predict_proba with its params raises InvalidError (422)."""
    example = sample(name)
    with pytest.raises(InvalidError, match=f"{name} with these params has no probabilities: leave out proba"):
        example.learned(1).predict_proba(example.unseen)


@pytest.mark.parametrize("name", ["MiniBatchKMeans", "Birch", "SGDOneClassSVM"])
def test_without_a_target_there_is_no_score(name: str) -> None:
    """Estimators that take no y have no metrics, and score raises InvalidError."""
    example = sample(name)
    bundle = example.learned(2)
    assert bundle.metrics() == {}
    with pytest.raises(InvalidError, match="takes no y: there is nothing to score against"):
        bundle.score(example.requests[0])


class Exploding:
    """An estimator whose learned attributes become infinite or NaN."""

    def __init__(self, **learned: Any) -> None:
        self.learned = learned

    def partial_fit(self, X: Any, y: Any) -> None:
        """Set the attributes."""
        vars(self).update(self.learned)


@pytest.mark.parametrize("name", ["coef_", "coefs_", "intercepts_", "cluster_centers_", "_average_coef", "_counts"])
@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_non_finite_attributes_are_an_error(name: str, value: float) -> None:
    """A bundle whose attributes are no longer finite raises ArithmeticError and is not committed."""
    recipe = parse({"estimator": "SGDRegressor"})
    array = np.array([1.0, value])
    learned = {name: [np.ones(2), array] if name in ("coefs_", "intercepts_") else array}
    bundle = Bundle(recipe, Columns.new(recipe), None, Exploding(**learned), [])
    with pytest.raises(ArithmeticError, match=f"{name} of SGDRegressor would no longer be finite"):
        bundle.partial_fit(shape(recipe, [[1.0]], [1.0], learning=True))


def test_overflow_raises() -> None:
    """Numbers at the bound that make an estimator overflow raise an error."""
    recipe = parse({"estimator": "SGDRegressor", "params": {"eta0": 1e300}})
    rows = shape(recipe, [[1e38], [-1e38]], [1e38, 1e38], learning=True)
    with pytest.raises((ValueError, ArithmeticError), match=r"overflow|finite"):
        Bundle.new(recipe).partial_fit(rows)


def test_unseal_rejects_another_models_bundle() -> None:
    """A bundle that was signed for one model is rejected for another."""
    example = sample("SGDRegressor")
    data = seal(example.learned(1), RING, HEADER)
    with pytest.raises(EnvelopeError, match=f"belongs to the model {HASH[:12]}, not to cdcdcdcdcdcd"):
        unseal(data, RING, example.recipe, "cd" * 32)


class Trap:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_nothing_is_unpickled_before_every_check(tmp_path: Path) -> None:
    """A pickle runs only if signature, purpose, model and runtime are right; each wrong one alone prevents it."""
    recipe, sprung = parse({"estimator": "SGDRegressor"}), tmp_path / "sprung"
    payload = pickle.dumps(Trap(sprung))
    other_key = Keyring.from_text("k1:" + "aa" * 32)
    tampered = bytearray(RING.seal(HEADER, payload))
    tampered[-1] ^= 1
    old = msgspec.structs.replace(HEADER, runtime={**envelope.runtime(), "numpy": "1.26.4"})
    refused = [
        (payload, EnvelopeError),
        (bytes(tampered), EnvelopeError),
        (other_key.seal(HEADER, payload), EnvelopeError),
        (RING.seal(msgspec.structs.replace(HEADER, purpose="upload"), payload), EnvelopeError),
        (RING.seal(msgspec.structs.replace(HEADER, hash="cd" * 32), payload), EnvelopeError),
        (RING.seal(old, payload), RuntimeMismatchError),
    ]
    for data, error in refused:
        with pytest.raises(error):
            unseal(data, RING, recipe, HASH)
        assert not sprung.exists()
    with pytest.raises((TypeError, ValueError)):
        unseal(RING.seal(HEADER, payload), RING, recipe, HASH)
    assert sprung.exists(), "the trap itself does not work, so the checks above showed nothing"


class Broken:
    """An estimator that unpickles and cannot predict."""

    n_features_in_ = 2

    def __init__(self, error: Exception) -> None:
        self.error = error

    def predict(self, X: Any) -> Any:
        """Fail."""
        raise self.error


@pytest.mark.parametrize(
    "error",
    [ValueError("x"), TypeError("x"), AttributeError("x"), IndexError("x"), KeyError("x"), NotFittedError("x")],
    ids=repr,
)
def test_a_bundle_that_cannot_predict_is_rejected(error: Exception) -> None:
    """The last check of a restore turns any error of predict into EnvelopeError."""
    recipe = parse({"estimator": "SGDRegressor"})
    with pytest.raises(EnvelopeError, match="loads but cannot predict"):
        try_predict(Bundle(recipe, Columns.new(recipe), None, Broken(error), [], rows_seen=1))


def leaves(estimator: Any) -> list[Any]:
    """Return the leaves of a Birch tree in their linked order."""
    found, leaf = [], estimator.dummy_leaf_
    while leaf is not None:
        found.append(leaf)
        leaf = leaf.next_leaf_
    return found


def test_a_large_birch_tree_can_be_stored() -> None:
    """A linked list of a thousand leaves, which pickle alone cannot store, is sealed, unsealed and learned further."""
    recipe = parse(
        {"estimator": "Birch", "params": {"threshold": 1e-4, "branching_factor": 3, "n_clusters": None}},
    )
    X = np.random.default_rng(4).normal(size=(1600, 2)).tolist()
    bundle = Bundle.new(recipe)
    bundle.partial_fit(shape(recipe, X[:1500], learning=True))
    before = leaves(bundle.estimator)
    assert len(before) > 500
    with pytest.raises(RecursionError):
        pickle.dumps(bundle.estimator)
    _, again = unseal(seal(bundle, RING, HEADER), RING, recipe, HASH)
    assert [id(leaf) for leaf in leaves(bundle.estimator)] == [id(leaf) for leaf in before]
    for learner in (bundle, again):
        chain = leaves(learner.estimator)
        assert len(chain) == len(before)
        assert all(right.prev_leaf_ is left for left, right in pairwise(chain))
        learner.partial_fit(shape(recipe, X[1500:], learning=True))
    assert again.estimator.subcluster_centers_.tobytes() == bundle.estimator.subcluster_centers_.tobytes()
    asked = shape(recipe, X[:20], learning=False)
    assert again.predict(asked) == bundle.predict(asked)


def sizes_of_a_small_bundle() -> tuple[int, float]:
    """Return the bytes that a scaler and a linear model of four numbers take sealed, and in memory."""
    recipe = parse({"estimator": "SGDRegressor", "scaler": "StandardScaler"})
    bundle = Bundle.new(recipe)
    bundle.partial_fit(shape(recipe, [[1, 2, 3, 4], [5, 6, 7, 8]], [1, 2], learning=True))
    data = seal(bundle, RING, HEADER)
    unseal(data, RING, recipe, HASH)
    tracemalloc.start()
    held = [unseal(data, RING, recipe, HASH)[1] for _ in range(200)]
    return len(data), tracemalloc.get_traced_memory()[0] / len(held)


def test_small_bundles_take_little_memory() -> None:
    """They take 2 kB in Redis and little more than 3 kB of a worker's memory, as long as their curve has no point.

    Measured in a process of its own: attributes that other tests set on some instances change the size of all of their
    class, whose instances share the keys of their dictionaries otherwise.
    """
    script = f"from {__name__} import sizes_of_a_small_bundle as sizes; print(*sizes())"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    sealed, in_memory = map(float, done.stdout.split())
    assert 0 < sealed < 2048
    assert 0 < in_memory < 3350


def test_a_failed_seal_leaves_the_bundle_usable(monkeypatch: pytest.MonkeyPatch) -> None:
    """If pickling fails, the links of the tree are restored and the bundle can be used."""
    example = sample("Birch")
    bundle = example.learned(2)
    chain = len(leaves(bundle.estimator))

    def fail(*_: Any, **__: Any) -> bytes:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(pickle, "dumps", fail)
        with pytest.raises(MemoryError):
            seal(bundle, RING, HEADER)
    assert len(leaves(bundle.estimator)) == chain
    bundle.partial_fit(example.requests[2])
