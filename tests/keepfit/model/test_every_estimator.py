"""Every estimator of the catalogue, alone, in steps and through a running service, against scikit-learn itself."""

import asyncio
import uuid
import warnings
from collections.abc import Iterator
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import pytest
from sklearn.cluster import Birch, MiniBatchKMeans
from sklearn.decomposition import IncrementalPCA
from sklearn.feature_extraction.text import HashingVectorizer
from sklearn.linear_model import SGDClassifier, SGDOneClassSVM, SGDRegressor
from sklearn.multioutput import MultiOutputRegressor
from sklearn.preprocessing import StandardScaler

from keepfit.errors import ConflictError, InvalidError
from keepfit.model import recipe_check
from keepfit.model.bundle import Bundle
from keepfit.model.serialization import seal, try_predict, unseal
from keepfit.recipe.catalogue import CATALOGUE
from keepfit.recipe.recipe import Recipe, from_text, parse
from keepfit.rows.rows import Rows, concatenate
from keepfit.rows.shaping import shape
from keepfit.security import envelope
from keepfit.security.envelope import Header, Keyring
from tests.catalogue import LABELS, NAMES, ORDER, SECOND, Batch, ByHand, batch, document, recipe, state

RING = Keyring.from_text("k1:" + "5e" * 32)
HASH = "ab" * 32
HEADER = Header(envelope.BUNDLE, HASH, 1, 2, 3, 4, "", envelope.runtime())
WAIT = {"Prefer": "wait=20"}
# The first is large enough for every first call; then a single row, as most requests have.
SIZES = (12, 1, 5, 1)

each_name = pytest.mark.parametrize("name", NAMES)


