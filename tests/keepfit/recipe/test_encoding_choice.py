"""The encoding of a recipe that leaves it out: it suits the estimator, shown by what the estimator learns with it."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from river import linear_model
from sklearn.linear_model import SGDRegressor

from keepfit.model import recipe_check
from keepfit.model.bundle import Bundle
from keepfit.objects import dump
from keepfit.recipe.catalogue import CATALOGUE
from keepfit.recipe.encoding_choice import CHOICES, ONEHOT_COLUMNS_MAX
from keepfit.recipe.recipe import Recipe, parse
from keepfit.recipe.recipe_warnings import warnings_of
from keepfit.rows.shaping import shape
from keepfit.security.envelope import UPLOAD_KEYS, Keyring

FEATURES = {"make": "category", "year": "number"}
UPLOAD_KEY = "u1:" + "ab" * 32
UPLOADS = Keyring.from_text(UPLOAD_KEY, UPLOAD_KEYS)
CODED = sorted(name for name, choice in CHOICES.items() if choice is not None)
# Parameters with which the estimator learns a few hundred rows; the rest learns them with its defaults.
PARAMS: dict[str, dict[str, Any]] = {
    "PassiveAggressiveRegressor": {"C": 0.05},
    "SGDRegressor": {"learning_rate": "constant", "eta0": 0.05},
    "MLPClassifier": {"hidden_layer_sizes": [16], "learning_rate_init": 0.01},
    "MLPRegressor": {"hidden_layer_sizes": [16], "learning_rate_init": 0.01},
}


def votes(n: int, makes: int) -> tuple[list[dict[str, Any]], list[float]]:
    """Return votes from 1 to 5, which depend on the make and, less, on the year."""
    generator = np.random.default_rng(3)
    level = generator.uniform(1.5, 4.5, makes)
    make, year = generator.integers(makes, size=n), generator.integers(1990, 2024, n)
    vote = np.clip(np.round(level[make] + 0.03 * (year - 2007) + generator.normal(0, 0.4, n)), 1, 5)
    rows = [{"make": f"m{one}", "year": int(of)} for one, of in zip(make, year, strict=True)]
    return rows, vote.tolist()


def learned(recipe: Recipe, rows: list[dict[str, Any]], y: list[Any]) -> Bundle:
    """Return a bundle that has learned the rows one by one, as a service sends them."""
    bundle = Bundle.new(recipe)
    for row, target in zip(rows, y, strict=True):
        bundle.partial_fit(shape(recipe, [row], [target], learning=True))
    return bundle


def test_every_estimator_has_a_choice() -> None:
    """The table of choices names exactly the estimators of the catalogue."""
    assert CHOICES.keys() == CATALOGUE.keys()


@pytest.mark.parametrize("name", CODED)
def test_the_choice_is_stored_with_the_recipe(name: str) -> None:
    """A recipe with a category column that leaves encoding out has the one of its estimator, or inner estimator."""
    recipe = parse({"estimator": name, "features": FEATURES})
    assert recipe.encoding == CHOICES[name]
    assert parse({"estimator": name, "features": FEATURES, "encoding": None}) == recipe
    assert parse({"estimator": name, "features": {"year": "number"}}).encoding is None


def predictors() -> Iterator[str]:
    """Yield the classifiers and regressors that are no wrappers."""
    yield from (name for name in CODED if CATALOGUE[name].kind in ("classifier", "regressor"))


@pytest.mark.parametrize("name", [name for name in predictors() if not CATALOGUE[name].wraps])
def test_every_predictor_learns_categories_with_its_choice(name: str) -> None:
    """With the encoding left out, the errors of each classifier and regressor are far below those of its baseline."""
    rows, vote = votes(900, 12)
    is_classifier = CATALOGUE[name].kind == "classifier"
    y: list[Any] = ["good" if one >= 3 else "bad" for one in vote] if is_classifier else vote
    # Scaled for sums and distances; naive Bayes of codes and counts takes none of both signs.
    scaler = None if name == "CategoricalNB" else "MinMaxScaler" if name.endswith("NB") else "StandardScaler"
    document = {
        "estimator": name,
        "params": PARAMS.get(name, {}),
        "features": FEATURES,
        "scaler": scaler,
        "window": 300,
    }
    if scaler is None:
        document["features"], rows = {"make": "category"}, [{"make": row["make"]} for row in rows]
    last = learned(parse(document), rows, y).metrics()["window"]
    if is_classifier:
        assert 1 - last["accuracy"] < 0.75 * (1 - last["baseline_accuracy"]), last
    else:
        assert last["mean_absolute_error"] < 0.8 * last["baseline_mean_absolute_error"], last


@pytest.mark.parametrize(("makes", "bound"), [(40, 1.0), (200, 1.05), (1000, 1.07)])
def test_sgd_learns_however_many_labels_there_are(makes: int, bound: float) -> None:
    """SGDRegressor with its default parameters does not diverge, also with more labels than max_categories.

    Of 1000 makes, nine in ten are infrequent: their shared weight moves with each of them, which costs 3 %.
    """
    rows, vote = votes(3000, makes)
    recipe = parse({"estimator": "SGDRegressor", "features": FEATURES, "scaler": "StandardScaler"})
    window = learned(recipe, rows, vote).metrics()["window"]
    assert window["mean_absolute_error"] < bound * window["baseline_mean_absolute_error"]
    assert window["r2"] > 0.0


@pytest.mark.parametrize(
    ("document", "encoding"),
    [
        ({"estimator": "OneVsRestClassifier", "params": {"estimator": {"CategoricalNB": {}}}}, "ordinal"),
        ({"estimator": "OneVsRestClassifier", "params": {"estimator": {"Perceptron": {}}}}, "onehot"),
        ({"steps": [{"CategoricalNB": {}}]}, "ordinal"),
        ({"steps": [{"MinMaxScaler": {}}, {"CategoricalNB": {}}]}, "onehot"),
        ({"steps": [{"IncrementalPCA": {}}, {"SGDRegressor": {}}]}, "onehot"),
        ({"steps": [{"MiniBatchKMeans": {}}, {"GaussianNB": {}}]}, "onehot"),
    ],
    ids=str,
)
def test_wrappers_and_steps(document: dict[str, Any], encoding: str) -> None:
    """The inner estimator of a wrapper decides; codes are only for an estimator that receives them unchanged."""
    assert parse({**document, "features": FEATURES}).encoding == encoding


def test_many_category_columns_are_hashed() -> None:
    """Where one-hot columns would be very many, categories are hashed, unless the estimator refuses hashes."""
    features = {f"c{i}": "category" for i in range(ONEHOT_COLUMNS_MAX // 128 + 1)}
    assert parse({"estimator": "SGDRegressor", "features": features}).encoding == "hash"
    assert parse({"estimator": "MultinomialNB", "features": features}).encoding == "onehot"
    assert parse({"estimator": "SGDRegressor", "features": features, "max_categories": 64}).encoding == "onehot"
    few = {name: {"type": "category", "max_categories": 64} for name in features}
    assert parse({"estimator": "SGDRegressor", "features": few}).encoding == "onehot"


@pytest.mark.parametrize("name", CODED)
def test_a_choice_has_no_warning(name: str) -> None:
    """No estimator gets an encoding about which the model's document warns at once."""
    wrapped = {"params": {"estimator": {"SGDRegressor": {}}}} if CATALOGUE[name].wraps == ("regressor",) else {}
    if CATALOGUE[name].wraps and not wrapped:
        wrapped = {"params": {"estimator": {"BernoulliNB": {}}}}
    features = {f"c{i}": "category" for i in range(600)}
    recipe = parse({"estimator": name, **wrapped, "features": features})
    assert [text for text in warnings_of(recipe, {}) if text.startswith("encoding")] == []


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("MultinomialNB", {"alpha": [1.0, 2.0, 1.0]}),
        ("MiniBatchKMeans", {"n_clusters": 2, "init": [[0, 0, 0], [1, 1, 1]]}),
    ],
)
def test_parameters_for_each_column_mean_codes(name: str, params: dict[str, Any]) -> None:
    """A recipe whose parameters have a value for each column of codes is valid without encoding, as in 0.1."""
    features = dict.fromkeys("abc", "category")
    document = {"estimator": name, "params": params, "features": features}
    assert recipe_check.check(document).encoding == "ordinal"
    assert recipe_check.check({**document, "params": {}}).encoding == "onehot"


def test_an_object_gets_one_hot_columns_unless_it_receives_rows() -> None:
    """An object with partial_fit gets one-hot columns; a River model receives rows unchanged and has no encoding."""
    features = {"make": "category"}
    own = parse({"object": dump(SGDRegressor(), UPLOAD_KEY), "features": features}, UPLOADS)
    river = parse({"object": dump(linear_model.LinearRegression(), UPLOAD_KEY), "features": features}, UPLOADS)
    assert (own.encoding, river.encoding) == ("onehot", None)
