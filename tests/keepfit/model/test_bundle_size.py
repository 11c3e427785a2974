"""The size of a bundle: it depends on the model, its labels and its columns, and not on the number of rows learned.

The learning curve and the scored rows grow, up to bounds of their own, and are not counted.
"""

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from sklearn.multiclass import OneVsRestClassifier
from sklearn.neural_network import MLPClassifier, MLPRegressor
from threadpoolctl import threadpool_limits

from keepfit.model.bundle import Bundle
from keepfit.model.learning_curve import LearningCurve
from keepfit.model.object_bundle import new_bundle
from keepfit.model.scored_rows import ScoredRows
from keepfit.model.serialization import seal, unseal
from keepfit.recipe.recipe import Recipe, parse
from keepfit.rows.shaping import shape
from keepfit.security import envelope
from keepfit.security.envelope import Header, Keyring
from tests.catalogue import LABELS, NAMES, Batch, batch, document
from tests.keepfit.test_objects import UPLOADS, recipe_of

RING = Keyring.from_text("k1:" + "5e" * 32)
HASH = "ab" * 32
HEADER = Header(envelope.BUNDLE, HASH, 1, 2, 3, 4, "", envelope.runtime())
# Different rows, sent again and again: a tree of Birch grows with different rows.
DISTINCT = 16
# Each part of this window has one row, so that its counts have always the same number of digits.
WINDOW, CALLS, CALLS_IF_FAST = 10, 160, 2000
# Learned in less than 0.1 ms per row.
FAST = {
    "HashingVectorizer",
    "PassiveAggressiveClassifier",
    "PassiveAggressiveRegressor",
    "Perceptron",
    "SGDClassifier",
}  # fmt: skip
# Of counts that have more digits, and of pairs of labels that are predicted for the first time. A byte per call would
# exceed it.
SLACK_BYTES = 64


@pytest.fixture(autouse=True)
def _as_in_a_worker() -> Iterator[None]:
    """Use one thread and do not turn warnings into errors, as in workers."""
    with threadpool_limits(1), warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        yield


def size_of(bundle: Bundle) -> int:
    """Return the size of a sealed bundle without its learning curve and scored rows."""
    bundle.curve = LearningCurve(bundle.rows_seen)
    for scores in bundle.prequential:
        scores.scored = ScoredRows()
    return len(seal(bundle, RING, HEADER))


def singles(given: Batch, of: Recipe) -> list[Any]:
    """Return the rows of `given` as requests with one row each."""
    targets = [None] * len(given.X) if given.y is None else [[y] for y in given.y]
    return [shape(of, [row], y, learning=True) for row, y in zip(given.X, targets, strict=True)]


def sizes(bundle: Bundle, requests: list[Any], calls: int) -> list[int]:
    """Return the sealed size after `calls` requests and after twice as many; the bundle has learned all rows before."""
    found = []
    for _ in range(2):
        for call in range(calls):
            bundle.partial_fit(requests[call % len(requests)])
        found.append(size_of(bundle))
    return found


@pytest.mark.parametrize("name", NAMES)
def test_a_bundle_does_not_grow_with_its_rows(name: str) -> None:
    """After twice as many single rows, with every label known, a bundle has the same size but for a few digits."""
    of = parse({**document(name), "window": WINDOW})
    bundle, given = Bundle.new(of), batch(name, DISTINCT)
    bundle.partial_fit(given.learned(of))
    before, after = sizes(bundle, singles(given, of), CALLS_IF_FAST if name in FAST else CALLS)
    assert abs(after - before) <= SLACK_BYTES


NETWORKS: list[dict[str, Any]] = [
    {"steps": [{"StandardScaler": {}}, {"MLPRegressor": {"hidden_layer_sizes": [3]}}]},
    {"estimator": "MLPClassifier", "params": {"hidden_layer_sizes": [3]}, "classes": LABELS},
    {
        "estimator": "OneVsRestClassifier",
        "params": {"estimator": {"MLPClassifier": {"hidden_layer_sizes": [3]}}},
        "classes": LABELS,
    },
    {
        "estimator": "MultiOutputClassifier",
        "params": {"estimator": {"MLPClassifier": {"hidden_layer_sizes": [3]}}},
        "classes": [LABELS, LABELS],
    },
    {"estimator": "MultiOutputRegressor", "params": {"estimator": {"MLPRegressor": {"hidden_layer_sizes": [3]}}}},
]