@pytest.fixture(autouse=True)
def _as_in_a_worker() -> Iterator[None]:
    """Do not turn warnings into errors, as in workers: for example about missing clusters or no selected column."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        yield


def batches(name: str) -> list[Batch]:
    """Return requests to learn in order."""
    return [batch(name, n, seed) for seed, n in enumerate(SIZES)]


def reopened(bundle: Bundle, of: Recipe) -> Bundle:
    """Return the bundle as another process reads it."""
    return unseal(seal(bundle, RING, HEADER), RING, of, HASH)[1]


def learned(of: Recipe, X: list[Any], y: list[Any] | None = None) -> Rows:
    """Return rows to learn."""
    return shape(of, X, y, learning=True)


def asked(of: Recipe, X: list[Any]) -> Rows:
    """Return rows to predict."""
    return shape(of, X, learning=False)


def everything(bundle: Bundle) -> list[Any]:
    """Return all that a bundle has learned."""
    return state(
        [bundle.columns, bundle.labels, bundle.estimator, bundle.prequential, bundle.rows_seen, bundle.waiting]
    )


def test_every_name_of_the_catalogue_is_tested() -> None:
    """The samples of this suite cover all estimators."""
    assert set(NAMES) == set(CATALOGUE)


@each_name
def test_a_recipe_survives_its_text(name: str) -> None:
    """Each name makes a recipe, with an inner estimator if it is a wrapper, that reads back unchanged."""
    parsed = recipe(name)
    assert from_text(parsed.text()) == parsed
    assert parsed.entry.kind == CATALOGUE[name].kind
    assert (parsed.entry.inner is not None) == bool(CATALOGUE[name].wraps)


@each_name
def test_a_bundle_equals_a_plain_loop(name: str) -> None:
    """Sealed and unsealed after every request, it equals scikit-learn's object bit for bit, predictions included.

    Of a loss curve it has the last value.
    """
    of, hand, unseen = recipe(name), ByHand(name), batch(name, 6, 99)
    whole, cut = Bundle.new(of), Bundle.new(of)
    for given in batches(name):
        rows = given.learned(of)
        hand.learn(given)
        whole.partial_fit(rows)
        cut = reopened(cut, of)
        cut.partial_fit(rows)
        assert whole.predict(unseen.asked(of)) == hand.answer(unseen)
    assert state(whole.estimator) == state(hand.kept())
    assert everything(cut) == everything(whole)
    assert cut.predict(unseen.asked(of)) == hand.answer(unseen)
    try_predict(cut)
    assert cut.rows_seen == sum(SIZES)


@pytest.mark.parametrize("components", [1, 2, 3, None])
def test_the_memory_layout_survives_sealing(components: int | None) -> None:
    """IncrementalPCA predicts the same bits in the process that learned and in one that read the bundle."""
    of, hand = (
        parse({"estimator": "IncrementalPCA", "params": {"n_components": components}}),
        IncrementalPCA(components),
    )
    bundle, unseen = Bundle.new(of), batch("IncrementalPCA", 400, 5)
    for given in batches("IncrementalPCA"):
        bundle = reopened(bundle, of)
        bundle.partial_fit(given.learned(of))
        hand.partial_fit(np.array(given.X))
    again = reopened(reopened(bundle, of), of)
    for n in (1, 6, 400):
        rows = Batch(unseen.X[:n], None)
        wanted = hand.transform(np.array(rows.X)).tolist()
        assert bundle.predict(rows.asked(of)) == again.predict(rows.asked(of)) == wanted


@each_name
def test_predictions_change_nothing(name: str) -> None:
    """predict, proba and score leave every byte of the sealed bundle unchanged, and repeat their results."""
    of = recipe(name)
    bundle = Bundle.new(of)
    with pytest.raises(ConflictError, match="has not learned any row yet"):
        bundle.predict(batch(name, 2).asked(of))
    for given in batches(name)[:2]:
        bundle.partial_fit(given.learned(of))
    before, rows = seal(bundle, RING, HEADER), batch(name, 7, 9)
    first = bundle.predict(rows.asked(of))
    for ask in (lambda: bundle.confidences(rows.asked(of)), lambda: bundle.score(rows.learned(of))):
        with suppress(InvalidError):
            assert ask() is not None
    assert bundle.predict(rows.asked(of)) == first
    assert seal(bundle, RING, HEADER) == before


@each_name
def test_joint_predictions_do_not_affect_each_other(name: str) -> None:
    """The prediction of a row does not depend on rows of other requests in the same call."""
    of = recipe(name)
    bundle = Bundle.new(of)
    bundle.partial_fit(batch(name, 12).learned(of))
    parts = [batch(name, n, 7).asked(of) for n in (1, 4)]
    apart = [answer for rows in parts for answer in bundle.predict(rows)]
    together = bundle.predict(concatenate(parts))
    if bundle.predicts_rows_independently:
        if isinstance(apart[0], str) or (isinstance(apart[0], list) and isinstance(apart[0][0], str)):
            assert together == apart
        else:
            # A product of larger matrices may be summed in another order.
            np.testing.assert_allclose(together, apart, rtol=1e-12, atol=1e-12)
    else:
        assert not np.allclose(together, apart, rtol=1e-6)


async def test_http_equals_a_plain_loop(http: aiohttp.ClientSession) -> None:
    """All estimators, learned through gateway and workers, predict the bits of scikit-learn's own objects."""

    async def check(name: str) -> None:
        metadata = {"type": "every", "name": name, "session": uuid.uuid4().hex}
        async with http.post("/v1/models", json={"metadata": metadata, "recipe": document(name)}) as reply:
            assert reply.status == 201, (name, await reply.text())
            path = f"/v1/models/{(await reply.json())['hash']}"
        hand = ByHand(name)
        for given in batches(name)[:2]:
            hand.learn(given)
            sent = {"X": given.X} if given.y is None else {"X": given.X, "y": given.y}
            async with http.post(f"{path}/partial_fit", json=sent, headers=WAIT) as reply:
                assert reply.status == 200, (name, await reply.text())
        rows = batch(name, 6, 99)
        async with http.post(f"{path}/predict", json={"X": rows.X}) as reply:
            answer = await reply.json()
            assert reply.status == 200, (name, answer)
        assert answer["predictions"] == hand.answer(rows), name
        assert answer["rows_seen"] == sum(SIZES[:2])

    async with asyncio.timeout(60):
        await asyncio.gather(*map(check, NAMES))


