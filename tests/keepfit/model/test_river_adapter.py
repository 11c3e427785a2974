"""River's models as uploaded objects: rows are dicts of unencoded values, labels are unchanged."""

from typing import Any

import pytest

from keepfit.errors import InvalidError
from keepfit.model.object_bundle import ObjectBundle, new_bundle
from keepfit.objects import dump
from keepfit.recipe import uploads
from keepfit.recipe.recipe import parse
from tests.keepfit.test_objects import KEYS, UPLOADS, learned, predicted, recipe_of, shape, stored

river = pytest.importorskip("river", reason="the extra `river` is not installed")
from river import (  # noqa: E402 - behind the line that skips all of it
    anomaly,
    cluster,
    compose,
    datasets,
    linear_model,
    metrics,
    multioutput,
    naive_bayes,
    preprocessing,
    tree,
)

PHISHING = list(datasets.Phishing().take(200))
NAMES = list(PHISHING[0][0])


def test_a_pipeline_equals_river_on_real_rows() -> None:
    """On River's phishing pages, stored between single rows, each prediction equals that of a plain River loop."""
    model = compose.Pipeline(preprocessing.StandardScaler(), linear_model.LogisticRegression())
    bundle: Any = new_bundle(recipe_of(model.clone(), features=dict.fromkeys(NAMES, "number")), UPLOADS)
    right = metrics.Accuracy()
    for i, (x, y) in enumerate(PHISHING):
        if i:
            assert predicted(bundle, [x]) == [model.predict_one(x)]
            right.update(y, model.predict_one(x))
        model.learn_one({name: float(value) for name, value in x.items()}, y)
        learned(bundle, [x], [y])
        if i % 50 == 0:
            bundle = stored(bundle)
    assert bundle.metrics()["accuracy"] == pytest.approx(right.get())
    assert right.get() > 0.8
    probed = shape(bundle.recipe, [PHISHING[0][0]], learning=False)
    chances = dict(zip(bundle.classes, bundle.predict_proba(probed)[0], strict=False))
    assert chances == model.predict_proba_one(PHISHING[0][0])


def test_values_are_not_encoded() -> None:
    """Columns keep names and types: numbers as floats, text as text; without features keys count from 0."""
    bundle = new_bundle(
        recipe_of(RowRecorder(), kind="regressor", features={"make": "category", "year": "number"}), UPLOADS
    )
    learned(bundle, [{"year": 2001, "make": "nike"}, ["puma", 2003.5]], [1, 2])
    assert bundle.estimator.rows == [({"make": "nike", "year": 2001.0}, 1.0), ({"make": "puma", "year": 2003.5}, 2.0)]
    plain = new_bundle(recipe_of(RowRecorder(), kind="regressor"), UPLOADS)
    learned(plain, [[7, 8]], [1], [0.5])
    assert plain.estimator.rows == [({0: 7.0, 1: 8.0}, 1.0)]
    assert plain.estimator.weights == [0.5]


class RowRecorder:
    """Records its rows, and predicts nothing before the third."""

    def __init__(self) -> None:
        self.rows: list[Any] = []
        self.weights: list[float] = []

    def learn_one(self, x: dict[Any, Any], y: float, w: float = 1.0) -> None:
        """Record a row."""
        self.rows.append((x, y))
        self.weights.append(w)

    def predict_one(self, x: dict[Any, Any]) -> float | None:
        """Return the last target, after three rows."""
        return self.rows[-1][1] if len(self.rows) >= 3 else None


def test_a_missing_prediction_is_null_and_not_evaluated() -> None:
    """A model without a prediction answers null; prequential metrics begin with its first prediction."""
    bundle = new_bundle(recipe_of(RowRecorder(), kind="regressor"), UPLOADS)
    for i in range(5):
        learned(bundle, [[i]], [i])
        assert predicted(bundle, [[9]]) == [float(i) if i >= 2 else None]
    assert (bundle.metrics()["mean_absolute_error"], bundle.metrics()["rows"]) == (1.0, 2)


