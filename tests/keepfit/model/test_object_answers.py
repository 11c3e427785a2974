"""What an uploaded object answers before it learns, and how that is evaluated and scored."""

import random
from functools import partial
from typing import Any

import numpy as np
import pytest
from sklearn import metrics as sk
from sklearn.base import BaseEstimator, ClassifierMixin, MetaEstimatorMixin, RegressorMixin
from sklearn.datasets import load_iris
from sklearn.linear_model import SGDClassifier, SGDRegressor
from sklearn.multiclass import OneVsRestClassifier
from sklearn.naive_bayes import GaussianNB
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

from keepfit.errors import ConflictError, InvalidError
from keepfit.model.bundle import Bundle
from keepfit.model.evaluation import QUESTIONS_MAX
from keepfit.model.object_answers import as_sent, is_unchanged_by_questions
from keepfit.model.object_bundle import new_bundle
from tests.catalogue import state
from tests.keepfit.test_objects import UPLOADS, learned, predicted, recipe_of, sealed, shape, stored

IRIS = load_iris()
ORDER = np.random.default_rng(1).permutation(len(IRIS.data))
X, SPECIES = IRIS.data[ORDER], np.array([str(IRIS.target_names[code]) for code in IRIS.target[ORDER]])
NAMES: dict[str, Any] = {
    "str": SPECIES,
    "int": IRIS.target[ORDER],
    "int8": IRIS.target[ORDER].astype(np.int8),
    "float": IRIS.target[ORDER].astype(float),
    "bool": SPECIES == "setosa",
    "object": SPECIES.astype(object),
}


class Stages(Pipeline):  # type: ignore[misc]
    """A scikit-learn Pipeline with partial_fit, which scikit-learn's own lacks."""

    def partial_fit(self, X: Any, y: Any) -> "Stages":
        """Learn with the last step only."""
        self.steps[-1][1].partial_fit(self[:-1].transform(X), y)
        return self


