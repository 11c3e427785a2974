"""Prequential metrics over all rows and over the window equal scikit-learn's for the same rows."""

import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from keepfit.errors import InvalidError
from keepfit.model.bundle import Bundle
from keepfit.model.prequential import PARTS, PrequentialScores, combine_outputs
from keepfit.model.sums import CONFUSION_MAX, NO_LABEL
from keepfit.recipe.recipe import parse
from keepfit.rows.shaping import shape

numbers = st.floats(-1e6, 1e6)
sizes = st.lists(st.integers(1, 70), min_size=1, max_size=12)


class Baseline:
    """The mean of all numbers, or the most frequent label, of the requests before."""

    def __init__(self, kind: str) -> None:
        self.kind, self.targets, self.counts, self.best = kind, list[Any](), dict[int, int](), 0
        self.right: list[float] = []

    def step(self, y: Any) -> None:
        """Answer the rows of a request, then learn their targets."""
        if self.targets:
            answer = np.mean(self.targets) if self.kind == "regressor" else self.best
            self.right += (np.abs(y - answer) if self.kind == "regressor" else y == answer).tolist()
        self.targets += y.tolist()
        for code in y.tolist():
            self.counts[code] = self.counts.get(code, 0) + 1
        most = max(self.counts.values())
        if self.counts.get(self.best, 0) < most:
            self.best = min(code for code, count in self.counts.items() if count == most)


def baseline_of(kind: str, batch_sizes: list[int], y: Any) -> list[float]:
    """Return the baseline's errors, or whether it is right, for each row from the second request on."""
    baseline, start = Baseline(kind), 0
    for size in batch_sizes:
        baseline.step(y[start : start + size])
        start += size
    return baseline.right


def evaluated(
    kind: Any, window: int, batch_sizes: list[int], y: Any, predicted: Any, probabilities: Any = None
) -> PrequentialScores:
    """Return the scores after updating with batches of the given sizes, pickled and loaded after each."""
    scores, start = PrequentialScores(window), 0
    for size in batch_sizes:
        part = slice(start, start + size)
        scores.update(kind, y[part], predicted[part], None if probabilities is None else probabilities[part])
        scores.learn(kind, y[part])
        scores, start = pickle.loads(pickle.dumps(scores)), start + size
    return scores


def test_there_are_no_metrics_before_the_first_row() -> None:
    """A model that was never evaluated has no metrics, not zeros."""
    assert PrequentialScores(100).metrics() == combine_outputs([]) == combine_outputs([PrequentialScores(100)]) == {}
    assert PrequentialScores(100).is_finite


@settings(deadline=None, max_examples=60)
@given(sizes, st.integers(10, 95), st.integers(0, 2**32 - 1))
def test_regression_metrics_equal_scikit_learns(batch_sizes: list[int], window: int, seed: int) -> None:
    """MAE, RMSE and R² equal scikit-learn's over all rows and over the window, for any batch sizes."""
    random = np.random.default_rng(seed)
    y = random.normal(1e5, 10, sum(batch_sizes))
    predicted = y + random.normal(0, 3, len(y))
    values = evaluated("regressor", window, batch_sizes, y, predicted).metrics()
    recent = values["window"]
    assert values["rows"] == len(y)
    assert min(len(y), window - 2 * PARTS) <= recent["rows"] <= window
    for metrics, last in ((values, len(y)), (recent, recent["rows"])):
        pair = y[-last:], predicted[-last:]
        assert metrics["mean_absolute_error"] == pytest.approx(sk.mean_absolute_error(*pair), rel=1e-9)
        assert metrics["root_mean_squared_error"] == pytest.approx(sk.root_mean_squared_error(*pair), rel=1e-9)
        expected = sk.r2_score(*pair) if last > 1 else None
        assert metrics["r2"] == (None if expected is None else pytest.approx(expected, rel=1e-6, abs=1e-6))
        errors = baseline_of("regressor", batch_sizes, y)[-last:]
        baseline = pytest.approx(np.mean(errors), rel=1e-9) if errors else None
        assert metrics["baseline_mean_absolute_error"] == baseline