@pytest.mark.parametrize(("no", "yes"), [(0, 1), (False, True), ("ham", "spam")], ids=["int", "bool", "str"])
def test_labels_keep_their_type(no: Any, yes: Any) -> None:
    """Integers stay integers where River's binary classifiers predict booleans, and text stays text."""
    model = naive_bayes.GaussianNB() if isinstance(yes, str) else linear_model.LogisticRegression()
    bundle = new_bundle(recipe_of(model), UPLOADS)
    for i in range(40):
        learned(bundle, [[-1.0 + i / 40], [1.0 - i / 80]], [no, yes])
    answers = predicted(bundle, [[-1.0], [1.0]])
    assert answers == [no, yes]
    assert [type(answer) for answer in answers] == [type(no), type(yes)]
    assert bundle.metrics()["accuracy"] > 0.5
    for row in bundle.predict_proba(shape(bundle.recipe, [[-1.0], [1.0]], learning=False)):
        assert sum(row) == pytest.approx(1)
    assert bundle.score(shape(bundle.recipe, [[-1.0], [1.0]], [no, yes], learning=True))["accuracy"] == 1.0


def test_kinds_follow_rivers_classes() -> None:
    """The class of a model, or of the last step of a pipeline, defines its kind."""
    kinds = {
        "regressor": tree.HoeffdingTreeRegressor(),
        "classifier": preprocessing.StandardScaler() | tree.HoeffdingTreeClassifier(),
        "clusterer": cluster.KMeans(n_clusters=2, seed=1),
        "outlier_detector": anomaly.HalfSpaceTrees(seed=1),
        "transformer": preprocessing.StandardScaler(),
    }
    for kind, model in kinds.items():
        header = uploads.header_of(dump(model, KEYS))
        assert (header.kind, header.calls, header.runtime["river"]) == (kind, "learn_one", river.__version__)
        bundle = new_bundle(recipe_of(model), UPLOADS)
        X, y = [[0.1, 0.2], [0.8, 0.9]], {"regressor": [1.0, 2.0], "classifier": ["a", "b"]}.get(kind)
        learned(bundle, X, y)
        learned(bundle, X, y)
        answers = predicted(stored(bundle), X)
        assert len(answers) == 2
        assert None not in answers
        if kind == "transformer":
            assert answers[0] == pytest.approx({"0": -1.0, "1": -1.0})
        assert bundle.runtime.keys() == {"python", "scikit-learn", "numpy", "cloudpickle", "river"}


def test_a_model_with_learn_many_gets_a_frame() -> None:
    """A model that has only learn_many gets a data frame of the request, and predicts with predict_many."""
    pytest.importorskip("pandas", reason="the extra `frames` is not installed")

    class Many:
        def __init__(self) -> None:
            self.total = 0.0

        def learn_many(self, X: Any, y: Any) -> None:
            self.total += float((X["a"] * y).sum())

        def predict_many(self, X: Any) -> Any:
            return X["a"] * self.total

    bundle = new_bundle(recipe_of(Many(), kind="regressor", features={"a": "number"}), UPLOADS)
    learned(bundle, [[1], [2]], [3, 4])
    assert predicted(stored(bundle), [[1], [10]]) == [11.0, 110.0]


@pytest.mark.parametrize("more", [{"scaler": "StandardScaler"}, {"encoding": "onehot"}], ids=["scaler", "encoding"])
def test_scaler_and_encoding_are_rejected(more: dict[str, Any]) -> None:
    """A model that receives rows unchanged takes neither scaler nor encoding."""
    with pytest.raises(InvalidError, match="LinearRegression receives rows unchanged: leave out scaler and encoding"):
        recipe_of(linear_model.LinearRegression(), features={"a": "number"}, **more)


def test_models_with_several_targets_are_rejected() -> None:
    """A model with several targets is rejected when it is dumped, with the reason."""
    model = multioutput.RegressorChain(linear_model.LinearRegression(), order=[0, 1])
    with pytest.raises(InvalidError, match="RegressorChain is River's MultiTargetRegressor"):
        dump(model, KEYS)


def test_a_river_model_makes_an_object_bundle() -> None:
    """The bundle of a River model is an ObjectBundle, which contains its failures."""
    recipe = parse({"object": dump(linear_model.LinearRegression(), KEYS)}, UPLOADS)
    assert type(new_bundle(recipe, UPLOADS)) is ObjectBundle
