"""Fast path of prediction equals scikit-learn bit for bit, for every estimator, scaler, encoding and batch size."""

import json
import warnings
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.feature_extraction import FeatureHasher
from sklearn.linear_model import SGDClassifier, SGDRegressor
from sklearn.naive_bayes import BernoulliNB
from sklearn.preprocessing import MaxAbsScaler, MinMaxScaler, StandardScaler

from keepfit.errors import InvalidError
from keepfit.model import fast_predict
from keepfit.model.bundle import Bundle
from keepfit.recipe.catalogue import CATALOGUE, SCALERS
from keepfit.recipe.recipe import parse
from keepfit.rows.rows import Rows
from keepfit.rows.shaping import shape
from keepfit.rows.values import NUMBER_MAX

# Estimators that predict; transformers and wrappers are left to scikit-learn.
EVERY = sorted(name for name, entry in CATALOGUE.items() if entry.kind != "transformer" and not entry.wraps)
# Left to scikit-learn: their computation is long, or checks the rows itself.
UNSUPPORTED = {"Birch", "CategoricalNB"}
COUNTS_ONLY = {"BernoulliNB", "CategoricalNB", "ComplementNB", "MultinomialNB"}
PARAMS: dict[str, dict[str, Any]] = {
    # Without global clustering, because some samples have fewer subclusters than n_clusters.
    "Birch": {"n_clusters": None},
    "MiniBatchKMeans": {"n_clusters": 3},
    "MLPClassifier": {"hidden_layer_sizes": [6]},
    "MLPRegressor": {"hidden_layer_sizes": [6]},
    "SGDClassifier": {"loss": "log_loss"},
}
CLASSES: dict[str, list[Any]] = {
    "two": ["no", "yes"],
    "three": ["yes", "no", "perhaps"],
    "integers": [7, -3, 12, 0],
    "booleans": [True, False],
}
FEATURES: dict[str, Any] = {
    "single": None,
    "plain": None,
    "mixed": {"make": "category", "a": "number", "b": "number", "size": "category", "c": "number"},
    "categories": {"make": "category", "size": "category"},
}
WIDTHS = {"single": 1, "plain": 4}
LABELS = ["nike", "puma", "é", "", 3, "3"]


def kinds(features: str) -> list[str]:
    """Return the kinds of the columns of a set of features, in order."""
    return list(FEATURES[features].values()) if FEATURES[features] else ["number"] * WIDTHS[features]


@cache
def learned(name: str, features: str, scaler: str | None, encoding: str, classes: str) -> Bundle:
    """Return a bundle that has learned some rows; shared, because predicting changes nothing."""
    kind = CATALOGUE[name].kind
    document = {
        "estimator": name,
        "params": PARAMS.get(name, {}),
        "features": FEATURES[features],
        "scaler": scaler if "number" in kinds(features) else None,
        "encoding": encoding,
        "max_categories": 3,
        "n_features": 8,
        "classes": CLASSES[classes] if kind == "classifier" else None,
    }
    recipe, random = parse(document), np.random.default_rng(7)
    bundle = Bundle.new(recipe)
    for _ in range(3):
        numbers = random.integers(0, 5, (12, 5)) if name in COUNTS_ONLY else random.normal(1, 3, (12, 5))
        X = [
            [
                value if k == "number" else LABELS[int(random.integers(4))]
                for k, value in zip(kinds(features), row, strict=False)
            ]
            for row in numbers.tolist()
        ]
        y: list[Any] | None = None
        if kind == "regressor":
            y = random.normal(0, 5, 12).tolist()
        elif kind == "classifier":
            y = [CLASSES[classes][i % len(CLASSES[classes])] for i in range(12)]
        bundle.partial_fit(shape(recipe, X, y, learning=True))
    return bundle


def compact_json(value: Any) -> str:
    """Return a value as JSON without spaces, in UTF-8."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def reference_matrix(bundle: Bundle, rows: Rows) -> Any:
    """Return the matrix computed with scikit-learn's scaler and hasher and Python lists, independent of keepfit."""
    recipe, numbers = bundle.recipe, rows.number_matrix()
    if bundle.columns.scaler is not None:
        numbers = bundle.columns.scaler.transform(numbers)
    if not recipe.categories:
        return numbers
    if recipe.encoding == "hash":
        names = list(recipe.categories)
        pairs = [
            [compact_json([name, labels[i]]) for name, labels in zip(names, rows.categories, strict=True)]
            for i in range(rows.n)
        ]
        hasher = FeatureHasher(n_features=recipe.n_features, input_type="string")
        return np.array([[*a, *b] for a, b in zip(numbers, hasher.transform(pairs).toarray(), strict=True)])
    matrix = []
    for i, numbers_left in enumerate(map(iter, numbers)):
        row: list[float] = []
        known = iter(zip(bundle.columns.labels, rows.categories, strict=True))
        for kind in (recipe.features or {}).values():
            if kind == "number":
                row.append(next(numbers_left))
                continue
            codes, column = next(known)
            is_full = recipe.encoding == "onehot" and len(codes) == recipe.max_categories - 1
            code = codes.get(column[i], recipe.max_categories - 1 if is_full else -1)
            row += (
                [code + 1] if recipe.encoding == "ordinal" else [float(code == j) for j in range(recipe.max_categories)]
            )
        matrix.append(row)
    return np.array(matrix, dtype=np.float64)