async def test_http_has_scores_outputs_and_waiting_rows(http: aiohttp.ClientSession) -> None:
    """Responses have scores and probabilities of each output; a model that waits for rows is 409, and then learns."""

    async def make(posted: dict[str, Any]) -> str:
        metadata = {"type": "every", "session": uuid.uuid4().hex}
        async with http.post("/v1/models", json={"metadata": metadata, "recipe": posted}) as reply:
            return f"/v1/models/{(await reply.json())['hash']}"

    async def send(path: str, **sent: Any) -> tuple[int, dict[str, Any]]:
        async with http.post(path, json=sent, headers=WAIT) as reply:
            return reply.status, await reply.json()

    for name in ("SGDOneClassSVM", "MultiOutputClassifier"):
        path, given, of = await make(document(name)), batch(name, 12), recipe(name)
        await send(f"{path}/partial_fit", X=given.X, **({} if given.y is None else {"y": given.y}))
        bundle = Bundle.new(of)
        bundle.partial_fit(given.learned(of))
        status, answer = await send(f"{path}/predict", X=given.X, proba=True)
        assert status == 200
        assert {key: answer.get(key) for key in bundle.confidences(given.asked(of))} == bundle.confidences(
            given.asked(of)
        )
    path = await make({"estimator": "MiniBatchKMeans", "params": {"n_clusters": 2}})
    status, answer = await send(f"{path}/partial_fit", X=[[1.0]])
    assert (status, answer["rows_seen"]) == (200, 1)
    status, answer = await send(f"{path}/predict", X=[[1.0]])
    assert (status, answer["detail"]) == (
        409,
        "MiniBatchKMeans needs 2 rows for its first call; 1 are waiting, 1 more are needed.",
    )
    await send(f"{path}/partial_fit", X=[[5.0]])
    assert (await send(f"{path}/predict", X=[[1.0], [5.0]]))[0] == 200


def test_the_document_lists_every_estimator() -> None:
    """docs/reference/estimators.md has a row for every estimator, with its kind and whether it takes y and weights."""
    lines = (Path(__file__).parents[3] / "docs/reference/estimators.md").read_text().splitlines()
    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| `")]
    assert [row[0].strip("`") for row in table] == NAMES
    for name, kind, y, weights, answer, *_ in table:
        entry = CATALOGUE[name.strip("`")]
        assert kind == entry.kind
        told = {"numbers": "number", "labels": "label", None: "-"}[entry.target]
        wanted = f"list of {told}s" if entry.multi_output else told
        assert y == ("as in it" if name == "`SelectFromModel`" else wanted)
        assert weights == ("-" if not entry.takes_sample_weight else "as in it" if entry.wraps else "yes")
        if entry.kind in ("classifier", "regressor"):
            assert answer == wanted


# What comes with predictions where more is asked for.


def test_an_outlier_detector_has_scores() -> None:
    """Predictions are 1 and -1, and proba adds the values of the decision function, negative for outliers."""
    of, hand = recipe("SGDOneClassSVM"), SGDOneClassSVM(**ORDER)
    bundle, given = Bundle.new(of), batch("SGDOneClassSVM", 12)
    bundle.partial_fit(given.learned(of))
    hand.partial_fit(np.array(given.X))
    scores = bundle.confidences(given.asked(of))["scores"]
    assert scores == hand.decision_function(np.array(given.X)).tolist()
    assert bundle.predict(given.asked(of)) == [1 if score >= 0 else -1 for score in scores]
    assert len(set(bundle.predict(given.asked(of)))) == 2


def test_each_output_has_probabilities() -> None:
    """The probabilities of a row are a list for each output, in the order of its classes."""
    of, given = recipe("MultiOutputClassifier"), batch("MultiOutputClassifier", 12)
    bundle, hand = Bundle.new(of), ByHand("MultiOutputClassifier")
    bundle.partial_fit(given.learned(of))
    hand.learn(given)
    sure = bundle.confidences(given.asked(of))
    assert sure["classes"] == [LABELS, SECOND]
    wanted = hand.model.predict_proba(np.array(given.X))
    assert sure["probabilities"] == [[one.tolist() for one in row] for row in zip(*wanted, strict=True)]
    score = bundle.score(given.learned(of))
    right = [
        label == said
        for row, guessed in zip(given.y or [], bundle.predict(given.asked(of)), strict=True)
        for label, said in zip(row, guessed, strict=True)
    ]
    assert score["accuracy"] == pytest.approx(sum(right) / len(right))


