"""Estimators: what the names and parameters of a recipe build."""

import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import linear_model, preprocessing
from sklearn.base import BaseEstimator

from keepfit.errors import InvalidError
from keepfit.model.estimators import PASSIVE_AGGRESSIVE, STREAM_DEFAULTS, build, build_scaler, class_of
from keepfit.recipe.catalogue import CATALOGUE, SCALERS, entry_of
from tests.catalogue import made

ROWS = 80


@pytest.mark.parametrize(
    "name",
    [
        "sklearn.linear_model.SGDRegressor",
        "sklearn.linear_model:SGDRegressor",
        "os.system",
        "builtins.eval",
        "linear_model.SGDRegressor",
        "SGDRegressor ",
        "sgdregressor",
        "__import__",
        "BaseEstimator",
        "",
        "LinearRegression",
        "Pipeline",
    ],
)
def test_other_names_are_rejected(name: str) -> None:
    """Import paths, other spellings and estimators without partial_fit and predict build nothing."""
    with pytest.raises(
        InvalidError,
        match=r"is not an estimator with partial_fit|cannot learn row by row|write the name alone|not part of|a path",
    ):
        build(name, {})


@pytest.mark.parametrize("name", sorted(CATALOGUE))
def test_every_name_builds_without_a_warning(name: str) -> None:
    """Each name builds a new unfitted object of its class, without a deprecation warning."""
    first, second = made(name), made(name)
    assert type(first) is class_of(entry_of(name))
    assert first is not second
    assert isinstance(first, BaseEstimator)
    assert not [attribute for attribute in vars(first) if attribute.endswith("_")]


@pytest.mark.parametrize("name", sorted(CATALOGUE))
def test_learning_is_ordered_and_repeatable(name: str) -> None:
    """Nothing is shuffled and every random state is fixed, unless the recipe sets it otherwise."""
    assert STREAM_DEFAULTS == {"shuffle": False, "random_state": 0}
    built = made(name).get_params()
    plain = type(made(name))(made(name).estimator) if entry_of(name).wraps else class_of(entry_of(name))()
    plain = plain.get_params()
    for key, value in STREAM_DEFAULTS.items():
        if key in plain:
            assert built[key] == value
            assert type(built[key]) is type(value)
    if name not in PASSIVE_AGGRESSIVE:
        changed = {key for key in plain if built[key] != plain[key] and key != "estimator"}
        assert changed <= {*STREAM_DEFAULTS, *(["n_features"] if name == "HashingVectorizer" else [])}


def test_a_recipe_may_set_shuffling() -> None:
    """The recipe overrides the defaults for streams."""
    built = build("SGDRegressor", {"shuffle": True, "random_state": 7, "eta0": 0.25})
    assert (built.shuffle, built.random_state, built.eta0) == (True, 7, 0.25)


