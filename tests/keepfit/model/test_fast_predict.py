"""Plain predictions: bit for bit scikit-learn's own, for every estimator, scaler, encoding and batch size."""

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

from keepfit.model import fast_predict
from keepfit.model.bundle import Bundle
from keepfit.recipe.catalogue import CATALOGUE, SCALERS
from keepfit.recipe.recipe import parse
from keepfit.rows.rows import Rows
from keepfit.rows.shaping import shape
from keepfit.rows.values import NUMBER_MAX

# What predicts by itself; what transforms, or stands around another, goes to scikit-learn.
EVERY = sorted(name for name, entry in CATALOGUE.items() if entry.kind != "transformer" and not entry.wraps)
# What scikit-learn alone predicts: their computation is no few lines, or checks the rows by itself.
ITS_OWN = {"Birch", "CategoricalNB", "MiniBatchKMeans"}
COUNTS_ONLY = {"BernoulliNB", "CategoricalNB", "ComplementNB", "MultinomialNB"}
PARAMS: dict[str, dict[str, Any]] = {
    # Grouped no further, as some samples have fewer groups than are asked for.
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
FORMS: dict[str, Any] = {
    "single": None,
    "plain": None,
    "mixed": {"make": "category", "a": "number", "b": "number", "size": "category", "c": "number"},
    "categories": {"make": "category", "size": "category"},
}
WIDTHS = {"single": 1, "plain": 4}
LABELS = ["nike", "puma", "é", "", 3, "3"]


def kinds(form: str) -> list[str]:
    """Kinds of the columns of a form, in order."""
    return list(FORMS[form].values()) if FORMS[form] else ["number"] * WIDTHS[form]


@cache
def learned(name: str, form: str, scaler: str | None, encoding: str, classes: str) -> Bundle:
    """Bundle that has learned some rows; shared, as predicting changes nothing."""
    kind = CATALOGUE[name].kind
    document = {
        "estimator": name,
        "params": PARAMS.get(name, {}),
        "features": FORMS[form],
        "scaler": scaler if "number" in kinds(form) else None,
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
                for k, value in zip(kinds(form), row, strict=False)
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


def slow_matrix(bundle: Bundle, rows: Rows) -> Any:
    """The matrix by scikit-learn's scaler and hasher, and by lists; knows nothing of how keepfit builds it."""
    recipe, numbers = bundle.recipe, rows.number_matrix()
    if bundle.columns.scaler is not None:
        numbers = bundle.columns.scaler.transform(numbers)
    if not recipe.categories:
        return numbers
    if recipe.encoding == "hash":
        words = [
            [f"{n}={c[i]}" for n, c in zip(recipe.categories, rows.categories, strict=True)] for i in range(rows.n)
        ]
        hasher = FeatureHasher(n_features=recipe.n_features, input_type="string")
        return np.array([[*a, *b] for a, b in zip(numbers, hasher.transform(words).toarray(), strict=True)])
    matrix = []
    for i, numbers_left in enumerate(map(iter, numbers)):
        row: list[float] = []
        known = iter(zip(bundle.columns.labels, rows.categories, strict=True))
        for kind in (recipe.features or {}).values():
            if kind == "number":
                row.append(next(numbers_left))
                continue
            codes, column = next(known)
            code = codes.get(column[i], -1)
            row += [code] if recipe.encoding == "ordinal" else [float(code == j) for j in range(recipe.max_categories)]
        matrix.append(row)
    return np.array(matrix, dtype=np.float64)


def outcome(compute: Any) -> str:
    """What a computation gives, every bit and type of it, or the error it ends in."""
    try:
        result = compute()
    except (ValueError, IndexError) as error:
        return f"{type(error).__name__}: {error}"
    # Of floats, repr() tells all bits there are, and -0.0 from 0.0.
    return repr(result if isinstance(result, list) else (result.dtype, result.shape, result.tolist()))


def decoded(bundle: Bundle, predicted: Any) -> list[Any]:
    """Predictions as they are answered: codes as labels."""
    return predicted.tolist() if bundle.labels is None else [bundle.labels.known[code] for code in predicted]


@st.composite
def questions(draw: st.DrawFn, name: str) -> tuple[Bundle, Rows]:
    """A bundle of the estimator `name` and 1 to 40 rows for it."""
    form = draw(st.sampled_from(sorted(FORMS)))
    scaler = None if name in COUNTS_ONLY else draw(st.sampled_from([None, *SCALERS]))
    encoding = "ordinal"
    if "category" in kinds(form):
        encoding = draw(st.sampled_from(["ordinal", "onehot"] + ["hash"] * (name not in COUNTS_ONLY)))
    classes = draw(st.sampled_from(sorted(CLASSES))) if CATALOGUE[name].kind == "classifier" else ""
    bundle = learned(name, form, scaler, encoding, classes)
    number = st.one_of(
        st.sampled_from([0.0, -0.0, 1.0, -1e-300, NUMBER_MAX, -NUMBER_MAX]), st.floats(-20, 20), st.floats(-1e9, 1e9)
    )
    if name == "CategoricalNB":
        number = st.integers(0, 6).map(float)
    value = {"number": number, "category": st.sampled_from([*LABELS, "never seen"])}
    row = st.tuples(*(value[kind] for kind in kinds(form))).map(list)
    size = draw(st.one_of(st.just(1), st.integers(1, 40)))
    X = draw(st.lists(row, min_size=size, max_size=size))
    return bundle, shape(bundle.recipe, X, learning=False)


@pytest.mark.parametrize("name", EVERY)
@settings(deadline=None, max_examples=40)
@given(data=st.data())
def test_predictions_are_scikit_learns_bit_for_bit(name: str, data: st.DataObject) -> None:
    """A bundle predicts what the estimator's own predict says of the scaler's own transform, or fails as it does."""
    bundle, rows = data.draw(questions(name))
    estimator = bundle.estimator
    with warnings.catch_warnings():
        # What a large number does to the computation is the same in both.
        warnings.simplefilter("ignore", RuntimeWarning)
        X = slow_matrix(bundle, rows)
        assert outcome(lambda: bundle.columns.transform(bundle.recipe, rows)) == outcome(lambda: X)
        before = X.tobytes()
        assert outcome(lambda: fast_predict.predict(estimator, X)) == outcome(lambda: estimator.predict(X))
        assert outcome(lambda: bundle.predict(rows)) == outcome(lambda: decoded(bundle, estimator.predict(X)))
        if hasattr(estimator, "predict_proba"):
            wanted = outcome(lambda: estimator.predict_proba(X))
            assert outcome(lambda: fast_predict.predict_proba(estimator, X)) == wanted
            assert outcome(lambda: bundle.predict_proba(rows)) == outcome(lambda: estimator.predict_proba(X).tolist())
        assert X.tobytes() == before


@pytest.mark.parametrize("name", EVERY)
def test_the_short_way_is_taken(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the estimator's predict nor the scaler's transform is called, but for the estimators named here."""
    bundle = learned(name, "plain", None if name in COUNTS_ONLY else "StandardScaler", "ordinal", "two")
    assert (fast_predict.find_predict(bundle.estimator) is None) == (name in ITS_OWN)
    if name in ITS_OWN:
        return
    rows = shape(bundle.recipe, [[1.0, 2.0, 3.0, 4.0]], learning=False)
    wanted = bundle.predict(rows)

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError

    for cls, method in ((type(bundle.estimator), "predict"), (StandardScaler, "transform")):
        monkeypatch.setattr(cls, method, never)
    assert bundle.predict(rows) == wanted


@pytest.mark.parametrize("cls", [MaxAbsScaler, MinMaxScaler, StandardScaler])
@pytest.mark.parametrize(
    "params",
    [{}, {"clip": True}, {"feature_range": (-2, 7), "clip": True}, {"with_mean": False}, {"with_std": False}],
)
def test_scalers_with_any_parameters(cls: type[Any], params: dict[str, Any]) -> None:
    """Clipping, ranges and halves of standardising give scikit-learn's bits, of one row and of many."""
    scaler, random = cls(), np.random.default_rng(2)
    if not params.keys() <= scaler.get_params().keys():
        return
    scaler.set_params(**params).partial_fit(random.normal(0, 3, (9, 3)))
    for rows in (1, 30):
        X = random.normal(0, 9, (rows, 3))
        wanted = scaler.transform(X)
        assert fast_predict.transform(scaler, X).tobytes() == wanted.tobytes()


def test_a_number_too_large_once_scaled_is_refused_as_by_scikit_learn() -> None:
    """A finite number that scaling makes infinite ends in scikit-learn's own ValueError."""
    recipe = parse({"estimator": "SGDRegressor", "scaler": "MaxAbsScaler"})
    bundle = Bundle.new(recipe)
    bundle.partial_fit(shape(recipe, [[1.0]], [1.0], learning=True))
    # Smaller than today's scikit-learn lets it become.
    bundle.columns.scaler.scale_[:] = 1e-300
    rows = shape(recipe, [[1e38]], learning=False)
    with np.errstate(over="ignore"), pytest.raises(ValueError, match="Input X contains infinity"):
        bundle.predict(rows)


def test_another_width_is_refused_by_scikit_learn() -> None:
    """A matrix of another width than was learned is never broadcast: scikit-learn says what is wrong."""
    scaler, estimator = StandardScaler().fit([[1.0], [2.0]]), SGDRegressor().partial_fit([[1.0]], [1.0])
    wide = np.ones((2, 3))
    with pytest.raises(ValueError, match="X has 3 features"):
        fast_predict.transform(scaler, wide)
    with pytest.raises(ValueError, match="X has 3 features"):
        fast_predict.predict(estimator, wide)


def test_classes_are_known_exactly() -> None:
    """A class derived from one that is known may predict otherwise, so scikit-learn's way is taken."""

    class Contrary(SGDRegressor):
        """Predicts something of its own."""

        def predict(self, X: Any) -> Any:
            """Predict 42."""
            return np.full(len(X), 42.0)

    X = np.ones((2, 1))
    assert fast_predict.predict(Contrary().partial_fit(X, [1.0, 2.0]), X).tolist() == [42.0, 42.0]


@pytest.mark.parametrize("binarize", [None, 0.5])
def test_bernoulli_with_and_without_a_threshold(binarize: float | None) -> None:
    """The threshold that BernoulliNB applies before it predicts is applied."""
    X = np.random.default_rng(4).integers(0, 2, (20, 3)).astype(np.float64)
    estimator = BernoulliNB(binarize=binarize).partial_fit(X, X[:, 0], classes=[0, 1])
    assert fast_predict.predict(estimator, X).tobytes() == estimator.predict(X).tobytes()


def test_probabilities_where_no_class_has_any() -> None:
    """Scores so low that every class has the probability 0 give equal ones, as in scikit-learn."""
    X = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    estimator = SGDClassifier(loss="log_loss").partial_fit(X, [0, 1, 2], classes=[0, 1, 2])
    estimator.coef_[:] = -1e4
    probabilities = fast_predict.predict_proba(estimator, X)
    assert probabilities.tolist() == [[1 / 3, 1 / 3, 1 / 3]] * 3
    assert probabilities.tobytes() == estimator.predict_proba(X).tobytes()


def test_other_losses_leave_probabilities_to_scikit_learn() -> None:
    """Only the logistic loss has a short way; modified_huber goes to scikit-learn, hinge has none at all."""
    X = np.array([[1.0], [-1.0]])
    huber = SGDClassifier(loss="modified_huber").partial_fit(X, [0, 1], classes=[0, 1])
    assert fast_predict.find_predict_proba(SGDClassifier(loss="log_loss")) is not None
    assert fast_predict.find_predict_proba(huber) is None
    assert fast_predict.predict_proba(huber, X).tobytes() == huber.predict_proba(X).tobytes()