@settings(deadline=None, max_examples=60)
@given(sizes, st.integers(2, 5), st.booleans(), st.integers(0, 2**32 - 1))
def test_classification_metrics_equal_scikit_learns(batch_sizes: list[int], k: int, proba: bool, seed: int) -> None:
    """Accuracy, macro F1, log loss and confusion equal scikit-learn's over all rows and the last `window.rows`."""
    random = np.random.default_rng(seed)
    n = sum(batch_sizes)
    y, predicted = random.integers(0, k, (2, n))
    probabilities = random.dirichlet(np.ones(k), n) if proba else None
    known = [f"label {code}" for code in range(k)]
    values = evaluated("classifier", 40, batch_sizes, y, predicted, probabilities).metrics(known)
    for metrics, last in ((values, n), (values["window"], values["window"]["rows"])):
        pair = y[-last:], predicted[-last:]
        assert metrics["accuracy"] == pytest.approx(sk.accuracy_score(*pair))
        assert metrics["f1"] == pytest.approx(sk.f1_score(*pair, average="macro", zero_division=0.0))
        right = baseline_of("classifier", batch_sizes, y)[-last:]
        assert metrics["baseline_accuracy"] == (pytest.approx(np.mean(right)) if right else None)
        assert metrics["confusion"]["classes"] == known
        assert metrics["confusion"]["counts"] == sk.confusion_matrix(*pair, labels=range(k)).tolist()
        if probabilities is None:
            assert "log_loss" not in metrics
        else:
            expected = sk.log_loss(pair[0], probabilities[-last:], labels=range(k))
            assert metrics["log_loss"] == pytest.approx(expected, rel=1e-9)


def test_single_rows_and_batches_give_the_same_window() -> None:
    """The parts of the window do not depend on how rows are grouped into requests."""
    random = np.random.default_rng(3)
    y, predicted = random.integers(0, 3, (2, 500))
    one_by_one = evaluated("classifier", 50, [1] * 500, y, predicted)
    # The baseline answers a request as a whole, so its last two sums depend on the grouping.
    parts = [part[:-2] for part in one_by_one.parts]
    assert parts == [part[:-2] for part in evaluated("classifier", 50, [500], y, predicted).parts]
    assert parts == [part[:-2] for part in evaluated("classifier", 50, [3, 496, 1], y, predicted).parts]


def test_many_labels_have_exact_scores_and_no_confusion_matrix() -> None:
    """With more labels than a confusion matrix has, accuracy and F1 are exact and the state stays small."""
    random = np.random.default_rng(4)
    k = 20 * CONFUSION_MAX
    y, predicted = random.integers(0, k, (2, 5000))
    scores = evaluated("classifier", 1000, [1000] * 5, y, predicted)
    values = scores.metrics(list(range(k)))
    assert values["accuracy"] == pytest.approx(sk.accuracy_score(y, predicted))
    assert values["f1"] == pytest.approx(sk.f1_score(y, predicted, average="macro", zero_division=0.0))
    assert "confusion" not in values
    assert len(scores.total[3]) <= CONFUSION_MAX**2 + 3 * k


def test_an_unknown_class_has_the_minimum_probability() -> None:
    """A late label without a column of probabilities has the minimum to which scikit-learn clips."""
    scores = PrequentialScores(100)
    scores.update("classifier", np.array([2]), np.array([0]), np.array([[0.5, 0.5]]))
    scores.update("classifier", np.array([2, 0]), np.array([0, 0]), np.array([[0.5, 0.5], [0.5, 0.5]]))
    loss_max = -np.log(np.finfo(np.float64).eps)
    assert scores.metrics([0, 1, 2])["log_loss"] == pytest.approx((2 * loss_max + np.log(2)) / 3)


def test_r2_of_equal_targets_is_undefined() -> None:
    """Equal targets have no variance to explain, and rounding must not create one."""
    scores = PrequentialScores(100)
    for _ in range(50):
        scores.update("regressor", np.array([0.1]), np.array([0.3]))
    assert scores.metrics()["r2"] is None


def test_several_outputs_have_mean_and_individual_metrics() -> None:
    """The metrics of several outputs are their means, with those of each output under ``outputs``."""
    outputs = [PrequentialScores(100), PrequentialScores(100)]
    for scores, error in zip(outputs, (1.0, 3.0), strict=True):
        scores.update("regressor", np.array([1.0, 2.0]), np.array([1.0, 2.0]) + error)
    metrics = combine_outputs(outputs)
    assert (metrics["mean_absolute_error"], metrics["rows"]) == (2.0, 2)
    assert metrics["window"]["mean_absolute_error"] == 2.0
    assert [values["mean_absolute_error"] for values in metrics["outputs"]] == [1.0, 3.0]