@pytest.mark.parametrize("posted", NETWORKS, ids=lambda posted: str(posted.get("estimator", "steps")))
def test_networks_inside_others_do_not_grow(posted: dict[str, Any]) -> None:
    """A network in steps or in a wrapper keeps one value of its loss curve."""
    of = parse({**posted, "window": WINDOW})
    X = np.random.default_rng(2).normal(size=(DISTINCT, 3)).tolist()
    y: list[Any] = [row[0] for row in X]
    if of.entry.target == "labels":
        y = [LABELS[i % 3] for i in range(DISTINCT)]
    given = Batch(X, [[value, value] for value in y] if of.entry.multi_output else y)
    bundle = Bundle.new(of)
    bundle.partial_fit(given.learned(of))
    before, after = sizes(bundle, singles(given, of), CALLS // 2)
    assert abs(after - before) <= SLACK_BYTES


@pytest.mark.parametrize("is_wrapped", [False, True], ids=["alone", "wrapped"])
def test_an_uploaded_network_does_not_grow(is_wrapped: bool) -> None:
    """scikit-learn's networks keep one value of their loss curve in an uploaded object, too."""
    network = MLPClassifier(hidden_layer_sizes=[3], random_state=0)
    of = recipe_of(OneVsRestClassifier(network) if is_wrapped else network, classes=LABELS, window=WINDOW)
    bundle: Any = new_bundle(of, UPLOADS)
    requests = singles(batch("MLPClassifier", DISTINCT), of)
    for rows in requests:
        bundle.partial_fit(rows)
    before, after = sizes(bundle, requests, CALLS)
    assert abs(after - before) <= SLACK_BYTES


def test_a_network_of_rivers_wrapper_does_not_grow() -> None:
    """In a pipeline of River, a wrapped network of scikit-learn keeps one value of its loss curve."""
    river = pytest.importorskip("river", reason="the extra `river` is not installed")
    from river import compat, compose, preprocessing  # noqa: PLC0415 - behind the line that skips the test

    assert river.__version__
    network = compat.SKL2RiverRegressor(MLPRegressor(hidden_layer_sizes=[3], random_state=0))
    of = recipe_of(compose.Pipeline(preprocessing.StandardScaler(), network), window=WINDOW)
    bundle: Any = new_bundle(of, UPLOADS)
    X = np.random.default_rng(2).normal(size=(DISTINCT, 3)).tolist()
    requests = singles(Batch(X, [row[0] for row in X]), of)
    for rows in requests:
        bundle.partial_fit(rows)
    before, after = sizes(bundle, requests, CALLS)
    assert abs(after - before) <= SLACK_BYTES


def test_a_curve_that_an_earlier_release_stored_is_shortened() -> None:
    """A bundle with a loss curve of 10,000 values loses it with the next row, and learns on as the whole one does."""
    of = parse({"estimator": "MLPClassifier", "params": {"hidden_layer_sizes": [3]}, "classes": LABELS})
    given = batch("MLPClassifier", DISTINCT)
    hand = MLPClassifier(hidden_layer_sizes=[3], shuffle=False, random_state=0)
    bundle = Bundle.new(of)
    codes = [LABELS.index(label) for label in given.y or []]
    hand.partial_fit(given.X, codes, classes=range(3))
    bundle.partial_fit(given.learned(of))
    bundle.estimator.loss_curve_[:0] = np.random.default_rng(1).random(10_000).tolist()
    long = seal(bundle, RING, HEADER)
    bundle = unseal(long, RING, of, HASH)[1]
    assert len(bundle.estimator.loss_curve_) > 10_000
    for row, code, rows in zip(given.X, codes, singles(given, of), strict=True):
        hand.partial_fit([row], [code])
        bundle.partial_fit(rows)
        assert bundle.estimator.loss_curve_ == hand.loss_curve_[-1:]
    assert len(seal(bundle, RING, HEADER)) < len(long) - 8 * 10_000
    for name in ("best_loss_", "t_", "_no_improvement_count", "loss_"):
        assert getattr(bundle.estimator, name) == getattr(hand, name)
    for learned, wanted in zip(bundle.estimator.coefs_, hand.coefs_, strict=True):
        np.testing.assert_array_equal(learned, wanted)


@pytest.mark.parametrize("encoding", ["onehot", "hash"])
def test_a_bundle_does_not_grow_with_the_labels_of_a_column(encoding: str) -> None:
    """A column with another label in each row, such as an order number, takes no more than its encoding's columns."""
    of = parse({
        "estimator": "SGDRegressor",
        "features": {"order": "category", "price": "number"},
        "encoding": encoding,
        "max_categories": 8,
        "n_features": 8,
        "window": WINDOW,
    })  # fmt: skip
    bundle = Bundle.new(of)
    before, after = (size_of(learn_orders(bundle, of, start, start + CALLS)) for start in (1000, 1000 + CALLS))
    assert abs(after - before) <= SLACK_BYTES


def learn_orders(bundle: Bundle, of: Recipe, start: int, stop: int) -> Bundle:
    """Let `bundle` learn a row for each number; return it."""
    for number in range(start, stop):
        bundle.partial_fit(shape(of, [[f"order {number}", 0.25]], [0.5], learning=True))
    return bundle


@pytest.mark.parametrize("encoding", ["onehot", "ordinal"])
def test_the_labels_of_a_category_are_bounded(encoding: str) -> None:
    """After 300,000 labels a bundle is no larger than after as many as have codes."""
    of = parse({"estimator": "SGDRegressor", "features": {"order": "category"}, "encoding": encoding})
    bundle, found = Bundle.new(of), []
    for start in range(0, 300_000, 75_000):
        values = range(start, start + 75_000)
        for part in [values[i : i + 15_000] for i in range(0, 75_000, 15_000)]:
            bundle.columns.partial_fit(of, shape(of, [[f"order {i:06}"] for i in part], learning=False))
        found.append(size_of(bundle))
    assert len(set(found)) == 1
    assert found[0] < {"onehot": 10_000, "ordinal": 1_500_000}[encoding]
