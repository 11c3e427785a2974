"""Computing in chunks: the same predictions, a time limit, and errors of one question only."""

import random
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import pytest

from keepfit.backends import redis_keys, redis_scripts
from keepfit.errors import KeepfitError
from keepfit.jobs import messages
from keepfit.jobs.messages import Operation, WorkerRequest
from keepfit.model import object_bundle, recipe_check
from keepfit.model.bundle import Bundle
from keepfit.recipe import uploads
from keepfit.recipe.recipe import parse
from keepfit.rows.rows import Rows
from keepfit.rows.shaping import shape
from keepfit.store import staging
from keepfit.store.models import Store
from keepfit_workers import computing, outbox, predicting
from keepfit_workers.computing import ChunkSizes, Question, compute
from keepfit_workers.context import WorkerContext
from tests import catalogue
from tests.factories import claimed_entry, dump_local
from tests.workers.test_predicting import execute, make_learned, request, rows_of

UPLOAD_KEYS = "u1:" + "ab" * 32
TOGETHER = """class Together:
    def partial_fit(self, X, y): pass
    def predict(self, X): return [float(len(X))] * len(X)
"""


def learned(name: str) -> Bundle:
    """Return a bundle that has learned some rows."""
    bundle = Bundle.new(catalogue.recipe(name))
    bundle.partial_fit(catalogue.batch(name, 30).learned(bundle.recipe))
    return bundle


def question(number: int, rows: Rows, operation: Operation = "predict", deadline_s: float = 1e12) -> Question:
    """Return a question about a model."""
    asked = WorkerRequest(number, "g", "h", operation, 1, rows)
    return Question(asked, deadline_s, len(messages.encode(asked)))


def outcomes(bundle: Any, *questions: Question, sizes: ChunkSizes | None = None) -> dict[int, Any]:
    """Compute questions; return their outcomes by number."""
    steps = compute(None, bundle, sizes or ChunkSizes(), questions)  # type: ignore[arg-type]
    found = [step for step in steps if step is not None]
    assert len(found) == len(questions)
    return {one.request.id: outcome for one, outcome in found}


@pytest.mark.parametrize("name", catalogue.NAMES)
def test_chunks_predict_what_one_call_predicts(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """For every estimator, the predictions of a large question are those of one call, bit for bit."""
    bundle = learned(name)
    rows = catalogue.batch(name, 277, seed=1).asked(bundle.recipe)
    expected: dict[str, Any] = {"predictions": bundle.predict(rows)}
    calls: list[int] = []
    predict = Bundle.predict
    monkeypatch.setattr(Bundle, "predict", lambda bundle, rows: calls.append(rows.n) or predict(bundle, rows))
    for size_bytes in (1, 1_000, 3_000):
        monkeypatch.setattr(computing, "FIRST_CHUNK_BYTES", size_bytes)
        monkeypatch.setattr(ChunkSizes, "record", lambda *_: None)
        assert outcomes(bundle, question(1, rows)) == {1: expected["predictions"]}
    assert len(calls) == 3 if name == "MiniBatchNMF" else len(calls) > 40
    with suppress(KeepfitError):
        expected |= bundle.confidences(rows)
    found = outcomes(bundle, question(1, rows, "proba"))[1]
    assert isinstance(found, KeepfitError) if len(expected) == 1 else found == expected


def test_a_divided_question_shares_no_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small questions share a chunk; a large one among them gets the predictions of one call, bit for bit."""
    bundle = Bundle.new(recipe_check.check({"estimator": "SGDRegressor"}))
    numbers = random.Random(1)

    def rows_with(count: int, *, learning: bool = False) -> Rows:
        values = [[numbers.gauss(0.0, 1.0) for _ in range(20)] for _ in range(count)]
        return shape(bundle.recipe, values, [numbers.random()] * count if learning else None, learning=learning)

    bundle.partial_fit(rows_with(30, learning=True))
    monkeypatch.setattr(computing, "FIRST_CHUNK_BYTES", 2_000)
    monkeypatch.setattr(ChunkSizes, "record", lambda *_: None)
    asked = [rows_with(count) for count in (3, 2, 149, 1, 43, 4, 2)]
    expected = [bundle.predict(rows) for rows in asked]
    calls: list[int] = []
    predict = Bundle.predict
    monkeypatch.setattr(Bundle, "predict", lambda bundle, rows: calls.append(rows.n) or predict(bundle, rows))
    found = outcomes(bundle, *(question(i, rows) for i, rows in enumerate(asked)))
    assert calls == [5, *[8] * 18, 5, 1, *[8] * 4, 11, 6]
    for i, predictions in enumerate(expected):
        assert found[i] == (predictions if asked[i].n > 10 else pytest.approx(predictions, rel=1e-12))


def test_an_object_sees_the_rows_of_a_question_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """What an object answers may depend on the other rows: no chunk divides the rows of a question."""
    keyring = uploads.upload_keyring(UPLOAD_KEYS)
    recipe = parse({"object": dump_local(TOGETHER, UPLOAD_KEYS)}, keyring)
    bundle = object_bundle.new_bundle(recipe, keyring)
    bundle.partial_fit(shape(recipe, [[0.0]], [1.0], learning=True))
    monkeypatch.setattr(computing, "FIRST_CHUNK_BYTES", 2_000)
    monkeypatch.setattr(ChunkSizes, "record", lambda *_: None)
    some, many = (shape(recipe, [[0.0]] * n, learning=False) for n in (4, 500))
    found = outcomes(bundle, question(1, some), question(2, many), question(3, some))
    assert found == {1: [4.0] * 4, 2: [500.0] * 500, 3: [4.0] * 4}


class Clock:
    """A clock that only calls of ``predict`` move."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, seconds_per_row: float) -> None:
        self.now_s = 100.0
        self.calls: list[int] = []
        predict = Bundle.predict

        def slow(bundle: Bundle, rows: Rows) -> Any:
            self.calls.append(rows.n)
            self.now_s += rows.n * seconds_per_row
            return predict(bundle, rows)

        monkeypatch.setattr(Bundle, "predict", slow)
        for module in (computing, predicting):
            monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: self.now_s))