def test_an_output_without_an_evaluated_row_hides_no_other_output() -> None:
    """The means are those of the outputs that were evaluated; one that was not has no metrics under ``outputs``."""
    outputs = [PrequentialScores(100) for _ in range(3)]
    outputs[0].update("regressor", np.array([1.0, 2.0]), np.array([2.0, 3.0]))
    outputs[2].update("regressor", np.array([1.0]), np.array([4.0]))
    metrics = combine_outputs(outputs)
    assert (metrics["mean_absolute_error"], metrics["rows"], metrics["outputs"][1]) == (2.0, 2, {})
    assert (metrics["window"]["mean_absolute_error"], metrics["window"]["rows"]) == (2.0, 2)
    assert combine_outputs([PrequentialScores(100), PrequentialScores(100)]) == {}


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("truth", [0, CONFUSION_MAX - 1, CONFUSION_MAX, 500])
def test_a_prediction_that_is_no_known_label_is_wrong(truth: int, batch: int) -> None:
    """An answer without a label is wrong for any true label, also for those beyond the confusion matrix."""
    scores = PrequentialScores(100)
    for _ in range(2):
        scores.update("classifier", np.array([truth] * batch), np.array([NO_LABEL] * batch))
    metrics = scores.metrics(list(range(truth + 1)))
    assert (metrics["accuracy"], metrics["f1"], metrics["window"]["accuracy"]) == (0.0, 0.0, 0.0)
    scores.update("classifier", np.array([truth] * 2 * batch), np.array([truth] * 2 * batch))
    metrics = scores.metrics(list(range(truth + 1)))
    assert (metrics["accuracy"], metrics["f1"]) == (0.5, pytest.approx(2 / 3))


def test_sums_that_overflow_are_not_finite() -> None:
    """A prediction with a huge error makes the sums infinite, which is_finite reports before a commit."""
    scores = PrequentialScores(100)
    scores.update("regressor", np.array([0.0]), np.array([1e200]))
    assert not scores.is_finite


def test_each_request_is_evaluated_before_it_is_learned() -> None:
    """The metrics of a bundle equal those of a loop that predicts and then learns each request, from the second on."""
    recipe = parse({"estimator": "SGDClassifier", "params": {"loss": "log_loss"}, "classes": ["a", "b"], "window": 10})
    bundle, y, predicted, probabilities = Bundle.new(recipe), [], [], []
    random = np.random.default_rng(5)
    for i in range(40):
        label = "ab"[int(random.integers(2))]
        rows = shape(recipe, [random.normal(label == "a", 1, 2).tolist()], [label], learning=True)
        if i:
            y.append(label)
            predicted += bundle.predict(rows)
            probabilities += bundle.predict_proba(rows)
        bundle.partial_fit(rows)
    metrics = bundle.metrics()
    assert metrics["rows"] == 39
    assert metrics["accuracy"] == pytest.approx(sk.accuracy_score(y, predicted))
    assert metrics["log_loss"] == pytest.approx(sk.log_loss(y, probabilities, labels=["a", "b"]))
    assert metrics["window"]["rows"] == 10
    assert metrics["window"]["accuracy"] == pytest.approx(sk.accuracy_score(y[-10:], predicted[-10:]))


def test_the_baseline_of_a_stored_bundle_without_one_begins_with_the_next_rows() -> None:
    """Scores that 0.1 stored keep their metrics; the baseline answers from the second request on."""
    scores = PrequentialScores.from_stored(100, [2, 3.0, 5.0, 1.0, 1.0], [[2, 3.0, 5.0, 1.0, 1.0]], 4.0)
    metrics = scores.metrics()
    assert (metrics["mean_absolute_error"], metrics["baseline_mean_absolute_error"]) == (1.5, None)
    for target in (10.0, 14.0):
        scores.update("regressor", np.array([target]), np.array([11.0]))
        scores.learn("regressor", np.array([target]))
    metrics = scores.metrics()
    assert (metrics["rows"], metrics["baseline_mean_absolute_error"]) == (4, 4.0)
    assert metrics["window"]["baseline_mean_absolute_error"] == 4.0
    labels = PrequentialScores.from_stored(100, [1, 0, 0.0, {}], [[1, 0, 0.0, {}]], 0.0)
    labels.learn("classifier", np.array([1]))
    labels.update("classifier", np.array([1, 0]), np.array([0, 0]))
    assert labels.metrics(["a", "b"])["baseline_accuracy"] == 0.5


def test_predictions_that_are_not_finite_are_not_evaluated() -> None:
    """Rows of a regressor without a finite prediction are in no metric, and the sums stay finite."""
    scores = PrequentialScores(100)
    scores.update("regressor", np.array([1.0]), np.array([np.nan]))
    assert scores.metrics() == {}
    scores.update("regressor", np.array([1.0, 2.0, 3.0]), np.array([np.inf, 4.0, -np.inf]))
    assert (scores.metrics()["rows"], scores.metrics()["mean_absolute_error"]) == (1, 2.0)
    assert scores.is_finite


