"""Fast path of learning: every attribute equals scikit-learn's bit for bit, and invalid calls are left to it."""

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import Perceptron, SGDClassifier, SGDRegressor
from sklearn.preprocessing import StandardScaler

from keepfit.model import fast_fit
from keepfit.model.estimators import build

WIDTH = 3
# Values that are difficult for a running variance: constants, tiny and huge numbers, both signs.
SPECIAL = [0.0, -0.0, 1.0, -1.0, 5e-324, 1e-30, 1e30, 123456.789, 1 / 3]


def assert_same(left: Any, right: Any) -> None:
    """Assert that all attributes of two objects are equal in bits and type, except the loss, which has no state."""
    assert vars(left).keys() == vars(right).keys()
    for name, value in vars(left).items():
        if name != "_loss_function_":
            other = getattr(right, name)
            assert type(value) is type(other), name
            assert np.array_equal(value, other, equal_nan=isinstance(value, float)), name
            if isinstance(value, np.ndarray) and value.dtype == np.float64:
                assert value.tobytes() == other.tobytes(), name


def batches(seed: int, n: int = 120) -> Iterator[np.ndarray[Any, Any]]:
    """Yield rows whose columns have very different scales, mostly one row at a time."""
    random = np.random.default_rng(seed)
    X = random.normal(size=(n, WIDTH)) * [1.0, 1e4, 1e-6] + [0.0, 1e6, 3.0]
    while len(X):
        size = int(random.choice([1, 1, 1, 2, 9]))
        yield X[:size].copy()
        X = X[size:]


SGD: list[dict[str, Any]] = [
    {},
    {"penalty": None, "fit_intercept": False},
    {"penalty": "l1", "learning_rate": "constant", "tol": None},
    {"penalty": "elasticnet", "l1_ratio": 0.3, "learning_rate": "adaptive", "n_iter_no_change": 1},
    {"learning_rate": "optimal", "alpha": 0.01},
]
REGRESSORS: list[tuple[str, dict[str, Any]]] = [
    *(("SGDRegressor", params) for params in SGD),
    *(("SGDRegressor", {"loss": loss}) for loss in ("huber", "epsilon_insensitive", "squared_epsilon_insensitive")),
    ("PassiveAggressiveRegressor", {"C": 0.3}),
    ("PassiveAggressiveRegressor", {"loss": "squared_epsilon_insensitive"}),
]
CLASSIFIERS: list[tuple[str, dict[str, Any]]] = [
    *(("SGDClassifier", {**params, "eta0": 0.1}) for params in SGD),
    *(("SGDClassifier", {"loss": loss}) for loss in ("log_loss", "modified_huber", "squared_hinge", "perceptron")),
    ("SGDClassifier", {"class_weight": {"a": 3.0, "b": 0.5}}),
    ("PassiveAggressiveClassifier", {}),
    ("Perceptron", {}),
    ("Perceptron", {"penalty": "l2"}),
]


@pytest.mark.parametrize(("name", "params"), REGRESSORS)
def test_a_regressor_learns_the_same_bits(name: str, params: dict[str, Any]) -> None:
    """After each batch, every attribute of a regressor equals that of scikit-learn's own partial_fit."""
    ours, theirs, random = build(name, params), build(name, params), np.random.default_rng(1)
    for number, X in enumerate(batches(2)):
        scaled = (X - [0.0, 1e6, 3.0]) / [1.0, 1e4, 1e-6]
        y = random.normal(size=len(X)) * 10
        theirs.partial_fit(scaled, y)
        assert fast_fit.partial_fit(ours, scaled, y) == (number > 0)
        if not number:
            ours.partial_fit(scaled, y)
        assert_same(ours, theirs)


@pytest.mark.parametrize("labels", [["a", "b"], ["a", "b", "c"]])
@pytest.mark.parametrize(("name", "params"), CLASSIFIERS)
def test_a_classifier_learns_the_same_bits(name: str, params: dict[str, Any], labels: list[str]) -> None:
    """After each batch, every attribute of a classifier of two or three labels equals scikit-learn's."""
    ours, theirs, random = build(name, params), build(name, params), np.random.default_rng(1)
    for number, X in enumerate(batches(3)):
        scaled = (X - [0.0, 1e6, 3.0]) / [1.0, 1e4, 1e-6]
        y = random.choice(labels, len(X))
        first = {} if number else {"classes": np.array(labels)}
        theirs.partial_fit(scaled, y, **first)
        assert fast_fit.partial_fit(ours, scaled, y) == (number > 0)
        if not number:
            ours.partial_fit(scaled, y, **first)
        assert_same(ours, theirs)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.lists(
            st.lists(
                st.sampled_from(SPECIAL) | st.floats(-1e100, 1e100, allow_subnormal=True),
                min_size=WIDTH, max_size=WIDTH,
            ),
            min_size=1, max_size=3,
        ),
        min_size=2, max_size=12,
    )
)  # fmt: skip
def test_a_scaler_learns_the_same_bits(requests: list[list[list[float]]]) -> None:
    """Mean, variance, scale and count equal scikit-learn's for any rows, including constants and extremes."""
    ours, theirs = StandardScaler(), StandardScaler()
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        for request in requests:
            X = np.array(request)
            theirs.partial_fit(X)
            fast_fit.partial_fit_scaler(ours, X.copy())
            assert_same(ours, theirs)