@pytest.mark.parametrize(
    ("name", "params", "words"),
    [
        ("SGDRegressor", {"alpha": -1}, r"'alpha' parameter of SGDRegressor must be a float in the range \[0.0, inf\)"),
        ("SGDRegressor", {"alpha": "x"}, r"must be a float in the range \[0.0, inf\). Got 'x'"),
        ("SGDRegressor", {"alpha": None}, "must be a float"),
        ("SGDRegressor", {"alpha": float("inf")}, "must be a float"),
        ("SGDRegressor", {"loss": "squared_eror"}, "must be a str among .*'squared_error'"),
        ("SGDRegressor", {"loss": []}, "must be a str among .*'squared_error'"),
        ("SGDRegressor", {"random_state": 2**70}, r"must be an int in the range \[0, 4294967295\]"),
        ("SGDRegressor", {"eta": 1}, "there is no 'eta'; known: alpha, .*eta0"),
        ("SGDRegressor", {"alpha__x": 1}, "there is no 'alpha__x'; known: alpha"),
        ("SGDRegressor", {"self": 1}, "there is no 'self'"),
        ("SGDRegressor", {"": 1}, "there is no ''"),
        ("SGDRegressor", {"early_stopping": True}, "early_stopping must be false"),
        ("MLPRegressor", {"early_stopping": True}, "early_stopping must be false"),
        ("MLPRegressor", {"solver": "lbfgs"}, "use 'sgd' or 'adam'"),
        ("MLPClassifier", {"solver": "lbfgs"}, "use 'sgd' or 'adam'"),
        ("SGDClassifier", {"class_weight": "balanced"}, "list the weights"),
        ("Perceptron", {"class_weight": "balanced"}, "list the weights"),
        ("GaussianNB", {"var_smoothing": -1}, "'var_smoothing' parameter of GaussianNB must be"),
        ("PassiveAggressiveRegressor", {"C": 0}, "'C' parameter of PassiveAggressiveRegressor must be a float in"),
        ("PassiveAggressiveClassifier", {"C": "x"}, "'C' parameter of PassiveAggressiveClassifier must be"),
        ("PassiveAggressiveRegressor", {"loss": "hinge"}, "loss must be one of epsilon_insensitive, squared_epsilon"),
        ("PassiveAggressiveClassifier", {"loss": "log_loss"}, "loss must be one of hinge, squared_hinge"),
        ("PassiveAggressiveRegressor", {"loss": []}, "loss must be one of epsilon_insensitive"),
        ("PassiveAggressiveRegressor", {"loss": {}}, "loss must be one of epsilon_insensitive"),
        ("PassiveAggressiveRegressor", {"loss": None}, "loss must be one of epsilon_insensitive"),
        ("PassiveAggressiveRegressor", {"eta0": 1}, "there is no 'eta0'; known: C, average"),
        ("PassiveAggressiveRegressor", {"penalty": "l2"}, "there is no 'penalty'; known: C"),
        ("PassiveAggressiveClassifier", {"learning_rate": "pa1"}, "there is no 'learning_rate'; known: C"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_invalid_params_are_rejected_with_the_valid_ones(name: str, params: dict[str, Any], words: str) -> None:
    """A parameter that is unknown, invalid, or does not work with partial_fit is rejected when it is posted."""
    with pytest.raises(InvalidError, match=words) as caught:
        build(name, params)
    assert str(caught.value).startswith(f"params of {name}: ")


def test_messages_are_short() -> None:
    """A value or name as long as a body is cut in the message, and deep nesting is an InvalidError."""
    deep: Any = []
    for _ in range(100_000):
        deep = [deep]
    for params in ({"loss": "x" * 1_000_000}, {"x" * 1_000_000: 1}, {"alpha": [0.5] * 100_000}, {"alpha": deep}):
        with pytest.raises(InvalidError) as caught:
            build("SGDRegressor", params)
        assert len(str(caught.value)) < 700


def old_class(name: str, **params: Any) -> Any:
    """Build scikit-learn's deprecated PassiveAggressive class."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return getattr(linear_model, name)(shuffle=False, random_state=0, **params)


@pytest.mark.parametrize("name", sorted(PASSIVE_AGGRESSIVE))
def test_defaults_of_passive_aggressive_are_unchanged(name: str) -> None:
    """Parameters that both classes have, and C under its new name, have the default of the deprecated class."""
    ours, theirs = build(name, {}).get_params(), old_class(name).get_params()
    assert ours["eta0"] == theirs.pop("C") == 1.0
    assert {key: ours[key] for key in theirs} == theirs


@pytest.mark.parametrize("C", [0.01, 0.5, 1.0, 100.0])
@pytest.mark.parametrize("loss", ["epsilon_insensitive", "squared_epsilon_insensitive"])
@pytest.mark.parametrize("average", [False, True])
def test_passive_aggressive_regressor_equals_the_deprecated_class(C: float, loss: str, average: bool) -> None:
    """Row by row PassiveAggressiveRegressor equals scikit-learn's deprecated class bit for bit."""
    random = np.random.default_rng(7)
    X, y = random.normal(size=(ROWS, 5)), random.normal(size=ROWS)
    ours = build("PassiveAggressiveRegressor", {"C": C, "loss": loss, "average": average})
    assert isinstance(ours, linear_model.SGDRegressor)
    assert (ours.penalty, ours.eta0, ours.loss) == (None, C, "epsilon_insensitive")
    assert ours.learning_rate == ("pa1" if loss == "epsilon_insensitive" else "pa2")
    theirs = old_class("PassiveAggressiveRegressor", C=C, loss=loss, average=average)
    for row, target in zip(X, y, strict=True):
        ours.partial_fit([row], [target])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            theirs.partial_fit([row], [target])
    assert ours.coef_.any()
    assert ours.coef_.tobytes() == theirs.coef_.tobytes()
    assert ours.intercept_.tobytes() == theirs.intercept_.tobytes()
    assert ours.predict(X).tobytes() == theirs.predict(X).tobytes()


@pytest.mark.parametrize("C", [0.01, 1.0, 100.0])
@pytest.mark.parametrize("loss", ["hinge", "squared_hinge"])
@pytest.mark.parametrize("classes", [["no", "yes"], ["a", "b", "c"]])
def test_passive_aggressive_classifier_equals_the_deprecated_class(C: float, loss: str, classes: list[str]) -> None:
    """Row by row PassiveAggressiveClassifier equals scikit-learn's deprecated class bit for bit."""
    random = np.random.default_rng(8)
    X, y = random.normal(size=(ROWS, 4)), random.choice(classes, size=ROWS)
    ours = build("PassiveAggressiveClassifier", {"C": C, "loss": loss})
    assert isinstance(ours, linear_model.SGDClassifier)
    assert (ours.penalty, ours.eta0, ours.loss) == (None, C, "hinge")
    assert ours.learning_rate == ("pa1" if loss == "hinge" else "pa2")
    theirs = old_class("PassiveAggressiveClassifier", C=C, loss=loss)
    for row, label in zip(X, y, strict=True):
        ours.partial_fit([row], [label], classes=classes)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            theirs.partial_fit([row], [label], classes=classes)
    assert ours.coef_.any()
    assert ours.coef_.tobytes() == theirs.coef_.tobytes()
    assert ours.intercept_.tobytes() == theirs.intercept_.tobytes()
    assert ours.predict(X).tolist() == theirs.predict(X).tolist()


@settings(deadline=None, max_examples=40)
@given(
    st.lists(
        st.tuples(st.lists(st.floats(-1e6, 1e6), min_size=3, max_size=3), st.floats(-1e6, 1e6)),
        min_size=1,
        max_size=8,
    ),
    st.floats(1e-3, 1e3),
    st.floats(0, 10),
)
def test_passive_aggressive_equals_the_old_class_on_any_rows(
    rows: list[tuple[list[float], float]], C: float, epsilon: float
) -> None:
    """For any rows, C and epsilon the regressor's coefficients equal those of the deprecated class."""
    ours = build("PassiveAggressiveRegressor", {"C": C, "epsilon": epsilon})
    theirs = old_class("PassiveAggressiveRegressor", C=C, epsilon=epsilon)
    for row, target in rows:
        ours.partial_fit([row], [target])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            theirs.partial_fit([row], [target])
    assert ours.coef_.tobytes() == theirs.coef_.tobytes()
    assert ours.intercept_.tobytes() == theirs.intercept_.tobytes()


@pytest.mark.parametrize("name", SCALERS)
def test_scalers_are_scikit_learns(name: str) -> None:
    """Each scaler name builds scikit-learn's class, which has partial_fit."""
    scaler = build_scaler(name)
    assert type(scaler) is getattr(preprocessing, name)
    assert callable(scaler.partial_fit)


@pytest.mark.parametrize("name", ["RobustScaler", "sklearn.preprocessing.StandardScaler", "Normalizer", ""])
def test_other_scalers_are_rejected(name: str) -> None:
    """A name that is not a scaler with partial_fit is rejected with the valid names."""
    with pytest.raises(InvalidError, match="one of StandardScaler, MinMaxScaler, MaxAbsScaler"):
        build_scaler(name)