def model_of(document: dict[str, Any]) -> tuple[Bundle, Any]:
    """Return a new bundle, and a function that lets it learn the rows of one request."""
    recipe = parse(document)
    bundle = Bundle.new(recipe)
    return bundle, lambda X, y, w=None: bundle.partial_fit(shape(recipe, X, y, w, learning=True))


def test_the_request_that_brings_a_label_is_judged_without_it() -> None:
    """A new label, the second one too, counts as wrong and as improbable in the request that brings it."""
    bundle, learn = model_of({"estimator": "SGDClassifier", "params": {"loss": "log_loss"}})
    learn([[1.0]], ["a"])
    learn([[1.0]], ["a"])
    assert bundle.metrics()["log_loss"] == 0.0
    only = shape(bundle.recipe, [[1.0], [-9.0]], ["a", "a"], learning=True)
    assert bundle.score(only) == {"accuracy": 1.0, "f1": 1.0, "log_loss": 0.0}
    # The answer is still "a", with the probability 1.
    learn([[-9.0], [-9.0], [1.0]], ["b", "b", "a"])
    metrics = bundle.metrics()
    assert metrics["accuracy"] == 0.5
    assert metrics["log_loss"] == pytest.approx(2 * -np.log(np.finfo(float).eps) / 4)
    assert metrics["confusion"] == {"classes": ["a", "b"], "counts": [[2, 0], [2, 0]]}
    assert metrics["baseline_accuracy"] == 0.5


def test_a_label_appears_in_a_merged_group() -> None:
    """In one call of several requests, no row is judged by a model that knows the labels of that call."""
    bundle, learn = model_of({"estimator": "GaussianNB", "updates": "merged"})
    learn([[0.0], [1.0]], ["a", "a"])
    learn([[0.5], [9.0], [9.5]], ["a", "b", "c"])
    assert bundle.metrics()["confusion"]["counts"] == [[1, 0, 0], [1, 0, 0], [1, 0, 0]]
    assert bundle.metrics()["log_loss"] == pytest.approx(2 * -np.log(np.finfo(float).eps) / 3)


def test_each_output_is_judged_before_its_labels_are_learned() -> None:
    """The outputs of a multi-output classifier are judged as answered: with probability 1 while one label is known."""
    bundle, learn = model_of({
        "estimator": "MultiOutputClassifier", "params": {"estimator": {"SGDClassifier": {"loss": "log_loss"}}}
    })  # fmt: skip
    learn([[1.0]], [["a", 1]])
    assert bundle.metrics() == {}
    learn([[1.0], [2.0]], [["a", 2], ["a", 1]])
    first, second = bundle.metrics()["outputs"]
    assert (first["accuracy"], first["log_loss"], first["baseline_accuracy"]) == (1.0, 0.0, 1.0)
    assert (second["accuracy"], second["baseline_accuracy"]) == (0.5, 0.5)
    assert second["log_loss"] == pytest.approx(-np.log(np.finfo(float).eps) / 2)


def test_weights_do_not_change_the_metrics() -> None:
    """Each row counts once in the metrics and in their baseline, also with the weight 0."""
    for document, y in (({"estimator": "SGDRegressor"}, [5.0, 1.0, 4.0]), ({"estimator": "GaussianNB"}, [1, 2, 1])):
        bundle, learn = model_of(document)
        learn([[1.0], [2.0]], y[:2], [1.0, 0.5])
        predicted = np.array(bundle.predict(shape(bundle.recipe, [[1.0], [2.0], [3.0]], learning=False)))
        learn([[1.0], [2.0], [3.0]], y, [0.0, 1.0, 7.0])
        metrics = bundle.metrics()
        assert metrics["rows"] == 3
        if document["estimator"] == "SGDRegressor":
            assert metrics["mean_absolute_error"] == pytest.approx(np.mean(np.abs(predicted - y)))
            assert metrics["baseline_mean_absolute_error"] == pytest.approx(np.mean(np.abs(np.array(y) - 3.0)))
        else:
            assert metrics["accuracy"] == np.mean(predicted == y)
            assert metrics["baseline_accuracy"] == 2 / 3