def outcome(compute: Any) -> str:
    """Return the result of a computation with every bit and dtype, or its error, as text."""
    try:
        result = compute()
    except (IndexError, InvalidError):
        # A category that CategoricalNB has not learned.
        return "refused"
    except ValueError as error:
        return f"{type(error).__name__}: {error}"
    # repr() of a float shows every bit, and distinguishes -0.0 from 0.0.
    return repr(result if isinstance(result, list) else (result.dtype, result.shape, result.tolist()))


def decoded(bundle: Bundle, predicted: Any) -> list[Any]:
    """Return predictions as a bundle returns them, with codes as labels."""
    return predicted.tolist() if bundle.labels is None else [bundle.labels.known[code] for code in predicted]


@st.composite
def predictions(draw: st.DrawFn, name: str) -> tuple[Bundle, Rows]:
    """Draw a bundle of the estimator `name` and 1 to 40 rows for it."""
    features = draw(st.sampled_from(sorted(FEATURES)))
    scaler = None if name in COUNTS_ONLY else draw(st.sampled_from([None, *SCALERS]))
    encoding = "ordinal"
    if "category" in kinds(features):
        encoding = draw(st.sampled_from(["ordinal", "onehot"] + ["hash"] * (name not in COUNTS_ONLY)))
    classes = draw(st.sampled_from(sorted(CLASSES))) if CATALOGUE[name].kind == "classifier" else ""
    bundle = learned(name, features, scaler, encoding, classes)
    number = st.one_of(
        st.sampled_from([0.0, -0.0, 1.0, -1e-300, NUMBER_MAX, -NUMBER_MAX]), st.floats(-20, 20), st.floats(-1e9, 1e9)
    )
    if name == "CategoricalNB":
        number = st.integers(0, 6).map(float)
    value = {"number": number, "category": st.sampled_from([*LABELS, "unknown"])}
    row = st.tuples(*(value[kind] for kind in kinds(features))).map(list)
    size = draw(st.one_of(st.just(1), st.integers(1, 40)))
    X = draw(st.lists(row, min_size=size, max_size=size))
    return bundle, shape(bundle.recipe, X, learning=False)


@pytest.mark.parametrize("name", EVERY)
@settings(deadline=None, max_examples=40)
@given(data=st.data())
def test_predictions_equal_scikit_learns_bit_for_bit(name: str, data: st.DataObject) -> None:
    """A bundle returns the result, or raises the error, of scikit-learn's transform and predict."""
    bundle, rows = data.draw(predictions(name))
    estimator = bundle.estimator
    with warnings.catch_warnings():
        # Large numbers overflow in both computations.
        warnings.simplefilter("ignore", RuntimeWarning)
        X = reference_matrix(bundle, rows)
        assert outcome(lambda: bundle.columns.transform(bundle.recipe, rows)) == outcome(lambda: X)
        before = X.tobytes()
        assert outcome(lambda: fast_predict.predict(estimator, X)) == outcome(lambda: estimator.predict(X))
        assert outcome(lambda: bundle.predict(rows)) == outcome(lambda: decoded(bundle, estimator.predict(X)))
        if hasattr(estimator, "predict_proba"):
            expected = outcome(lambda: estimator.predict_proba(X))
            assert outcome(lambda: fast_predict.predict_proba(estimator, X)) == expected
            assert outcome(lambda: bundle.predict_proba(rows)) == outcome(lambda: estimator.predict_proba(X).tolist())
        assert X.tobytes() == before