@pytest.mark.parametrize(
    "estimator",
    [
        SGDRegressor(),
        SGDRegressor(shuffle=False, average=True),
        SGDRegressor(shuffle=False, average=5),
        SGDClassifier(average=10, shuffle=False),
    ],
    ids=["shuffled", "averaged", "averaged later", "averaged classifier"],
)
def test_unsupported_parameters_are_left_to_scikit_learn(estimator: Any) -> None:
    """Shuffling and averaging are not supported."""
    X, y = np.ones((2, WIDTH)), np.array([0, 1])
    classes = {"classes": y} if isinstance(estimator, SGDClassifier) else {}
    estimator.partial_fit(X, y, **classes)
    assert not fast_fit.partial_fit(estimator, X, y)


def test_invalid_calls_are_left_to_scikit_learn() -> None:
    """First calls, another width and values that are not finite are not learned by the fast path."""
    estimator, y = SGDRegressor(shuffle=False), np.ones(1)
    assert not fast_fit.partial_fit(estimator, np.ones((1, WIDTH)), y)
    estimator.partial_fit(np.ones((1, WIDTH)), y)
    before = estimator.coef_.copy()
    assert not fast_fit.partial_fit(estimator, np.ones((1, WIDTH + 1)), y)
    assert not fast_fit.partial_fit(estimator, np.array([[1.0, np.inf, 0.0]]), y)
    assert not fast_fit.partial_fit(estimator, np.array([[1.0, np.nan, 0.0]]), y)
    assert (estimator.coef_ == before).all()
    scaler = StandardScaler().partial_fit(np.ones((1, WIDTH)))
    with pytest.raises(ValueError, match="features"):
        fast_fit.partial_fit_scaler(scaler, np.ones((1, WIDTH + 1)))
    with pytest.raises(ValueError, match="infinity"):
        fast_fit.partial_fit_scaler(scaler, np.array([[1.0, np.inf, 0.0]]))


def test_a_single_row_is_scaled_before_and_after_learning() -> None:
    """Row and scaler equal those of transform, partial_fit and transform, bit for bit."""
    for seed in range(5):
        ours, theirs = StandardScaler(), StandardScaler()
        for X in batches(seed):
            if len(X) > 1 or not hasattr(theirs, "mean_"):
                ours.partial_fit(X)
                theirs.partial_fit(X)
                continue
            before, after = fast_fit.partial_fit_scaler_row(ours, X[0].tolist()) or (None, None)
            assert before is not None
            assert before.tobytes() == theirs.transform(X).tobytes()
            assert after.tobytes() == theirs.partial_fit(X).transform(X).tobytes()
            assert_same(ours, theirs)


@pytest.mark.parametrize(
    ("scaler", "row"),
    [
        (StandardScaler(with_mean=False), [1.0] * WIDTH),
        (StandardScaler(with_std=False), [1.0] * WIDTH),
        (StandardScaler(), [1.0] * (WIDTH + 1)),
        (StandardScaler(), [float("inf")] * WIDTH),
        (StandardScaler(), [1.7e308] * WIDTH),
    ],
    ids=["no-mean", "no-std", "wider", "infinite", "huge"],
)
def test_an_unsupported_single_row_is_not_learned(scaler: StandardScaler, row: list[float]) -> None:
    """Other parameters, another width or too large numbers return None and learn nothing."""
    scaler.partial_fit(np.ones((2, WIDTH)))
    before = {name: np.copy(value) for name, value in vars(scaler).items()}
    assert fast_fit.partial_fit_scaler_row(scaler, row) is None
    assert {name: value.tolist() for name, value in before.items()} == {
        name: np.copy(value).tolist() for name, value in vars(scaler).items()
    }


def test_an_overflow_raises_scikit_learns_error() -> None:
    """Weights that would not be finite raise scikit-learn's error."""
    estimator = SGDRegressor(shuffle=False, learning_rate="constant", eta0=1e300)
    X, y = np.full((1, WIDTH), 1e200), np.ones(1)
    estimator.coef_, estimator.intercept_, estimator.t_ = np.zeros(WIDTH), np.zeros(1), 1.0
    with pytest.raises(ValueError, match="overflow"):
        fast_fit.partial_fit(estimator, X, y)


def test_subclasses_are_not_supported() -> None:
    """Only the exact class is supported, because a subclass may behave differently."""

    class Derived(Perceptron):  # type: ignore[misc]
        pass

    derived = Derived(shuffle=False).partial_fit(np.ones((2, WIDTH)), [0, 1], classes=[0, 1])
    assert not fast_fit.partial_fit(derived, np.ones((1, WIDTH)), np.ones(1))
