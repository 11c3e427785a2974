"""The learning curve: which rows have a point, and that each point has the metrics of that moment."""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keepfit.model import evaluation, fit_loop, learning_curve, serialization
from keepfit.model.bundle import Bundle
from keepfit.model.evaluation import Answers
from keepfit.model.fit_loop import Fitted
from keepfit.model.learning_curve import METRICS, POINTS_MAX, LearningCurve
from keepfit.model.object_bundle import new_bundle
from keepfit.model.prequential import PrequentialScores, combine_outputs
from keepfit.model.serialization import seal, unseal
from keepfit.recipe.catalogue import Kind
from keepfit.recipe.recipe import Recipe, parse
from keepfit.rows.rows import Rows
from keepfit.rows.shaping import shape
from keepfit.security import envelope
from keepfit.security.envelope import Header, Keyring
from tests.keepfit.test_objects import UPLOADS, recipe_of

RING = Keyring.from_text("k1:" + "5e" * 32)
HASH = "ab" * 32
HEADER = Header(envelope.BUNDLE, HASH, 1, 2, 3, 4, "", envelope.runtime())
FEW, WINDOW = 16, 30
SGD = {"estimator": "SGDRegressor", "params": {"learning_rate": "constant", "eta0": 0.05}, "window": 20}


@pytest.fixture
def few_points(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a curve have few points."""
    monkeypatch.setattr(learning_curve, "POINTS_MAX", FEW)


@dataclass
class Stream:
    """Rows with the answers of a model, which are the same however the rows are divided."""

    kind: Kind
    y: Any
    predicted: Any
    probabilities: Any
    # Positions of the rows that have an answer.
    answered: list[int]
    # Rows of each request, and when it was accepted.
    requests: list[tuple[int, float]]

    @classmethod
    def random(cls, kind: Kind, n: int, seed: int) -> "Stream":
        """Return a stream of `n` rows, whose first rows and some others have no answer."""
        random = np.random.default_rng(seed)
        answered = [i for i in range(n) if i >= seed % 5 and random.random() < 0.8]
        lengths = random.integers(1, 9, n).cumsum()
        ends = [*(int(end) for end in lengths if end < n), n]
        times = random.choice([0.0, 1e9, 2e9], len(ends)) + random.random(len(ends)).round(3)
        requests = [(end - begin, float(at)) for begin, end, at in zip([0, *ends], ends, times, strict=False)]
        if kind == "regressor":
            y = random.normal(1e3, 10, n)
            predicted = y + random.normal(0, 3, n)
            predicted[random.random(n) < 0.1] = np.nan
            return cls(kind, y, predicted, None, answered, requests)
        y, predicted = random.integers(0, 3, (2, n))
        return cls(kind, y, predicted, random.dirichlet(np.ones(3), n), answered, requests)

    def part(self, start: int, stop: int) -> Answers | None:
        """Return the answers about some of the rows."""
        rows = [i for i in self.answered if start <= i < stop]
        if not rows:
            return None
        probabilities = None if self.probabilities is None else self.probabilities[rows]
        return Answers([row - start for row in rows], self.predicted[rows], probabilities)


@dataclass
class Learner:
    """What a bundle has of the stream: scores and curve. The baseline does not change after the first rows."""

    stream: Stream
    scores: list[PrequentialScores] = field(default_factory=lambda: [PrequentialScores(WINDOW)])
    curve: LearningCurve = field(default_factory=LearningCurve)
    seen: int = 0

    def __post_init__(self) -> None:
        self.scores[0].learn(self.stream.kind, self.stream.y[:3])

    def learn(self, requests: Sequence[tuple[int, float]]) -> None:
        """Learn requests in one call."""
        self.curve.accepted(self.seen, requests)
        stop = self.seen + sum(n for n, _ in requests)
        answers = self.stream.part(self.seen, stop)
        given = [] if answers is None else [answers]
        evaluation.add(self.scores, self.stream.kind, [self.stream.y[self.seen : stop]], [given], self.curve, self.seen)
        self.seen = stop


def naive_points(stream: Stream, points_max: int) -> list[dict[str, Any]]:
    """Return the points by the rule in words: one row at a time, thinned by looking at all points."""
    learner, points, spacing = Learner(stream, curve=Unused()), list[dict[str, Any]](), 1
    latest = 0.0
    for n, at in stream.requests:
        latest = max(latest, at)
        for _ in range(n):
            learner.learn([(1, 0.0)])
            metrics = combine_outputs(learner.scores)
            if not metrics or learner.seen % spacing:
                continue
            if len(points) == points_max:
                spacing *= 2
                points = [point for point in points if not point["rows_seen"] % spacing]
            if not learner.seen % spacing:
                points.append({"rows_seen": learner.seen, "time": latest or None, **metrics})
    return points


class Unused(LearningCurve):
    """A curve without points."""

    def has_point_within(self, rows_seen: int, n: int) -> bool:
        """Return False."""
        return False


def divided(requests: list[tuple[int, float]], sizes: Sequence[int]) -> Iterator[list[tuple[int, float]]]:
    """Yield consecutive requests that are learned together."""
    remaining = iter(requests)
    for size in itertools.cycle(sizes):
        some = list(itertools.islice(remaining, size))
        if not some:
            return
        yield some


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from(["regressor", "classifier"]),
    st.integers(1, 400),
    st.lists(st.integers(1, 30), min_size=1, max_size=6),
    st.integers(1, 50),
    st.integers(0, 2**32 - 1),
)
def test_points_do_not_depend_on_the_division_of_rows(
    kind: Kind, n: int, sizes: list[int], stored_every: int, seed: int
) -> None:
    """Any division of the same rows into calls gives the same curve and sums, bit for bit, also when it is stored."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(learning_curve, "POINTS_MAX", FEW)
        stream = Stream.random(kind, n, seed)
        together, one_by_one = Learner(stream), Learner(stream)
        for number, requests in enumerate(divided(stream.requests, sizes)):
            together.learn(requests)
            if not number % stored_every:
                together.curve = LearningCurve.from_stored(*together.curve.stored())
        for request in stream.requests:
            one_by_one.learn([request])
        assert together.curve == one_by_one.curve
        assert together.scores == one_by_one.scores
        naive, points = naive_points(stream, FEW), together.curve.points()
    assert [(point["rows_seen"], point["time"]) for point in points] == [
        (point["rows_seen"], point["time"]) for point in naive
    ]
    for point, expected in zip(points, naive, strict=True):
        for found, wanted in ((point, expected), (point["window"], expected["window"])):
            for name in METRICS[kind]:
                value = wanted.get(name)
                assert found[name] == (None if value is None else pytest.approx(value, rel=1e-6, abs=1e-9))
    assert len(points) <= FEW


def learn(bundle: Bundle, X: Any, y: Any, at: float = 0.0) -> None:
    """Learn one request."""
    rows = shape(bundle.recipe, X, y, learning=True)
    bundle.curve.accepted(bundle.rows_seen, [(rows.n, at)])
    bundle.partial_fit(rows)


def drawn(n: int, seed: int = 1) -> tuple[Any, Any]:
    """Return rows of two numbers, and their target."""
    X = np.random.default_rng(seed).normal(size=(n, 2))
    return X.tolist(), (X @ [1.0, -2.0] + 3).tolist()


@pytest.mark.parametrize(
    "document", [SGD, {"estimator": "SGDClassifier", "params": {"loss": "log_loss"}, "classes": ["a", "b"]}]
)
def test_a_point_has_the_metrics_of_its_moment(document: dict[str, Any]) -> None:
    """While the spacing is 1, the last point after each row has the metrics of the model's document."""
    bundle = Bundle.new(parse(document))
    X, y = drawn(60)
    for number, (row, target) in enumerate(zip(X, y, strict=True), start=1):
        learn(bundle, [row], ["b" if target > 3 else "a"] if "classes" in document else [target], 1e9 + number)
        metrics, points = bundle.metrics(), bundle.curve.points()
        assert len(points) == number - 1
        if not metrics:
            continue
        assert (points[-1]["rows_seen"], points[-1]["time"]) == (number, 1e9 + number)
        for found, shown in ((points[-1], metrics), (points[-1]["window"], metrics["window"])):
            for name in METRICS[bundle.recipe.entry.kind]:
                value = shown[name]
                assert found[name] == (None if value is None else pytest.approx(value, rel=1e-6))


@dataclass(frozen=True)
class Request:
    """A request for :mod:`keepfit.model.fit_loop`."""

    given: Rows
    accepted_s: float
    change: dict[str, Any] | None = None
    wants_answer: bool = False

    def rows(self) -> Rows:
        """Return its rows."""
        return self.given


def fitted(recipe: Recipe, requests: Sequence[Request], restarts: Sequence[int] = ()) -> Bundle:
    """Let a bundle learn requests; before those at `restarts` it is stored and read by another process."""
    bundle = Bundle.new(recipe)
    bounds = [0, *restarts, len(requests)]
    for begin, end in itertools.pairwise(bounds):
        done = begin
        while done < end:
            before = seal(bundle, RING, HEADER)

            def reload(data: bytes = before) -> Bundle:
                return unseal(data, RING, recipe, HASH)[1]

            bundle, fit = fit_loop.fit_requests(reload(), reload, requests[done:end], lambda *done: done, 60.0)
            assert isinstance(fit, Fitted)
            done += fit.count
    return bundle


def some_requests(recipe: Recipe, n: int) -> list[Request]:
    """Return requests of 1 to 40 rows."""
    sizes = np.random.default_rng(5).integers(1, 40, n)
    X, y = drawn(int(sizes.sum()))
    ends = sizes.cumsum().tolist()
    return [
        Request(shape(recipe, X[begin:end], y[begin:end], learning=True), 1e9 + end)
        for begin, end in zip([0, *ends], ends, strict=False)
    ]


@pytest.mark.usefixtures("few_points")
def test_restarts_change_nothing() -> None:
    """A bundle that is stored and read again between requests has the same curve, bit for bit."""
    recipe = parse(SGD)
    requests = some_requests(recipe, 40)
    whole = fitted(recipe, requests)
    assert len(whole.curve) > FEW // 2
    for restarts in ([20], [1, 2, 3, 38], list(range(1, 40))):
        bundle = fitted(recipe, requests, restarts)
        assert serialization._state(bundle, ([], []))[-1] == serialization._state(whole, ([], []))[-1]


@pytest.mark.usefixtures("few_points")
def test_merged_requests_have_points_of_their_own() -> None:
    """A merged call takes the points within it, each with the time of its request; only the predictions differ."""
    # Its weights change too little to change an error.
    still = {**SGD, "params": {"learning_rate": "constant", "eta0": 1e-300}}
    exact, merged = parse(still), parse({**still, "updates": "merged"})
    requests = some_requests(exact, 30)
    curves = [fitted(recipe, requests).curve for recipe in (exact, merged)]
    # The first call is not evaluated: of the merged requests it is the first one alone, too.
    curves.append(fitted(merged, requests, [1]).curve)
    first, _, last = ([(p["rows_seen"], p["time"], p["root_mean_squared_error"]) for p in c.points()] for c in curves)
    assert len(first) > FEW // 2
    assert first == last
    # All in one call: nothing was evaluated.
    assert curves[1].points() == []


def test_a_bundle_of_an_earlier_release_begins_its_curve() -> None:
    """A stored bundle without a curve has one from the next rows on, which says how many rows came before."""
    bundle = Bundle.new(parse(SGD))
    X, y = drawn(30)
    learn(bundle, X[:20], y[:20])
    learn(bundle, X[20:25], y[20:25])
    *state, _ = serialization._state(bundle, ([], []))
    old = serialization._bundle(bundle.recipe, *state[1:])
    assert (old.curve.rows_before, old.curve.points()) == (25, [])
    for row, target in zip(X[25:], y[25:], strict=True):
        learn(old, [row], [target])
    points = old.curve.points()
    assert [point["rows_seen"] for point in points] == [26, 27, 28, 29, 30]
    assert [point["time"] for point in points] == [None] * 5
    again = unseal(seal(old, RING, HEADER), RING, old.recipe, HASH)[1]
    assert (again.curve, again.curve.rows_before) == (old.curve, 25)


def test_a_full_curve_adds_little_to_its_bundle() -> None:
    """At 1,000 points a curve takes less than 64 kB of its bundle, and it never has more."""
    bundle = Bundle.new(parse(SGD))
    X, y = drawn(POINTS_MAX + 1)
    learn(bundle, X[:1], y[:1])
    learn(bundle, X[1:], y[1:])
    assert len(bundle.curve) == POINTS_MAX
    full = len(seal(bundle, RING, HEADER))
    bundle.curve = LearningCurve()
    assert 30_000 < full - len(seal(bundle, RING, HEADER)) < 64_000
    X, y = drawn(50_000)
    for _ in range(2):
        learn(bundle, X, y)
        assert POINTS_MAX // 2 <= len(bundle.curve) <= POINTS_MAX


def test_some_points_and_metrics() -> None:
    """The caller chooses points by rows and metrics by name."""
    bundle = Bundle.new(parse(SGD))
    X, y = drawn(9)
    learn(bundle, X[:2], y[:2])
    learn(bundle, X[2:], y[2:])
    points = bundle.curve.points()
    assert [point["rows_seen"] for point in points] == [3, 4, 5, 6, 7, 8, 9]
    assert points[0].keys() == {"rows_seen", "time", "window", *METRICS["regressor"]}
    assert points[0]["window"].keys() == {*METRICS["regressor"]}
    for since in range(11):
        assert bundle.curve.points(None, since) == [point for point in points if point["rows_seen"] > since]
    assert bundle.curve.points(["r2"], 8) == [
        {"rows_seen": 9, "time": None, "r2": points[-1]["r2"], "window": {"r2": points[-1]["window"]["r2"]}}
    ]


def test_numbers_that_single_precision_lacks_are_undefined() -> None:
    """A metric too large for single precision has no value in the curve; the document has it."""
    scores, curve = [PrequentialScores(WINDOW)], LearningCurve()
    answers = Answers(None, np.array([1e60]), None)
    evaluation.add(scores, "regressor", [np.array([0.0])], [[answers]], curve, 0)
    assert combine_outputs(scores)["mean_absolute_error"] == 1e60
    (point,) = curve.points()
    assert (point["mean_absolute_error"], point["rows_seen"]) == (None, 1)


def test_models_without_a_target_have_no_points() -> None:
    """What is never evaluated has a curve without points."""
    bundle = Bundle.new(parse({"estimator": "MiniBatchKMeans", "params": {"n_clusters": 2}}))
    for _ in range(3):
        learn(bundle, drawn(20)[0], None)
    assert (bundle.rows_seen, bundle.curve.points()) == (60, [])


def test_several_outputs_have_the_means() -> None:
    """A model with several outputs has one curve, of the means over its outputs."""
    bundle = Bundle.new(parse({"estimator": "MultiOutputRegressor", "params": {"estimator": {"SGDRegressor": {}}}}))
    X, y = drawn(12)
    targets = [[target, -target] for target in y]
    learn(bundle, X[:4], targets[:4])
    learn(bundle, X[4:], targets[4:])
    point, metrics = bundle.curve.points()[-1], bundle.metrics()
    assert len(bundle.curve) == 8
    assert point["rows_seen"] == 12
    assert point["mean_absolute_error"] == pytest.approx(metrics["mean_absolute_error"], rel=1e-6)


class Echo:
    """An object that answers half of its rows, and learns nothing."""

    def __init__(self) -> None:
        self.calls = 0

    def partial_fit(self, X: Any, y: Any) -> None:
        """Count."""
        self.calls += 1

    def predict(self, X: Any) -> list[Any]:
        """Answer the first number, or nothing."""
        return [None if row[1] < 0 else float(row[0]) for row in X]


def test_objects_have_a_curve() -> None:
    """Rows of an uploaded object without an answer are counted, and evaluated by the others; batches do not matter."""
    recipe = recipe_of(Echo(), kind="regressor")
    X, y = drawn(40)
    curves = []
    for size in (1, 40):
        bundle = new_bundle(recipe, UPLOADS)
        for start in range(0, 40, size):
            learn(bundle, X[start : start + size], y[start : start + size], 1e9)
        curves.append(bundle.curve.points(["mean_absolute_error", "r2", "root_mean_squared_error"]))
    first = next(i for i, row in enumerate(X, start=1) if row[1] >= 0)
    assert [point["rows_seen"] for point in curves[0]] == list(range(first, 41))
    assert curves[0] == curves[1]
    assert not math.isnan(curves[0][-1]["mean_absolute_error"])