def test_outputs_may_have_labels_of_different_types() -> None:
    """Without classes the first rows define the number of outputs; labels keep their types."""
    of = parse({"estimator": "MultiOutputClassifier", "params": {"estimator": {"GaussianNB": {}}}})
    bundle = Bundle.new(of)
    X, y = [[0.0], [0.1], [5.0], [5.1]], [["b", True], ["b", True], ["a", False], ["a", False]]
    bundle.partial_fit(learned(of, X, y))
    assert reopened(bundle, of).predict(asked(of, X)) == y
    assert bundle.classes == [["b", "a"], [True, False]]


@pytest.mark.parametrize("name", ["MultiOutputClassifier", "MultiOutputRegressor"])
def test_a_wrong_number_of_outputs_is_rejected(name: str) -> None:
    """A row of y that is not a list, or has another number of values than other or learned rows, is named."""
    of, given = recipe(name), batch(name, 12)
    first = (given.y or [])[0]
    for wrong, words in (
        ([first, first[:1]], r"the row has 1 values where 2 are expected \(row 1\)"),
        ([first, "x"], r"the row is not a list of values, one for each output \(row 1\)"),
        ([[], []], "the row has 0 values"),
        ([first, [None, None]], r"target 'y\[0\]': null is not .*\(row 1\)"),
    ):
        with pytest.raises(InvalidError, match=words):
            learned(of, given.X[:2], wrong)
    free = parse({**document(name), "classes": None})
    bundle = Bundle.new(free)
    bundle.partial_fit(given.learned(free))
    another = learned(free, given.X[:1], [[*first, first[0]]])
    for call in (bundle.score, bundle.partial_fit):
        with pytest.raises(InvalidError, match="y has 3 values in each row where the model has learned 2"):
            call(another)


def test_one_vs_one_predicts_before_all_classes_appear() -> None:
    """Pairs of classes without rows do not vote, and a bundle with such pairs survives a restore."""
    of = parse({**document("OneVsOneClassifier")})
    bundle = Bundle.new(of)
    bundle.partial_fit(learned(of, [[1.0]], ["no"]))
    assert bundle.predict(asked(of, [[1.0]]))[0] in LABELS
    try_predict(bundle)
    bundle = reopened(bundle, of)
    bundle.partial_fit(learned(of, [[2.0]], ["yes"]))
    assert bundle.predict(asked(of, [[1.0]]))[0] in LABELS


# Steps.


def test_steps_learn_in_order() -> None:
    """Each step learns, then transforms for the next: bit for bit as in a plain loop, with sealing in between."""
    of = parse({
        "steps": [
            {"StandardScaler": {}},
            {"IncrementalPCA": {"n_components": 2}},
            {"SGDClassifier": {"loss": "log_loss"}},
        ],
        "classes": LABELS,
    })  # fmt: skip
    scaler, components, last = StandardScaler(), IncrementalPCA(n_components=2), SGDClassifier(loss="log_loss", **ORDER)
    bundle = Bundle.new(of)
    for given in batches("SGDClassifier"):
        X = scaler.partial_fit(np.array(given.X)).transform(np.array(given.X))
        X = components.partial_fit(X).transform(X)
        codes = [LABELS.index(label) for label in given.y or []]
        last.partial_fit(X, codes, classes=[0, 1, 2])
        bundle = reopened(bundle, of)
        bundle.partial_fit(given.learned(of))
    assert state([*bundle.estimator.transformers, bundle.estimator.final]) == state([scaler, components, last])
    rows = batch("SGDClassifier", 6, 99)
    before = seal(bundle, RING, HEADER)
    X = components.transform(scaler.transform(np.array(rows.X)))
    assert bundle.predict(rows.asked(of)) == [LABELS[code] for code in last.predict(X)]
    assert bundle.confidences(rows.asked(of))["probabilities"] == last.predict_proba(X).tolist()
    assert seal(bundle, RING, HEADER) == before
    assert bundle.width == 4
    with pytest.raises(InvalidError, match="have 2 values where the model has learned 4"):
        bundle.predict(asked(of, [[1.0, 2.0]]))