def test_one_row_that_cannot_be_predicted_does_not_hide_the_others() -> None:
    """CategoricalNB cannot predict a code that it has not learned; the other rows of its request are evaluated."""
    bundle, learn = model_of({"estimator": "CategoricalNB", "features": {"make": "number"}, "classes": ["no", "yes"]})
    learn([[0], [1]], ["no", "yes"])
    learn([[0], [7], [1]], ["no", "yes", "no"])
    assert (bundle.metrics()["rows"], bundle.metrics()["accuracy"]) == (2, 0.5)
    assert bundle.metrics()["log_loss"] > 0
    scored = bundle.score(shape(bundle.recipe, [[1], [8]], ["no", "no"], learning=True))
    assert (scored["accuracy"], scored["rows_without_prediction"]) == (1.0, 1)
    with pytest.raises(
        InvalidError, match="column 'make': 8 is a category that was not learned; the model knows 0 to 7"
    ):
        bundle.score(shape(bundle.recipe, [[8]], ["no"], learning=True))


@pytest.mark.parametrize("estimator", ["CategoricalNB", "OneVsRestClassifier"])
def test_all_rows_that_can_be_predicted_are_evaluated(estimator: str) -> None:
    """Every other row has a category that was not learned, so that no half of the rows can be predicted as a whole."""
    params = {} if estimator == "CategoricalNB" else {"estimator": {"CategoricalNB": {}}}
    document = {"estimator": estimator, "params": params, "features": {"make": "number"}, "classes": ["no", "yes"]}
    bundle, learn = model_of(document)
    learn([[0], [1]], ["no", "yes"])
    rows, y = [[i % 2 + 7.0 * (i // 2 % 2)] for i in range(800)], ["no", "yes"] * 400
    scored = bundle.score(shape(bundle.recipe, rows, y, learning=True))
    assert (scored["accuracy"], scored["rows_without_prediction"]) == (1.0, 400)
    learn(rows, y)
    assert (bundle.metrics()["rows"], bundle.metrics()["accuracy"]) == (400, 1.0)
    with pytest.raises(InvalidError, match="column 'make': 9 is a category that was not learned"):
        bundle.predict(shape(bundle.recipe, [[9]], learning=False))


@pytest.mark.parametrize("value", [-1.0, 65_536.0, 1.7e9])
def test_categorical_bayes_refuses_numbers_that_are_no_codes(value: float) -> None:
    """A number that CategoricalNB cannot count is refused with its column, learned or predicted."""
    features = {"size": "number", "sold": "number"}
    bundle, learn = model_of({"estimator": "CategoricalNB", "features": features, "classes": ["no", "yes"]})
    learn([[0, 0], [1, 65_535]], ["no", "yes"])
    with pytest.raises(InvalidError, match=r"column 'sold': \S+ is (not the|no) code of a category"):
        learn([[0, value]], ["no"])
    rows = shape(bundle.recipe, [[0, value]], learning=False)
    for ask in (bundle.predict, bundle.predict_proba):
        with pytest.raises(InvalidError, match=r"column 'sold': \S+ is (not the|no) code of a category"):
            ask(rows)


@pytest.mark.parametrize(
    "document",
    [
        {"estimator": "GaussianNB"},
        {"estimator": "GaussianNB", "classes": ["a", "b", "c"]},
        {"estimator": "GaussianNB", "params": {"var_smoothing": 0.0}},
        {"estimator": "OneVsRestClassifier", "params": {"estimator": {"GaussianNB": {}}}},
        {"estimator": "GaussianNB", "scaler": "StandardScaler"},
    ],
    ids=["plain", "classes", "unsmoothed", "wrapped", "scaled"],
)
def test_single_rows_with_a_constant_column_can_be_evaluated(document: dict[str, Any]) -> None:
    """Naive Bayes after single rows with a constant column is scored; without smoothing, the log loss is None."""
    bundle, learn = model_of(document)
    random = np.random.default_rng(7)
    X = [[float(random.normal(5.0 * (i % 2))), 1.0] for i in range(60)]
    y = ["ab"[i % 2] for i in range(60)]
    for row, label in zip(X, y, strict=True):
        learn([row], [label])
    rows = shape(bundle.recipe, X, y, learning=True)
    score, listed = bundle.score(rows), bundle.predict_proba(rows)
    if document.get("params") == {"var_smoothing": 0.0}:
        assert score["log_loss"] is None
        assert np.isnan(listed).all()
        # The one row that was answered while one label was known.
        assert bundle.metrics()["log_loss"] == pytest.approx(-np.log(np.finfo(float).eps))
    else:
        assert score["accuracy"] is not None
        assert score["accuracy"] > 0.9
        assert score["log_loss"] == pytest.approx(sk.log_loss(y, np.array(listed)[:, :2]), rel=1e-6)
        assert bundle.metrics()["accuracy"] > 0.8
        assert bundle.metrics()["log_loss"] < 36