@pytest.mark.parametrize("name", EVERY)
def test_the_fast_path_is_used(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the estimator's predict nor the scaler's transform is called, except for unsupported estimators."""
    bundle = learned(name, "plain", None if name in COUNTS_ONLY else "StandardScaler", "ordinal", "two")
    assert (fast_predict.find_predict(bundle.estimator) is None) == (name in UNSUPPORTED)
    if name in UNSUPPORTED:
        return
    rows = shape(bundle.recipe, [[1.0, 2.0, 3.0, 4.0]], learning=False)
    expected = bundle.predict(rows)

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError

    for cls, method in ((type(bundle.estimator), "predict"), (StandardScaler, "transform")):
        monkeypatch.setattr(cls, method, never)
    assert bundle.predict(rows) == expected


@pytest.mark.parametrize("cls", [MaxAbsScaler, MinMaxScaler, StandardScaler])
@pytest.mark.parametrize(
    "params",
    [{}, {"clip": True}, {"feature_range": (-2, 7), "clip": True}, {"with_mean": False}, {"with_std": False}],
)
def test_scalers_with_any_parameters(cls: type[Any], params: dict[str, Any]) -> None:
    """Clipping, ranges and partial standardization equal scikit-learn's bit for bit, for one row and for many."""
    scaler, random = cls(), np.random.default_rng(2)
    if not params.keys() <= scaler.get_params().keys():
        return
    scaler.set_params(**params).partial_fit(random.normal(0, 3, (9, 3)))
    for rows in (1, 30):
        X = random.normal(0, 9, (rows, 3))
        expected = scaler.transform(X)
        assert fast_predict.transform(scaler, X).tobytes() == expected.tobytes()


def test_a_number_that_scaling_makes_infinite_raises_scikit_learns_error() -> None:
    """A finite number that scaling makes infinite raises scikit-learn's ValueError."""
    recipe = parse({"estimator": "SGDRegressor", "scaler": "MaxAbsScaler"})
    bundle = Bundle.new(recipe)
    bundle.partial_fit(shape(recipe, [[1.0]], [1.0], learning=True))
    # Smaller than the current scikit-learn lets it become.
    bundle.columns.scaler.scale_[:] = 1e-300
    rows = shape(recipe, [[1e38]], learning=False)
    with np.errstate(over="ignore"), pytest.raises(ValueError, match="Input X contains infinity"):
        bundle.predict(rows)


def test_another_width_raises_scikit_learns_error() -> None:
    """A matrix of another width than was learned is never broadcast: scikit-learn raises its error."""
    scaler, estimator = StandardScaler().fit([[1.0], [2.0]]), SGDRegressor().partial_fit([[1.0]], [1.0])
    wide = np.ones((2, 3))
    with pytest.raises(ValueError, match="X has 3 features"):
        fast_predict.transform(scaler, wide)
    with pytest.raises(ValueError, match="X has 3 features"):
        fast_predict.predict(estimator, wide)


def test_subclasses_use_their_own_predict() -> None:
    """A class derived from a supported one may predict differently, so its own method is called."""

    class Derived(SGDRegressor):
        """Overrides predict."""

        def predict(self, X: Any) -> Any:
            """Predict 42."""
            return np.full(len(X), 42.0)

    X = np.ones((2, 1))
    assert fast_predict.predict(Derived().partial_fit(X, [1.0, 2.0]), X).tolist() == [42.0, 42.0]


@pytest.mark.parametrize("binarize", [None, 0.5])
def test_bernoulli_with_and_without_a_threshold(binarize: float | None) -> None:
    """The threshold of BernoulliNB is applied before prediction."""
    X = np.random.default_rng(4).integers(0, 2, (20, 3)).astype(np.float64)
    estimator = BernoulliNB(binarize=binarize).partial_fit(X, X[:, 0], classes=[0, 1])
    assert fast_predict.predict(estimator, X).tobytes() == estimator.predict(X).tobytes()


def test_probabilities_are_equal_if_all_are_zero() -> None:
    """If every class has the probability 0, all get equal ones, as in scikit-learn."""
    X = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    estimator = SGDClassifier(loss="log_loss").partial_fit(X, [0, 1, 2], classes=[0, 1, 2])
    estimator.coef_[:] = -1e4
    probabilities = fast_predict.predict_proba(estimator, X)
    assert probabilities.tolist() == [[1 / 3, 1 / 3, 1 / 3]] * 3
    assert probabilities.tobytes() == estimator.predict_proba(X).tobytes()


@pytest.mark.parametrize("classes", [2, 3])
def test_probabilities_of_modified_huber(classes: int) -> None:
    """Clipped scores are the probabilities; if all of a row are zero, they are equal ones, as in scikit-learn."""
    X = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [-50.0, -50.0]])
    huber = SGDClassifier(loss="modified_huber").partial_fit(X[:3], np.arange(3) % classes, classes=range(classes))
    assert fast_predict.find_predict_proba(huber) is not None
    for rows in (X, X[:1], X * 1e-3, X * -1e9):
        assert fast_predict.predict_proba(huber, rows).tobytes() == huber.predict_proba(rows).tobytes()


def test_other_losses_have_no_probabilities() -> None:
    """The hinge loss gives no probabilities."""
    assert fast_predict.find_predict_proba(SGDClassifier(loss="log_loss")) is not None
    assert fast_predict.find_predict_proba(SGDClassifier(loss="hinge")) is None