def test_texts_are_hashed_and_learned() -> None:
    """HashingVectorizer reads the text column and has 1,024 columns by default; the next step learns from them."""
    of = parse({
        "steps": [{"HashingVectorizer": {}}, {"SGDClassifier": {}}],
        "features": {"note": "text"},
        "classes": ["ham", "spam"],
    })  # fmt: skip
    texts = [["cheap pills now"], ["see you at lunch"], ["pills cheap"], ["lunch tomorrow"]]
    bundle = Bundle.new(of)
    bundle.partial_fit(learned(of, texts, ["spam", "ham", "spam", "ham"]))
    X = HashingVectorizer(n_features=1024).transform([text for (text,) in texts])
    hand = SGDClassifier(**ORDER).partial_fit(X.toarray(), [1, 0, 1, 0], classes=[0, 1])
    assert bundle.estimator.final.coef_.tobytes() == hand.coef_.tobytes()
    assert reopened(bundle, of).predict(asked(of, [["cheap cheap"]])) == ["spam"]
    try_predict(bundle)


def test_distances_to_clusters_feed_a_regressor() -> None:
    """A clusterer before the last step gives distances, and the last step may have several outputs."""
    of = parse({
        "steps": [{"MiniBatchKMeans": {"n_clusters": 3}}, {"MultiOutputRegressor": {"estimator": {"SGDRegressor": {}}}}]
    })  # fmt: skip
    bundle, clusters = Bundle.new(of), MiniBatchKMeans(n_clusters=3, random_state=0)
    last = MultiOutputRegressor(SGDRegressor(**ORDER))
    for given in batches("MultiOutputRegressor"):
        bundle.partial_fit(given.learned(of))
        X = clusters.partial_fit(np.array(given.X)).transform(np.array(given.X))
        last.partial_fit(X, np.array(given.y))
    assert state(bundle.estimator.final) == state(last)
    score = bundle.score(batch("MultiOutputRegressor", 6).learned(of))
    assert score["max_error"] >= score["mean_absolute_error"] > 0  # type: ignore[operator]


def test_a_large_tree_in_a_pipeline_can_be_stored() -> None:
    """A Birch of a thousand leaves after a scaler is sealed, unsealed and learns further."""
    params = {"threshold": 1e-3, "branching_factor": 3, "n_clusters": None}
    of = parse({"steps": [{"StandardScaler": {}}, {"Birch": params}]})
    X = np.random.default_rng(4).normal(size=(800, 2)).tolist()
    bundle = Bundle.new(of)
    bundle.partial_fit(learned(of, X[:750]))
    again = reopened(bundle, of)
    for learner in (bundle, again):
        learner.partial_fit(learned(of, X[750:]))
    assert isinstance(again.estimator.final, Birch)
    assert len(again.estimator.final.subcluster_centers_) > 500
    assert again.predict(asked(of, X[:9])) == bundle.predict(asked(of, X[:9]))


def test_non_finite_values_are_found_in_every_step() -> None:
    """A NaN in a step, or in the inner estimator of a wrapper, stops the commit with its name."""
    of = parse({"steps": [{"StandardScaler": {}}, {"MultiOutputRegressor": {"estimator": {"SGDRegressor": {}}}}]})
    bundle, given = Bundle.new(of), batch("MultiOutputRegressor", 5)
    bundle.partial_fit(given.learned(of))
    inner = bundle.estimator.final.estimators_[1]
    inner.coef_[0] = np.nan
    with pytest.raises(ArithmeticError, match=r"estimators_\.coef_ of MultiOutputRegressor would no longer be finite"):
        bundle.check_finite()
    inner.coef_[0] = 0.0
    bundle.estimator.transformers[0].mean_[0] = np.inf
    with pytest.raises(ArithmeticError, match="mean_ of StandardScaler would no longer be finite"):
        bundle.check_finite()


# First calls.