def test_a_question_past_its_deadline_is_computed_no_further(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two slow questions the one whose deadline passes ends with DeadlineError; the other one is computed."""
    bundle, clock = learned("SGDRegressor"), Clock(monkeypatch, seconds_per_row=0.01)
    rows = catalogue.batch("SGDRegressor", 800).asked(bundle.recipe)
    found = outcomes(bundle, question(1, rows, deadline_s=103.0), question(2, rows, deadline_s=200.0))
    assert found[1] is computing.LATE
    assert len(found[2]) == 800
    assert max(clock.calls[1:]) == 8
    before, clock.calls[:] = clock.calls[:], []
    assert sum(before) < 800 + 300 + 500
    for operation in ("proba", "score", "predict"):
        assert outcomes(bundle, question(1, rows, operation, deadline_s=clock.now_s - 1)) == {1: computing.LATE}
    assert clock.calls == []


def test_a_quick_model_has_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a few batches of a quick model, all its requests are one call again, also after one slow moment."""
    bundle, clock = learned("SGDRegressor"), Clock(monkeypatch, seconds_per_row=1e-6)
    asked = [question(i, catalogue.batch("SGDRegressor", 1, seed=i).asked(bundle.recipe)) for i in range(512)]
    sizes = ChunkSizes()
    for _ in range(3):
        outcomes(bundle, *asked, sizes=sizes)
    clock.calls.clear()
    outcomes(bundle, *asked, sizes=sizes)
    assert clock.calls == [512]
    sizes.record("h", 100, computing.CHUNK_S * 10)
    outcomes(bundle, *asked, sizes=sizes)
    clock.calls.clear()
    outcomes(bundle, *asked, sizes=sizes)
    assert clock.calls == [512]


async def test_models_take_turns_chunk_by_chunk(
    store: Store, context: WorkerContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model with a long question does not delay the others of its claim: they are answered after its first chunk."""
    slow, quick = await make_learned(store, context, 1), await make_learned(store, context, 2)
    clock = Clock(monkeypatch, seconds_per_row=0.01)
    execute(context, request(1, slow, rows_of(*map(float, range(8)))), request(2, quick, rows_of(1.0)))
    clock.calls.clear()
    # Nothing is known of either of them.
    context.longest_s.clear()
    unsent = predicting.answer_all(
        context,
        [
            claimed_entry(request(1, slow, rows_of(*map(float, range(800))))),
            claimed_entry(request(2, quick, rows_of(1.0))),
        ],
    )
    redis_scripts.run(context.queue, *unsent)
    assert clock.calls == [8, 1, *[8] * 99]
    batches = context.queue.lrange(redis_keys.replies("g"), 0, -1)
    assert [reply.id for batch in batches for reply in messages.decode_replies(batch)][-2:] == [2, 1]


async def test_an_answer_that_cannot_be_sent_fails_alone(
    store: Store, context: WorkerContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half a character, an unknown type, an unforeseen error: an error of that question, not of those beside it."""
    odd, good = await make_learned(store, context, 1), await make_learned(store, context, 2)
    answers: dict[float, Any] = {1.0: "\ud800", 2.0: object(), 3.0: float("nan"), 4.0: 2**70}
    predict = Bundle.predict

    def answer(bundle: Bundle, rows: Rows) -> Any:
        numbers = rows.number_list()
        if 5.0 in numbers:
            raise RecursionError("too deep")
        return [answers.get(number, value) for number, value in zip(numbers, predict(bundle, rows), strict=True)]

    monkeypatch.setattr(Bundle, "predict", answer)
    asked = [request(i, odd, rows_of(float(i))) for i in range(1, 8)]
    found = execute(context, *asked, *(request(10 + i, good, rows_of(9.0)) for i in range(16)))
    kinds = {number: reply.error[0] if reply.error else None for number, reply in found.items() if number < 10}
    invalid = "InvalidError"
    assert kinds == {1: invalid, 2: invalid, 3: None, 4: invalid, 5: "KeepfitError", 6: None, 7: None}
    assert [found[10 + i].error for i in range(16)] == [None] * 16


async def test_a_failure_with_one_model_is_an_error_of_that_model_only(
    store: Store, context: WorkerContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A state that cannot be read, and a bundle whose loading fails, do not affect the other models of a claim."""
    unreadable, failing, good = [await make_learned(store, context, i) for i in range(3)]
    context.store.delete(redis_keys.state(unreadable.hash))
    context.store.set(redis_keys.state(unreadable.hash), "a string")
    get = context.bundles.get

    def load(model: Any) -> Bundle:
        if model.hash == failing.hash:
            raise AttributeError("what no one foresaw")
        return get(model)

    monkeypatch.setattr(context.bundles, "get", load)
    models = (unreadable, failing, good)
    found = execute(context, *(request(i, model, rows_of(1.0)) for i, model in enumerate(models)))
    assert [found[i].error and found[i].error[0] for i in range(3)] == ["KeepfitError", "KeepfitError", None]


async def test_an_answer_with_too_many_values_is_refused(
    store: Store, context: WorkerContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error names how many rows fit; other questions about the model are answered."""
    model = await make_learned(store, context, 1)
    monkeypatch.setattr(messages, "ANSWER_VALUES_MAX", 20)
    key = redis_keys.request_rows("rows")
    await staging.write_in_pieces(store._store, key, rows_of(*[1.0] * 21), 60_000)
    found = execute(
        context,
        request(1, model, rows_of(*[1.0] * 20)),
        request(2, model, rows_of(*[1.0] * 21)),
        request(3, model, None, rows_key=key),
    )
    assert len(found[1].result) == 20
    for number in (2, 3):
        assert found[number].error is not None
        assert found[number].error[0] == "TooLargeError"
        assert "at most 20 rows" in found[number].error[1]


@pytest.mark.parametrize(
    ("name", "operation", "per_row"), [("SGDClassifier", "proba", 4), ("IncrementalPCA", "predict", 2)]
)
def test_values_are_those_of_all_outputs(
    name: str, operation: Operation, per_row: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row has one value for each probability and component; a few rows tell what is not known before."""
    bundle = learned(name)
    monkeypatch.setattr(messages, "ANSWER_VALUES_MAX", 50 * per_row)
    fits, too_many = (catalogue.batch(name, n).asked(bundle.recipe) for n in (50, 51))
    found = outcomes(bundle, question(1, fits, operation), question(2, too_many, operation))
    assert not isinstance(found[1], KeepfitError)
    assert f"{51 * per_row} values" in str(found[2])


async def test_replies_above_the_limit_of_a_round_trip_are_sent_at_once(
    store: Store, context: WorkerContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker does not collect large replies: at the limit it sends what it has."""
    model = await make_learned(store, context, 1)
    monkeypatch.setattr(outbox, "SEND_BYTES", 1_000)
    monkeypatch.setattr(outbox, "SEND_AFTER_S", 3600.0)
    unsent = predicting.answer_all(
        context, [claimed_entry(request(i, model, rows_of(*[1.0] * 100))) for i in range(10)]
    )
    assert context.queue.llen(redis_keys.replies("g")) == 5
    assert unsent == [] or unsent[0][0] != "RPUSH"


async def test_questions_that_may_take_long_come_last(
    store: Store, context: WorkerContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Models that were quick so far are answered first, and their replies are sent before a call that may be long."""
    slow, unknown, quick = [await make_learned(store, context, number) for number in (1, 2, 3)]
    clock = Clock(monkeypatch, seconds_per_row=1e-5)
    execute(context, request(1, slow, rows_of(*map(float, range(6000)))), request(3, quick, rows_of(1.0)))
    sent: list[int] = []
    predict = Bundle.predict

    def count_sent(bundle: Bundle, rows: Rows) -> Any:
        sent.append(context.queue.llen(redis_keys.replies("g")))
        return predict(bundle, rows)

    monkeypatch.setattr(Bundle, "predict", count_sent)
    clock.calls.clear()
    asked = [
        request(number, model, rows_of(*[1.0] * number)) for number, model in ((1, unknown), (2, slow), (3, quick))
    ]
    score = request(4, quick, rows_of(1.0, 2.0, 3.0, 4.0, learning=True), "score")
    unsent = predicting.answer_all(context, [claimed_entry(entry) for entry in asked])
    redis_scripts.run(context.queue, *unsent)
    assert (clock.calls, sent) == ([3, 2, 1], [0, 1, 2])
    context.queue.delete(redis_keys.replies("g"))
    unsent = predicting.answer_all(context, [claimed_entry(entry) for entry in (score, asked[1])])
    redis_scripts.run(context.queue, *unsent)
    batches = context.queue.lrange(redis_keys.replies("g"), 0, -1)
    assert [[reply.id for reply in messages.decode_replies(batch)] for batch in batches] == [[2], [4]]
