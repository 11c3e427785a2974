"""River's models as uploaded objects: rows are dicts of unencoded values, labels are unchanged."""

from typing import Any

import pytest

from keepfit.errors import InvalidError
from keepfit.model.object_answers import is_unchanged_by_questions
from keepfit.model.object_bundle import ObjectBundle, new_bundle
from keepfit.objects import dump
from keepfit.recipe import uploads
from keepfit.recipe.recipe import parse
from tests.keepfit.test_objects import KEYS, UPLOADS, learned, predicted, recipe_of, shape, stored

river = pytest.importorskip("river", reason="the extra `river` is not installed")
from river import (  # noqa: E402 - behind the line that skips all of it
    anomaly,
    base,
    cluster,
    compose,
    datasets,
    linear_model,
    metrics,
    multioutput,
    naive_bayes,
    optim,
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


def test_a_river_model_makes_an_object_bundle() -> None:
    """The bundle of a River model is an ObjectBundle, which contains its failures."""
    recipe = parse({"object": dump(linear_model.LinearRegression(), KEYS)}, UPLOADS)
    assert type(new_bundle(recipe, UPLOADS)) is ObjectBundle


@pytest.mark.parametrize(
    ("model", "metric", "published"),
    [
        (lambda: linear_model.LogisticRegression(optimizer=optim.SGD(0.1)), "accuracy", 0.8896),
        (linear_model.Perceptron, "accuracy", 0.8584),
        (lambda: linear_model.LinearRegression(intercept_lr=0.1), "mean_absolute_error", 0.558735),
        (
            lambda: tree.HoeffdingTreeRegressor(grace_period=100, model_selector_decay=0.9),
            "mean_absolute_error",
            0.793345,
        ),
    ],
    ids=["logistic", "perceptron", "linear", "tree"],
)  # fmt: skip
def test_metrics_are_the_figures_that_river_publishes(model: Any, metric: str, published: float) -> None:
    """Single rows give the accuracy and error in the docstrings of River's classes, from the first row on."""
    stream = datasets.Phishing() if metric == "accuracy" else datasets.TrumpApproval()
    scaled = preprocessing.StandardScaler() | model()
    bundle = new_bundle(recipe_of(scaled, features=dict.fromkeys(next(iter(stream))[0], "number")), UPLOADS)
    for x, y in stream:
        learned(bundle, [x], [y])
    assert bundle.metrics()["rows"] == stream.n_samples
    assert bundle.metrics()[metric] == pytest.approx(published, abs=5e-5 if metric == "accuracy" else 5e-7)


def test_river_is_asked_once_for_label_and_probabilities() -> None:
    """A classifier that derives its label from its probabilities is asked once; the log loss is River's."""

    class Counted(naive_bayes.GaussianNB):
        asked = 0

        def predict_proba_one(self, x: Any, **more: Any) -> Any:
            self.asked += 1
            return super().predict_proba_one(x, **more)

    alone, loss, right = Counted(), metrics.LogLoss(), metrics.Accuracy()
    bundle = new_bundle(recipe_of(Counted(), features=dict.fromkeys(NAMES, "number")), UPLOADS)
    for x, y in PHISHING:
        # As River's evaluation does, rows without a prediction are not counted.
        chances = alone.predict_proba_one({name: float(value) for name, value in x.items()})
        if chances:
            loss.update(y, chances)
            right.update(y, max(chances, key=chances.get))
        alone.learn_one({name: float(value) for name, value in x.items()}, y)
        learned(bundle, [x], [y])
    assert bundle.estimator.asked == alone.asked == len(PHISHING)
    assert bundle.metrics()["rows"] == len(PHISHING) - 1
    assert bundle.metrics()["accuracy"] == pytest.approx(right.get())
    # River clips at 1e-15, and keepfit where scikit-learn does.
    assert bundle.metrics()["log_loss"] == pytest.approx(loss.get(), rel=0.02)


def test_a_river_model_that_was_trained_before_has_labels_of_its_own() -> None:
    """Probabilities name the labels that only the model knows; right answers count as right."""
    model = naive_bayes.GaussianNB()
    for x, y in PHISHING:
        model.learn_one({name: float(value) for name, value in x.items()}, "phish" if y else "clean")
    bundle = new_bundle(recipe_of(model, features=dict.fromkeys(NAMES, "number")), UPLOADS)
    rows = shape(bundle.recipe, [PHISHING[0][0]], learning=False)
    assert set(bundle.confidences(rows)["classes"]) == {"phish", "clean"}
    y = ["phish" if label else "clean" for _, label in PHISHING]
    scored = bundle.score(shape(bundle.recipe, [x for x, _ in PHISHING], y, learning=True))
    answers = [model.predict_one(x) for x, _ in PHISHING]
    assert scored["accuracy"] == pytest.approx(sum(map(str.__eq__, answers, y)) / len(y))


def test_kinds_without_a_target_are_not_evaluated() -> None:
    """Clusterers, anomaly detectors and transformers have no metrics and no score, and answer before they learn."""
    for model in (cluster.KMeans(n_clusters=2, seed=1), anomaly.HalfSpaceTrees(seed=1), preprocessing.StandardScaler()):
        bundle = new_bundle(recipe_of(model), UPLOADS)
        learned(bundle, [[0.1, 0.2], [0.8, 0.9]])
        assert bundle.metrics() == {}
        with pytest.raises(InvalidError, match="takes no y"):
            bundle.score(shape(bundle.recipe, [[0.1, 0.2]], learning=True))


TARGETS = [({"a": i / 10, "b": float(i % 3)}, {"u": i / 5, "v": 1.0 - i % 3}) for i in range(60)]


def chain(base: Any, order: list[Any]) -> Any:
    """Return a chain of River's models, one per target."""
    wrapped = multioutput.RegressorChain if isinstance(base, linear_model.LinearRegression) else None
    return (wrapped or multioutput.ClassifierChain)(base, order=order)


def test_several_targets_equal_river() -> None:
    """A model with several targets predicts, and is evaluated and scored, as River's own loop over dicts."""
    model = chain(linear_model.LinearRegression(), ["u", "v"])
    bundle: Any = new_bundle(recipe_of(model.clone()), UPLOADS)
    errors: dict[str, list[float]] = {"u": [], "v": []}
    for i, (x, y) in enumerate(TARGETS):
        known = model.predict_one(x)
        assert predicted(bundle, [x]) == [known] if i else True
        for name in known:
            errors[name].append(abs(known[name] - y[name]))
        learned(bundle, [x], [y])
        model.learn_one(x, y)
        if i % 20 == 0:
            bundle = stored(bundle)
    found = bundle.metrics()
    for name, output in zip("uv", found["outputs"], strict=True):
        assert output["target"] == name
        assert output["rows"] == len(errors[name])
        assert output["mean_absolute_error"] == pytest.approx(sum(errors[name]) / len(errors[name]))
    assert found["mean_absolute_error"] == pytest.approx(
        sum(output["mean_absolute_error"] for output in found["outputs"]) / 2
    )
    probed = [TARGETS[3], TARGETS[7]]
    scored = bundle.score(shape(bundle.recipe, [x for x, _ in probed], [y for _, y in probed], learning=True))
    expected = [sum(abs(model.predict_one(x)[n] - y[n]) for x, y in probed) / 2 for n in "uv"]
    assert scored["mean_absolute_error"] == pytest.approx(sum(expected) / 2)


def test_a_batch_of_several_targets_equals_single_rows() -> None:
    """Rows with several targets leave the same model and counts in one request as in one request each."""
    alone, together = [
        new_bundle(recipe_of(chain(linear_model.LinearRegression(), ["u", "v"])), UPLOADS) for _ in range(2)
    ]
    for x, y in TARGETS:
        learned(alone, [x], [y])
    learned(together, [x for x, _ in TARGETS], [y for _, y in TARGETS])
    probed = [x for x, _ in TARGETS[:5]]
    assert predicted(alone, probed) == predicted(together, probed)
    assert alone.targets == together.targets == ["u", "v"]


@pytest.mark.parametrize(("no", "yes"), [(False, True), (0, 1)])
def test_labels_of_several_targets_keep_their_type(no: Any, yes: Any) -> None:
    """A model with several labels answers booleans or integers, as each target was sent, and is judged by them."""
    bundle: Any = new_bundle(recipe_of(chain(linear_model.LogisticRegression(), ["u", "v"])), UPLOADS)
    targets = [{"u": yes if x["a"] > 3 else no, "v": yes if x["b"] else no} for x, _ in TARGETS]
    learned(bundle, [x for x, _ in TARGETS], targets)
    learned(bundle, [x for x, _ in TARGETS], targets)
    answers = predicted(bundle, [x for x, _ in TARGETS])
    assert {type(value) for answer in answers for value in answer.values()} == {type(no)}
    right = sum(a[name] == t[name] for a, t in zip(answers, targets, strict=True) for name in "uv")
    scored = bundle.score(shape(bundle.recipe, [x for x, _ in TARGETS], targets, learning=True))
    assert scored["accuracy"] == pytest.approx(right / 120)
    outputs = stored(bundle).metrics()["outputs"]
    assert [(output["target"], output["rows"], output["confusion"]["classes"]) for output in outputs] == [
        ("u", 120, [no, yes]),
        ("v", 120, [no, yes]),
    ]
    with pytest.raises(InvalidError, match="has no probabilities"):
        bundle.predict_proba(shape(bundle.recipe, [{"a": 1.0}], learning=False))


class Cautious(base.MultiTargetRegressor):  # type: ignore[misc]
    """A model that raises for some rows and answers no number for others."""

    def learn_one(self, x: Any, y: Any) -> None:
        """Learn nothing."""

    def predict_one(self, x: Any) -> Any:
        """Return an answer that depends on the column `a`."""
        if x["a"] < 0:
            raise ValueError("negative")
        if x["a"] > 5:
            return {"u": float("inf"), "v": 1.0}
        return {"u": 1.0, "v": "text" if x["a"] > 3 else 1.0}


def test_rows_that_several_targets_lack_are_counted() -> None:
    """A score of several targets leaves out rows that cannot be predicted and answers that are no numbers."""
    bundle: Any = new_bundle(recipe_of(Cautious()), UPLOADS)
    X, y = [{"a": value} for value in (1.0, -1.0, 4.0, 9.0)], [{"u": 2.0, "v": 4.0}] * 4
    learned(bundle, X[:1], y[:1])
    learned(bundle, X, y)
    assert [output["rows"] for output in bundle.metrics()["outputs"]] == [3, 3]
    scored = bundle.score(shape(bundle.recipe, X, y, learning=True))
    assert scored == {"max_error": 3.0, "mean_absolute_error": 2.0, "r2": 0.0, "rows_without_prediction": 3}
    # Of one target no row is evaluated: the other one has its scores and metrics.
    scored = bundle.score(shape(bundle.recipe, X[3:], y[3:], learning=True))
    assert scored == {"max_error": 3.0, "mean_absolute_error": 3.0, "r2": None, "rows_without_prediction": 1}
    with pytest.raises(InvalidError, match="cannot predict these rows: ValueError: negative"):
        bundle.score(shape(bundle.recipe, X[1:2], y[1:2], learning=True))


class OwnLoss(optim.losses.Squared):  # type: ignore[misc]
    """A loss of the user, which River calls for an answer."""


def own_function(row: Any) -> Any:
    """Return the row."""
    return row


@pytest.mark.parametrize(
    ("model", "unchanged"),
    [
        (preprocessing.StandardScaler() | linear_model.LinearRegression(), True),
        (tree.HoeffdingTreeClassifier(), True),
        (compose.FuncTransformer(own_function) | linear_model.LinearRegression(), False),
        (linear_model.LinearRegression(loss=OwnLoss()), False),
    ],
)
def test_only_code_of_river_itself_may_be_asked_freely(model: Any, unchanged: bool) -> None:
    """A class or function of the user inside a model of River may change it when it is asked."""
    assert is_unchanged_by_questions(model) is unchanged


def test_lists_are_targets_by_position() -> None:
    """Targets as lists reach the model by position, and are answered as lists."""
    model = tree.ISOUPTreeRegressor()
    bundle: Any = new_bundle(recipe_of(model.clone()), UPLOADS)
    for x, y in TARGETS:
        learned(bundle, [x], [[y["u"], y["v"]]])
        model.learn_one(x, {0: y["u"], 1: y["v"]})
    expected = model.predict_one(TARGETS[0][0])
    assert predicted(bundle, [TARGETS[0][0]]) == [[expected[0], expected[1]]]


def test_a_target_may_follow_later() -> None:
    """Names of targets may differ between requests: each is evaluated in the rows that have it."""
    bundle: Any = new_bundle(recipe_of(multioutput.ClassifierChain(linear_model.LogisticRegression())), UPLOADS)
    for y in ({"u": True}, {"u": True, "v": False}, {"v": True}):
        learned(bundle, [{"a": 1.0}], [y])
    assert bundle.targets == ["u", "v"]
    assert [output["target"] for output in bundle.metrics().get("outputs", [])] in (["u", "v"], [])


@pytest.mark.parametrize(
    ("y", "message"),
    [
        ([1.0, 2.0], "target 'y': a target is an object or a list of 1 to 1000 values, one for each output (row 0)"),
        ([{}, {}], "an object or a list of 1 to 1000 values"),
        ([{"u": 1}, {"v": 1}], "the row has other targets than the first row (row 1)"),
        ([{"u": 1}, [1]], "the row has other targets than the first row (row 1)"),
        ([{"u": 1}, {"u": None}], "null is not a number (row 1)"),
        ([{"u": 1}, {"u": True}], "true is not a number (row 1)"),
        ([{"u": 1}, {"u": [1]}], "a list is not a number (row 1)"),
        ([{"": 1}, {"": 1}], "the name is empty"),
        ([{"u": 1}], "X has 2 rows and y has 1 values"),
        (None, "y must be a list of 2"),
    ],
)
def test_invalid_targets_are_rejected(y: Any, message: str) -> None:
    """Targets that are no objects, lack a value or differ between the rows of a request are rejected with their row."""
    recipe = recipe_of(chain(linear_model.LinearRegression(), ["u", "v"]))
    with pytest.raises(InvalidError) as caught:
        shape(recipe, [{"a": 1}, {"a": 2}], y, learning=True)
    assert message in str(caught.value)


def test_multi_output_needs_a_model_with_learn_one() -> None:
    """Several targets are for River's regressors and classifiers; a recipe for one names no classes."""
    with pytest.raises(InvalidError, match="cannot have several targets"):
        dump(preprocessing.StandardScaler(), KEYS, multi_output=True)
    with pytest.raises(InvalidError, match="has several targets: leave out classes"):
        recipe_of(chain(linear_model.LogisticRegression(), ["u"]), classes=[["a"]])