FIRST: list[tuple[dict[str, Any], int]] = [
    ({"estimator": "IncrementalPCA", "params": {"n_components": 3}}, 3),
    ({"estimator": "IncrementalPCA", "params": {"n_components": 1}}, 2),
    ({"estimator": "IncrementalPCA"}, 4),
    ({"estimator": "MiniBatchKMeans"}, 8),
    ({"estimator": "MiniBatchNMF", "params": {"n_components": 3, "init": "nndsvd"}}, 3),
    ({"estimator": "MiniBatchNMF", "params": {"init": "nndsvda"}}, 4),
    ({"estimator": "MiniBatchNMF", "params": {"n_components": 3}}, 1),
    ({"estimator": "MiniBatchDictionaryLearning", "params": {"n_components": 6}}, 1),
    ({"steps": [{"IncrementalPCA": {"n_components": 3}}, {"MiniBatchKMeans": {"n_clusters": 5}}]}, 5),
    ({"steps": [{"MiniBatchKMeans": {"n_clusters": 6}}, {"IncrementalPCA": {}}]}, 6),
    ({"steps": [{"MiniBatchKMeans": {"n_clusters": 2}}, {"IncrementalPCA": {}}, {"Birch": {}}]}, 2),
]


@pytest.mark.parametrize(("wanted", "needed"), FIRST, ids=[f"{list(doc.values())} {n}"[:70] for doc, n in FIRST])
def test_single_rows_wait_for_the_first_call(wanted: dict[str, Any], needed: int) -> None:
    """Rows wait in the bundle until there are enough, then one call learns them; a restore loses none."""
    of = parse(wanted)
    X = np.random.default_rng(3).integers(0, 9, (12, 4)).astype(float).tolist()
    bundle = Bundle.new(of)
    for seen in range(1, needed):
        bundle.partial_fit(learned(of, X[seen - 1 : seen]))
        bundle = reopened(bundle, of)
        words = f"needs {needed} rows for its first call; {seen} are waiting, {needed - seen} more are needed"
        for ask in (bundle.predict, bundle.confidences):
            with pytest.raises(ConflictError, match=words):
                ask(asked(of, X[:1]))
        try_predict(bundle)
    for row in X[needed - 1 :]:
        bundle.partial_fit(learned(of, [row]))
    assert (bundle.rows_seen, bundle.waiting) == (len(X), ())
    at_once = Bundle.new(of)
    at_once.partial_fit(learned(of, X[:needed]))
    for row in X[needed:]:
        at_once.partial_fit(learned(of, [row]))
    assert state(bundle.estimator) == state(at_once.estimator)
    assert bundle.predict(asked(of, X)) == at_once.predict(asked(of, X))


def test_a_row_that_cannot_be_learned_does_not_wait() -> None:
    """A row that a later step would reject is rejected with its own request, not with those that wait."""
    of = parse({"estimator": "MiniBatchNMF", "params": {"n_components": 3, "init": "nndsvd"}})
    bundle = Bundle.new(of)
    bundle.partial_fit(learned(of, [[1, 2, 3, 4]]))
    for wrong, words in (
        ([[1, 2, -3, 4]], "Negative values"),
        ([[1, 2, 3]], "have 3 values where those before have 4"),
    ):
        before = seal(bundle, RING, HEADER)
        with pytest.raises((ValueError, InvalidError), match=words):
            bundle.partial_fit(learned(of, wrong))
        bundle = unseal(before, RING, of, HASH)[1]
    bundle.partial_fit(learned(of, [[4, 3, 2, 1], [0, 1, 0, 1]]))
    assert bundle.is_fitted


def test_weights_wait_with_their_rows() -> None:
    """Waiting rows with weights are learned with these, those without with weight 1."""
    of = parse({"estimator": "MiniBatchKMeans", "params": {"n_clusters": 3}})
    bundle, hand = Bundle.new(of), MiniBatchKMeans(n_clusters=3, random_state=0)
    X = [[0.0], [9.0], [5.0]]
    for row, weight in zip(X, (None, [3.0], None), strict=True):
        bundle.partial_fit(shape(of, [row], None, weight, learning=True))
    hand.partial_fit(np.array(X), sample_weight=[1.0, 3.0, 1.0])
    assert state(bundle.estimator) == state(hand)


# What is refused when it is posted.