class Wrapped(MetaEstimatorMixin, ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A meta-estimator whose ``classes_`` are those of its estimator."""

    def __init__(self, estimator: Any) -> None:
        self.estimator = estimator

    @property
    def classes_(self) -> Any:
        """The labels of the estimator."""
        return self.estimator.classes_

    def partial_fit(self, X: Any, y: Any) -> "Wrapped":
        """Learn."""
        self.estimator.partial_fit(X, y)
        return self

    def predict(self, X: Any) -> Any:
        """Predict."""
        return self.estimator.predict(X)


def trained(kind: str, y: Any) -> Any:
    """Return an estimator that has learned all flowers."""
    bayes = GaussianNB().fit(X, y)
    if kind == "pipeline":
        scaler = StandardScaler().fit(X)
        return Stages([("scale", scaler), ("bayes", GaussianNB().fit(scaler.transform(X), y))])
    return {"plain": bayes, "meta": Wrapped(bayes), "wrapper": OneVsRestClassifier(GaussianNB()).fit(X, y)}[kind]


@pytest.mark.parametrize("kind", ["plain", "meta", "wrapper", "pipeline"])
@pytest.mark.parametrize("labels", NAMES)
def test_a_trained_classifier_is_scored_by_its_own_labels(labels: str, kind: str) -> None:
    """A score before and after learning few rows counts what the object answers, whatever the type of its labels."""
    y, model = NAMES[labels], trained(kind, NAMES[labels])
    sent = y.astype(int).tolist() if labels == "float" else y.tolist()
    bundle = new_bundle(recipe_of(model), UPLOADS)
    rows = shape(bundle.recipe, X.tolist(), sent, learning=True)
    before = bundle.score(rows)
    assert before["accuracy"] == pytest.approx(sk.accuracy_score(y, model.predict(X)))
    assert before["f1"] == pytest.approx(sk.f1_score(y, model.predict(X), average="macro"))
    first = [i for i, label in enumerate(sent) if label == sent[0]][:5]
    answered = predicted(bundle, X[first].tolist())
    learned(bundle, X[first].tolist(), [sent[0]] * 5)
    bundle = stored(bundle)
    metrics = bundle.metrics()
    assert (metrics["rows"], metrics["accuracy"]) == (5, np.mean([answer == sent[0] for answer in answered]))
    # The labels begin with those that the object has, in its order, also those that no request has brought.
    assert metrics["confusion"]["classes"] == bundle.classes == sorted(set(sent))
    after, answers = bundle.score(rows), predicted(bundle, X.tolist())
    assert after["accuracy"] == pytest.approx(np.mean([a == b for a, b in zip(answers, sent, strict=True)]))
    assert after["accuracy"] is not None
    assert after["accuracy"] > 0.9
    assert {type(answer) for answer in answers} == {type(sent[0])}
    if kind in ("plain", "wrapper", "pipeline"):
        chances = bundle.predict_proba(shape(bundle.recipe, X.tolist(), learning=False))
        assert after["log_loss"] == pytest.approx(sk.log_loss(sent, chances, labels=bundle.classes), rel=1e-6)


def test_integers_and_booleans_of_a_classifier_are_one_label() -> None:
    """A classifier that has learned booleans gets 0 and 1 right, and one that has learned integers true and false."""
    y = SPECIES == "setosa"
    for own, sent in ((y, y.astype(int)), (y.astype(int), y)):
        bundle = new_bundle(recipe_of(GaussianNB().fit(X, own)), UPLOADS)
        learned(bundle, X[:10].tolist(), sent[:10].tolist())
        assert bundle.metrics()["accuracy"] == 1.0
        assert bundle.score(shape(bundle.recipe, X.tolist(), sent.tolist(), learning=True))["accuracy"] == 1.0
        assert len(bundle.metrics()["confusion"]["classes"]) == 2


class Constant(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A classifier that answers a given label."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer

    def partial_fit(self, X: Any, y: Any) -> None:
        """Learn nothing."""

    def predict(self, X: Any) -> Any:
        """Return the label for each row; None where the row is negative."""
        return [None if row[0] < 0 else self.answer for row in X]


def test_an_answered_label_that_was_never_sent_is_in_confusion_and_f1() -> None:
    """A label that only the object knows counts as scikit-learn counts it."""
    bundle = new_bundle(recipe_of(Constant("other")), UPLOADS)
    learned(bundle, [[1.0], [2.0], [3.0]], ["a", "b", "a"])
    bundle.estimator.answer = "a"
    learned(bundle, [[1.0], [2.0]], ["a", "b"])
    y, answers = ["a", "b", "a", "a", "b"], ["other"] * 3 + ["a"] * 2
    metrics = bundle.metrics()
    assert metrics["confusion"]["classes"] == ["a", "b", "other"]
    assert metrics["confusion"]["counts"] == sk.confusion_matrix(y, answers, labels=["a", "b", "other"]).tolist()
    assert metrics["f1"] == pytest.approx(sk.f1_score(y, answers, average="macro", zero_division=0.0))
    bundle.estimator.answer = "third"
    bundle._copy = None  # type: ignore[attr-defined]
    scored = bundle.score(shape(bundle.recipe, [[1.0], [2.0]], ["a", "third"], learning=True))
    assert scored["f1"] == pytest.approx(sk.f1_score(["a", "third"], ["third"] * 2, average="macro"))


@pytest.mark.parametrize("answer", [0.5, [1], {"a": 1}, "x" * 5000, "nul\0", 2**60], ids=repr)
def test_an_answer_that_is_no_label_is_wrong(answer: Any) -> None:
    """A value that cannot be a label counts as wrong and enters no label list."""
    bundle = new_bundle(recipe_of(Constant(answer)), UPLOADS)
    learned(bundle, [[1.0]], ["a"])
    learned(bundle, [[1.0]], ["a"])
    assert bundle.metrics()["accuracy"] == 0.0
    assert bundle.metrics()["confusion"]["classes"] == ["a"]
    assert bundle.score(shape(bundle.recipe, [[1.0]], ["a"], learning=True))["accuracy"] == 0.0


def test_answers_cannot_fill_the_label_list() -> None:
    """An object that answers another label for each row leaves room for the labels that are sent."""

    class Inventor(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
        def partial_fit(self, X: Any, y: Any) -> None:
            pass

        def predict(self, X: Any) -> Any:
            return [f"row {row[0]:g}" for row in X]

    bundle = new_bundle(recipe_of(Inventor()), UPLOADS)
    learned(bundle, [[float(i)] for i in range(9000)], ["a"] * 9000)
    learned(bundle, [[0.0], [1.0]], ["b", "c"])
    assert len(bundle.classes) < 1100
    assert bundle.metrics()["accuracy"] == 0.0


def test_a_row_without_a_prediction_hides_no_other_row() -> None:
    """Rows that the object answers with None are in no metric, of the running evaluation and of a score."""
    bundle = new_bundle(recipe_of(Constant("a")), UPLOADS)
    learned(bundle, [[1.0], [-1.0], [1.0], [1.0]], ["a", "a", "b", "a"])
    metrics = bundle.metrics()
    assert (metrics["rows"], metrics["accuracy"]) == (3, pytest.approx(2 / 3))
    scored = bundle.score(shape(bundle.recipe, [[1.0], [-1.0]], ["a", "a"], learning=True))
    assert scored == {"accuracy": 1.0, "f1": 1.0, "log_loss": None, "rows_without_prediction": 1}
    nothing = bundle.score(shape(bundle.recipe, [[-1.0]], ["a"], learning=True))
    assert nothing == {"accuracy": None, "f1": None, "log_loss": None, "rows_without_prediction": 1}


class Selective(RegressorMixin, BaseEstimator):  # type: ignore[misc]
    """A regressor that raises for negative rows, answers no number for large ones, and counts what it is asked."""

    def __init__(self) -> None:
        self.asked, self.seen = 0, 0

    def partial_fit(self, X: Any, y: Any) -> None:
        """Count rows."""
        self.seen += len(X)

    def predict(self, X: Any) -> Any:
        """Return the first column."""
        self.asked += 1
        if not self.seen or (X < 0).any():
            raise ValueError("negative")
        return [float("nan") if value > 100 else 1e300 if value > 50 else value for value in X[:, 0]]


def test_a_row_that_cannot_be_predicted_hides_no_other_row() -> None:
    """If an object cannot predict a request as a whole, each row is asked alone; only finite numbers are answers."""
    bundle = new_bundle(recipe_of(Selective()), UPLOADS)
    learned(bundle, [[-1.0], [1.0]], [1.0, 1.0])
    assert (bundle.metrics(), bundle.estimator.asked) == ({}, 1)
    learned(bundle, [[1.0], [-1.0], [4.0], [500.0], [60.0]], [2.0, 2.0, 2.0, 2.0, 2.0])
    metrics = bundle.metrics()
    assert (metrics["rows"], metrics["mean_absolute_error"]) == (2, 1.5)
    assert metrics["baseline_mean_absolute_error"] == 1.0
    scored = bundle.score(shape(bundle.recipe, [[500.0], [4.0], [-1.0]], [2.0, 2.0, 2.0], learning=True))
    assert scored == {"max_error": 2.0, "mean_absolute_error": 2.0, "r2": None, "rows_without_prediction": 2}
    nothing = shape(bundle.recipe, [[-1.0], [-2.0]], [2.0, 2.0], learning=True)
    with pytest.raises(InvalidError, match="Selective cannot predict these rows: ValueError: negative"):
        bundle.score(nothing)


class Counting(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A classifier that raises for negative rows, and counts questions and copies of itself."""

    questions = copies = 0

    def __init__(self) -> None:
        self.classes_ = np.array(["a", "b"])

    def partial_fit(self, X: Any, y: Any) -> None:
        """Learn nothing."""

    def predict(self, X: Any) -> Any:
        """Return "a"."""
        Counting.questions += 1
        if (X < 0).any():
            raise ValueError("negative")
        return ["a"] * len(X)

    def predict_proba(self, X: Any) -> Any:
        """Return equal probabilities."""
        return np.full((len(X), 2), 0.5)

    def __deepcopy__(self, memo: Any) -> "Counting":
        Counting.copies += 1
        return Counting()


@pytest.mark.parametrize("refused", [[3], [0, 4999], range(0, 5000, 2)], ids=["one", "two", "half"])
def test_questions_about_a_request_are_bounded(refused: Any) -> None:
    """A request that cannot be predicted as a whole is asked about in halves: at most 256 questions, and one copy."""
    bundle = new_bundle(recipe_of(Counting()), UPLOADS)
    learned(bundle, [[1.0]], ["a"])
    values = np.ones((5000, 1))
    values[list(refused)] = -1.0
    Counting.questions = Counting.copies = 0
    learned(bundle, values.tolist(), ["a"] * 5000)
    assert Counting.copies == 1
    assert Counting.questions <= QUESTIONS_MAX
    assert bundle.metrics()["rows"] == 1 + (5000 - len(refused) if len(refused) < 3 else 0)
    Counting.questions = Counting.copies = 0
    rows = shape(bundle.recipe, values.tolist(), ["a"] * 5000, learning=True)
    if len(refused) < 3:
        assert bundle.score(rows)["rows_without_prediction"] == len(refused)
    else:
        with pytest.raises(InvalidError, match="cannot predict these rows: ValueError: negative"):
            bundle.score(rows)
    assert Counting.questions <= QUESTIONS_MAX + 1
    # One for all predictions, and one for the probabilities.
    assert Counting.copies == 2


def test_an_object_predicts_before_its_first_row_if_it_can() -> None:
    """A trained estimator answers at once; one that has learned nothing answers 409 with its own reason."""
    model = GaussianNB().fit(X, SPECIES)
    bundle = new_bundle(recipe_of(model), UPLOADS)
    assert predicted(bundle, X[:9].tolist()) == model.predict(X[:9]).tolist()
    assert bundle.confidences(shape(bundle.recipe, X[:9].tolist(), learning=False))["classes"] == sorted(set(SPECIES))
    empty = new_bundle(recipe_of(GaussianNB()), UPLOADS)
    with pytest.raises(ConflictError, match=r"not learned any row yet; .*cannot predict before: NotFitted"):
        predicted(empty, X[:1].tolist())
    scaler = new_bundle(recipe_of(StandardScaler()), UPLOADS)
    rows = shape(scaler.recipe, X.tolist(), learning=True)
    with pytest.raises(InvalidError, match="takes no y"):
        scaler.score(rows)


class Drawing(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A classifier that draws numbers in each question, and counts the questions."""

    def __init__(self, seed: int = 0) -> None:
        self.generator, self.asked, self.drawn = np.random.default_rng(seed), 0, 0.0
        self.classes_ = np.array(["a", "b"])

    def partial_fit(self, X: Any, y: Any) -> None:
        """Draw while learning."""
        self.drawn += float(self.generator.random())

    def predict_proba(self, X: Any) -> Any:
        """Return drawn probabilities."""
        self.asked += 1
        first = self.generator.random(len(X))
        return np.stack([first, 1 - first], axis=1)

    def predict(self, X: Any) -> Any:
        """Return "b" where it is almost certain: not the more probable label."""
        return np.where(self.predict_proba(X)[:, 1] > 0.9, "b", "a")


def test_exact_is_the_loop_predict_and_learn() -> None:
    """An object that draws numbers when asked ends as in a loop of predict and partial_fit, with what was answered."""
    bundle, alone, answers = new_bundle(recipe_of(Drawing()), UPLOADS), Drawing(), []
    for i in range(30):
        rows = np.array([[float(i)], [float(-i)]])
        answers += alone.predict(rows).tolist()
        alone.partial_fit(rows, np.array(["a", "b"]))
        learned(bundle, rows.tolist(), ["a", "b"])
        bundle = stored(bundle)
    assert state(bundle.estimator) == state(alone)
    assert bundle.estimator.asked == 30
    metrics = bundle.metrics()
    assert metrics["rows"] == 60
    assert metrics["accuracy"] == sk.accuracy_score(["a", "b"] * 30, answers)
    # The probabilities are those of a copy that is asked before.
    assert 0.3 < metrics["log_loss"] < 3


class Global(RegressorMixin, BaseEstimator):  # type: ignore[misc]
    """A regressor that draws from the global generators when asked and when it learns."""

    def __init__(self) -> None:
        self.drawn: list[float] = []

    def partial_fit(self, X: Any, y: Any) -> None:
        """Draw."""
        self.drawn += [random.random(), float(np.random.rand())]

    def predict(self, X: Any) -> Any:
        """Draw."""
        return np.random.rand(len(X))


@pytest.mark.parametrize("learner", [Global(), SGDRegressor(), SGDClassifier(loss="log_loss")], ids=repr)
def test_objects_that_draw_from_the_global_generators_do_not_depend_on_the_process(learner: Any) -> None:
    """Whatever the process drew before, the same requests give the same bundle; other requests draw other numbers."""

    def bundle_of(seed: int) -> Bundle:
        random.seed(seed)
        np.random.seed(seed)
        classes = {"classes": ["a", "b"]} if isinstance(learner, SGDClassifier) else {}
        bundle = new_bundle(recipe_of(learner, **classes), UPLOADS)
        for i in range(5):
            y = [float(i), 1.0, 2.0] if bundle.recipe.entry.kind == "regressor" else ["a", "b", "a"]
            learned(bundle, [[float(i), 2.0], [1.0, 3.0], [2.0, float(i)]], y)
            random.seed(seed + i)
            np.random.seed(seed + i)
        return bundle

    first, second = bundle_of(1), bundle_of(2)
    assert sealed(first) == sealed(second)
    if isinstance(learner, Global):
        assert len(set(first.estimator.drawn)) == 10


@pytest.mark.parametrize(
    "model",
    [SGDClassifier(loss="log_loss"), SGDClassifier(loss="modified_huber"), SGDClassifier(), GaussianNB()],
    ids=["log_loss", "modified_huber", "hinge", "bayes"],
)
def test_scikit_learns_classifiers_are_judged_by_their_predict_and_predict_proba(model: Any) -> None:
    """Accuracy is that of predict and log loss that of predict_proba; without predict_proba there is no log loss."""
    model = model.partial_fit(X[:50], SPECIES[:50], classes=np.unique(SPECIES))
    bundle, answers, chances = new_bundle(recipe_of(model), UPLOADS), [], []
    for start in range(50, 150, 10):
        part = slice(start, start + 10)
        rows = shape(bundle.recipe, X[part].tolist(), learning=False)
        answers += bundle.predict(rows)
        if hasattr(model, "predict_proba"):
            chances += bundle.predict_proba(rows)
        learned(bundle, X[part].tolist(), SPECIES[part].tolist())
    metrics = bundle.metrics()
    assert metrics["accuracy"] == pytest.approx(sk.accuracy_score(SPECIES[50:], answers))
    assert ("log_loss" in metrics) == bool(chances)
    if chances:
        assert metrics["log_loss"] == pytest.approx(sk.log_loss(SPECIES[50:], chances), rel=1e-6)


def test_probabilities_that_are_not_numbers_are_in_no_log_loss() -> None:
    """An object whose probabilities are NaN is judged by its predictions, in metrics and scores."""
    model = GaussianNB().partial_fit([[1.0], [5.0]], ["a", "b"], classes=["a", "b"])
    bundle = new_bundle(recipe_of(model), UPLOADS)
    bundle.estimator.var_[:] = 0.0
    with np.errstate(all="ignore"):
        learned(bundle, [[1.0], [5.0]], ["a", "a"], [1.0, 0.0])
        scored = bundle.score(shape(bundle.recipe, [[1.0], [5.0]], ["a", "b"], learning=True))
    assert (bundle.metrics()["rows"], "log_loss" in bundle.metrics()) == (2, False)
    assert (scored["accuracy"], scored["log_loss"]) == (0.5, None)


@pytest.mark.parametrize("answer", [[[0.5, 0.2, 0.3]], None, RuntimeError("no")], ids=["width", "none", "error"])
def test_faulty_probabilities_hide_no_prediction(answer: Any) -> None:
    """An object whose predict_proba fails or answers another shape is judged by its predictions."""

    class Faulty(Constant):
        def __init__(self, answer: Any) -> None:
            super().__init__(answer)
            self.classes_ = np.array(["a", "b"])

        def predict_proba(self, X: Any) -> Any:
            if isinstance(answer, Exception):
                raise answer
            return answer

    bundle = new_bundle(recipe_of(Faulty("a")), UPLOADS)
    learned(bundle, [[1.0]], ["a"])
    assert (bundle.metrics()["accuracy"], "log_loss" in bundle.metrics()) == (1.0, False)
    scored = bundle.score(shape(bundle.recipe, [[1.0], [2.0]], ["a", "b"], learning=True))
    assert (scored["accuracy"], scored["log_loss"]) == (0.5, None)


def test_classes_that_cannot_be_read_do_not_stop_learning() -> None:
    """An object whose ``classes_`` raises an error is a classifier without classes of its own."""

    class Unreadable(Constant):
        @property
        def classes_(self) -> Any:
            raise KeyError("no classes")

    bundle = new_bundle(recipe_of(Unreadable("a")), UPLOADS)
    learned(bundle, [[1.0]], ["a"])
    assert (bundle.classes, bundle.metrics()["accuracy"]) == (["a"], 1.0)


class Shifting(BaseEstimator):  # type: ignore[misc]
    """A transformer that counts what it is asked."""

    def transform(self, X: Any) -> Any:
        """Count, and return the rows."""
        self.asked = getattr(self, "asked", 0) + 1
        return X


def own_function(rows: Any) -> Any:
    """Return the rows."""
    return rows


@pytest.mark.parametrize(
    ("estimator", "unchanged"),
    [
        (OneVsRestClassifier(GaussianNB()), True),
        (OneVsRestClassifier(Drawing()), False),
        (Pipeline([("a", StandardScaler()), ("b", Drawing())]), False),
        (Pipeline([("a", Shifting()), ("b", GaussianNB())]), False),
        (Pipeline([("a", FunctionTransformer(np.log1p)), ("b", GaussianNB())]), True),
        (Pipeline([("a", FunctionTransformer(own_function)), ("b", GaussianNB())]), False),
        (Pipeline([("a", FunctionTransformer(partial(own_function))), ("b", GaussianNB())]), False),
        (Pipeline([("a", FunctionTransformer(Shifting().transform)), ("b", GaussianNB())]), False),
    ],
)
def test_only_code_of_the_libraries_themselves_may_be_asked_freely(estimator: Any, unchanged: bool) -> None:
    """A class or function of the user, wherever an answer calls it, may change the object."""
    assert is_unchanged_by_questions(estimator) is unchanged


def test_labels_take_the_form_of_those_that_are_known() -> None:
    """Booleans stay booleans where both forms are known."""
    assert as_sent([True, 0], [True, 5]) == [True, 0]