REFUSED: list[tuple[dict[str, Any], str]] = [
    (
        {"estimator": "IncrementalPCA", "params": {"n_components": 3}, "features": {"a": "number"}},
        "more than the 1 col",
    ),
    ({"estimator": "IncrementalPCA", "params": {"n_components": 0}}, "'n_components' parameter of IncrementalPCA"),
    ({"estimator": "IncrementalPCA", "params": {"n_components": 20_000}}, "needs 20000 rows, more than the 10000"),
    (
        {"steps": [{"IncrementalPCA": {"n_components": 2}}, {"IncrementalPCA": {"n_components": 3}}]},
        "n_components=3 is more than the 2 columns",
    ),
    ({"estimator": "MiniBatchKMeans", "params": {"n_clusters": 2, "init": [[1], [2], [3]]}}, "shape of the initial"),
    (
        {"estimator": "MiniBatchNMF", "params": {"n_components": 9, "init": "nndsvd"}, "features": {"a": "number"}},
        "init",
    ),
    ({"estimator": "MiniBatchNMF", "params": {"init": "custom"}}, "params of MiniBatchNMF"),
    ({"estimator": "MinMaxScaler", "params": {"feature_range": [1, 0]}}, "Minimum of desired feature range"),
    ({"estimator": "HashingVectorizer", "features": {"a": "number"}}, "text"),
    ({"estimator": "HashingVectorizer"}, "text"),
    ({"estimator": "HashingVectorizer", "params": {"input": "filename"}}, "no file is read"),
    ({"estimator": "HashingVectorizer", "params": {"token_pattern": "(a+)+$"}}, "time of a pattern is unbounded"),
    (
        {"estimator": "HashingVectorizer", "params": {"ngram_range": [2, 1]}, "features": {"t": "text"}},
        "Invalid value for ngram_range",
    ),
    ({"estimator": "GaussianNB", "params": {"priors": [0.5, 0.6]}, "classes": [0, 1]}, "sum of the priors should be 1"),
    ({"estimator": "GaussianNB", "params": {"priors": [1.0]}, "classes": [0, 1]}, "Number of priors must match"),
    (
        {"estimator": "MultinomialNB", "params": {"class_prior": [1.0]}, "classes": [0, 1]},
        "Number of priors must match",
    ),
    (
        {"estimator": "MultinomialNB", "params": {"alpha": [1.0, 1.0]}, "features": {"a": "number"}},
        "it should contains `n_features`. Got 2 elements instead of 1",
    ),
    ({"estimator": "CategoricalNB", "params": {"min_categories": [2, 2]}, "features": {"a": "number"}}, "min_cat"),
    ({"estimator": "SGDRegressor", "params": {"learning_rate": "optimal", "alpha": 0}}, "alpha must be > 0"),
    ({"estimator": "SGDRegressor", "params": {"penalty": "elasticnet", "l1_ratio": None}}, "l1_ratio must be set"),
    ({"estimator": "SGDClassifier", "params": {"learning_rate": "pa1", "loss": "log_loss"}}, "only works with loss"),
    ({"estimator": "LatentDirichletAllocation", "params": {"n_jobs": -1}}, "a worker is one process"),
    ({"estimator": "LatentDirichletAllocation", "params": {"verbose": 1}}, "the output of a worker is not read"),
    ({"estimator": "OneVsRestClassifier", "params": {"estimator": {"Perceptron": {"verbose": 1}}}}, "is not read"),
    ({"estimator": "Birch", "params": {"n_clusters": 1}}, "use 2 or more, or null"),
    ({"estimator": "MiniBatchKMeans", "params": {"reassignment_ratio": 2}}, "must be 1 or less"),
    ({"estimator": "MultinomialNB", "params": {"alpha": 0}}, "gives unseen classes no probability"),
    ({"estimator": "MLPClassifier", "params": {"hidden_layer_sizes": {"a": 2}}}, "params of MLPClassifier"),
    ({"estimator": "MLPClassifier", "params": {"hidden_layer_sizes": [5, 0]}}, "hidden_layer_sizes must be > 0"),
    (
        {"estimator": "MiniBatchDictionaryLearning", "params": {"positive_code": True, "fit_algorithm": "lars"}},
        "Positive constraint not supported",
    ),
    ({"estimator": "SelectFromModel", "params": {"estimator": {"GaussianNB": {}}}}, "has no weight for each column"),
    ({"estimator": "SelectFromModel", "params": {"estimator": {"SGDRegressor": {}}, "prefit": True}}, "prefit: "),
    (
        {"estimator": "SelectFromModel", "params": {"estimator": {"SGDRegressor": {}}, "threshold": "twice"}},
        "Expected threshold='mean' or threshold='median'",
    ),
    ({"estimator": "MultiOutputRegressor"}, "must be an object with one key"),
    (
        {"estimator": "MultiOutputRegressor", "params": {"estimator": {"GaussianNB": {}}}},
        "a classifier, and .* regress",
    ),
    ({"estimator": "OneVsRestClassifier", "params": {"estimator": {"SGDRegressor": {}}}}, "a regressor, and .* classi"),
    (
        {"estimator": "OneVsRestClassifier", "params": {"estimator": {"os.system": {}}}},
        "'os.system' is a path",
    ),
    (
        {"estimator": "OneVsRestClassifier", "params": {"estimator": {"SGDClassifier": {"loss": "x"}}}},
        "'loss' parameter",
    ),
    (
        {"estimator": "MultiOutputClassifier", "params": {"estimator": {"OneVsRestClassifier": {}}}},
        "is a wrapper itself",
    ),
    (
        {"estimator": "OneVsRestClassifier", "params": {"estimator": {"SGDClassifier": {"class_weight": {"a": 2}}}}},
        "cannot have a class_weight",
    ),
    (
        {"estimator": "MultiOutputClassifier", "params": {"estimator": {"SGDClassifier": {}}}, "classes": ["a", "b"]},
        "a list of lists, the labels of each output",
    ),
    ({"estimator": "GaussianNB", "classes": [["a"], ["b"]]}, "classes is a list of labels"),
    ({"steps": []}, "between 1 and 16 estimators"),
    ({"steps": [{"SGDRegressor": {}}], "estimator": "SGDRegressor"}, "required, not estimator and steps"),
    (
        {"steps": [{"SGDRegressor": {}}], "params": {"alpha": 1}},
        "write the parameters inside steps, and leave out params",
    ),
    ({"steps": [{"StandardScaler": {}, "SGDRegressor": {}}]}, "an object with one key"),
    ({"steps": [{"SGDRegressor": {}}, {"SGDRegressor": {}}]}, "a regressor, which transforms no rows"),
    ({"steps": [{"Birch": {}}, {"SGDRegressor": {}}]}, "number grows as it learns"),
    (
        {"steps": [{"SelectFromModel": {"estimator": {"SGDRegressor": {}}}}, {"SGDRegressor": {}}]},
        "change as it learns",
    ),
    ({"steps": [{"StandardScaler": {}}, {"HashingVectorizer": {}}]}, "it must be the first step"),
    ({"steps": [{"StandardScaler": {}}, {"SGDRegressor": {"alpha": -1}}]}, "'alpha' parameter of SGDRegressor"),
    ({"steps": [{"StandardScaler": {}}, {"MultinomialNB": {}}]}, "Negative values in data"),
]


@pytest.mark.parametrize(("wrong", "words"), REFUSED, ids=[f"{i}-{words[:40]}" for i, (_, words) in enumerate(REFUSED)])
def test_params_without_learnable_rows_are_rejected_when_posted(wrong: dict[str, Any], words: str) -> None:
    """Parameters are checked before the first row, with the estimator's own message if it has one."""
    with pytest.raises(InvalidError, match=words) as refused:
        recipe_check.check(wrong)
    assert len(str(refused.value)) < 700


def test_joined_and_single_calls_differ() -> None:
    """Control: a bundle that joined or split the calls of this suite would learn something else."""
    name, of = "SGDRegressor", recipe("SGDRegressor")
    whole, split = Bundle.new(of), Bundle.new(of)
    for given in batches(name):
        whole.partial_fit(given.learned(of))
        for row, y in zip(given.X, given.y or [], strict=True):
            split.partial_fit(learned(of, [row], [y]))
    assert state(whole.estimator) != state(split.estimator)
    assert [a < b for a, b in pairwise(SIZES)] == [False, True, False]
