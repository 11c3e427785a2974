"""Predict requests in one worker process, called without RQ."""

from typing import Any

import pytest
import redis

from keepfit import identity
from keepfit.backends import redis_keys, redis_scripts
from keepfit.errors import UnavailableError
from keepfit.jobs import messages, run_queue
from keepfit.jobs.messages import Operation, WorkerReply, WorkerRequest
from keepfit.model import serialization
from keepfit.model.bundle import Bundle
from keepfit.observability.process_counts import ProcessCounts
from keepfit.recipe.recipe import parse
from keepfit.rows.rows import Rows
from keepfit.rows.shaping import shape
from keepfit.store import staging
from keepfit.store.models import Install, Model, Store
from keepfit_workers import outbox, predicting
from keepfit_workers.context import WorkerContext
from keepfit_workers.learning import learn
from keepfit_workers.outbox import Outbox
from keepfit_workers.predicting import answer_all
from tests.factories import accept, claimed_entry

RECIPE = parse({"estimator": "SGDRegressor", "scaler": "StandardScaler"})
QUEUE = run_queue.PREDICT.name


def rows_of(*values: float, learning: bool = False) -> Rows:
    """Return rows of one column; the target equals the input."""
    return shape(RECIPE, [[value] for value in values], list(values) if learning else None, learning=learning)


async def make_learned(store: Store, context: WorkerContext, session: int, value: float = 1.0) -> Model:
    """Install a model that has learned two rows."""
    metadata = {"type": "test", "session": session}
    model_hash = identity.hash_of(metadata)
    await store.install(Install(model_hash, identity.canonical(metadata).decode(), RECIPE.text(), generation=1))
    return await learn_rows(store, context, model_hash, value)


async def learn_rows(store: Store, context: WorkerContext, model_hash: str, value: float) -> Model:
    """Accept two rows of the model and let the worker learn them."""
    model = await store.describe(model_hash)
    assert model is not None
    await accept(store, model, rows_of(value, value + 1, learning=True))
    learn(context, model_hash, "lease")
    return model


def request(number: int, model: Model, rows: Rows | None, operation: Operation = "predict", **more: Any) -> bytes:
    """Return a request of the gateway `g`, as a claim reads it from the run queue."""
    return messages.encode(WorkerRequest(number, "g", model.hash, operation, model.generation, rows, **more))


def execute(context: WorkerContext, *entries: bytes) -> dict[int, WorkerReply]:
    """Execute entries; return the replies by request id, in however many batches they were sent."""
    unsent = answer_all(context, [claimed_entry(entry) for entry in entries])
    if unsent:
        redis_scripts.run(context.queue, *unsent)
    batches = context.queue.lrange(redis_keys.replies("g"), 0, -1)
    context.queue.delete(redis_keys.replies("g"))
    return {reply.id: reply for batch in batches for reply in messages.decode_replies(batch)}


def expected(client: redis.Redis, context: WorkerContext, model: Model, *values: float) -> list[Any]:
    """Return what the stored bundle predicts."""
    data = client.get(redis_keys.bundle(model.hash))
    assert isinstance(data, bytes)
    bundle: Bundle = serialization.unseal(data, context.keyring, RECIPE, model.hash)[1]
    return bundle.predict(rows_of(*values))


async def test_requests_of_one_model_share_one_call(
    store: Store, context: WorkerContext, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Requests for one model are one predict call, even with other requests between them, and get one reply each."""
    first, second = await make_learned(store, context, 1), await make_learned(store, context, 2, 5.0)
    calls: list[int] = []
    predict = Bundle.predict
    monkeypatch.setattr(Bundle, "predict", lambda bundle, rows: calls.append(rows.n) or predict(bundle, rows))
    found = execute(
        context,
        request(1, first, rows_of(1.0)),
        request(2, second, rows_of(2.0)),
        request(3, first, rows_of(3.0, 4.0)),
    )
    assert sorted(calls) == [1, 3]
    monkeypatch.undo()
    assert [found[1].result, found[3].result] == [expected(client, context, first, *v) for v in ((1.0,), (3.0, 4.0))]
    assert found[2].result == expected(client, context, second, 2.0)


async def test_a_reply_uses_the_newest_version(store: Store, context: WorkerContext, client: redis.Redis) -> None:
    """A cached bundle is used only while it is the stored one, also if another worker learned meanwhile."""
    model = await make_learned(store, context, 1)
    for turn in range(3):
        (reply,) = execute(context, request(1, model, rows_of(2.0))).values()
        assert (reply.version, reply.rows_seen) == (turn + 1, 2 * turn + 2)
        assert reply.result == expected(client, context, model, 2.0)
        another = WorkerContext(context.settings, "another")
        await learn_rows(store, another, model.hash, float(turn))
        another.close()


async def test_one_bad_request_fails_alone(store: Store, context: WorkerContext) -> None:
    """Another width, a stale generation, an unknown model and missing or cut rows fail; the other requests succeed."""
    model = await make_learned(store, context, 1)
    wide = shape(RECIPE, [[1.0, 2.0]], learning=False)
    context.queue.set(redis_keys.request_rows("cut"), b"\x95\x01")
    found = execute(
        context,
        request(1, model, rows_of(1.0)),
        request(2, model, wide),
        messages.encode(WorkerRequest(3, "g", model.hash, "predict", 7, rows_of(1.0))),
        messages.encode(WorkerRequest(4, "g", "0" * 64, "predict", 1, rows_of(1.0))),
        request(5, model, None, rows_key=redis_keys.request_rows("missing")),
        request(6, model, None, rows_key=redis_keys.request_rows("cut")),
        b"garbage",
        request(7, model, rows_of(1.0)),
    )
    kinds = {number: reply.error[0] if reply.error else None for number, reply in found.items()}
    assert kinds == {
        1: None,
        2: "InvalidError",
        3: "StaleModelError",
        4: "NotFoundError",
        5: UnavailableError.__name__,
        6: UnavailableError.__name__,
        7: None,
    }


async def test_large_rows_are_read_from_their_own_key_and_deleted(
    store: Store, context: WorkerContext, client: redis.Redis
) -> None:
    """A request with its rows in a key of their own is answered like any other; the reply deletes that key."""
    model = await make_learned(store, context, 1)
    key = redis_keys.request_rows("rows")
    await staging.write_in_pieces(store._store, key, rows_of(1.0, 2.0), 60_000)
    (reply,) = execute(context, request(1, model, None, rows_key=key)).values()
    assert reply.result == expected(client, context, model, 1.0, 2.0)
    assert not context.queue.exists(key)


async def test_quick_models_do_not_wait_for_slow_ones(
    store: Store, context: WorkerContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker sends finished replies before it computes a slower model of the same batch."""
    quick, slow = await make_learned(store, context, 1), await make_learned(store, context, 2)
    monkeypatch.setattr(outbox, "SEND_AFTER_S", 0.0)
    sent_before: list[Any] = []
    predict = Bundle.predict

    def spy(bundle: Bundle, rows: Rows) -> Any:
        sent_before.append(context.queue.llen(redis_keys.replies("g")))
        return predict(bundle, rows)

    monkeypatch.setattr(Bundle, "predict", spy)
    execute(context, request(1, quick, rows_of(1.0)), request(2, slow, rows_of(1.0)))
    assert sent_before == [0, 1]


async def test_the_request_limit_of_a_slow_model_doubles_until_it_is_removed(
    store: Store, context: WorkerContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The limit per claim follows the measured cost, in any worker; the entry is removed once the model is quick."""
    model = await make_learned(store, context, 1)
    limits = redis_keys.request_limits(QUEUE)
    monkeypatch.setattr(predicting, "TURN_S", 0.0)
    execute(context, *(request(number, model, rows_of(1.0)) for number in range(8)))
    assert context.queue.hget(limits, model.hash) == b"1"
    monkeypatch.setattr(predicting, "TURN_S", 60.0)
    another = WorkerContext(context.settings, "another")
    for limit in (2, 4, 8, 16, 32, 64, 128, 256):
        another.set_request_limits([model.hash.encode(), str(limit // 2).encode()])
        execute(another, *(request(number, model, rows_of(1.0)) for number in range(limit // 2)))
        assert context.queue.hget(limits, model.hash) == str(limit).encode()
    another.set_request_limits([model.hash.encode(), b"256"])
    execute(another, *(request(number, model, rows_of(1.0)) for number in range(256)))
    another.close()
    assert context.queue.hget(limits, model.hash) is None


async def test_questions_of_several_turns_count_once(
    store: Store, context: WorkerContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The metrics have each question, and the time of all its turns, once, however many turns it takes."""
    model = await make_learned(store, context, 1)
    monkeypatch.setattr(predicting, "TURN_S", 0.0)
    turns, take = [], predicting.Turns.take

    def counted(self: predicting.Turns, outbox: Outbox) -> bool:
        turns.append(self)
        return take(self, outbox)

    monkeypatch.setattr(predicting.Turns, "take", counted)
    counts = context.metrics._counts = ProcessCounts()
    execute(context, *(request(number, model, rows_of(*map(float, range(40_000)))) for number in range(3)))
    assert len(turns) > 1
    assert len(set(turns)) == 1
    rows = counts.rows()
    assert rows["keepfit_worker_questions", "SGDRegressor"][0] == 3
    assert sum(rows["keepfit_worker_answer_seconds", "SGDRegressor"][:-1]) == 1


def test_the_request_limit_is_what_fits_into_a_turn() -> None:
    """Ten requests in five times TURN_S give a limit of two; a limit that was not reached is not raised."""
    turn_s = predicting.TURN_S
    assert predicting._limit_requests(None, "h", 10, turn_s * 5)[0][3] == 2
    assert predicting._limit_requests(None, "h", 10, predicting.VERY_SLOW_S * 11)[0][3] == run_queue.VERY_SLOW
    for quick_s in (turn_s / 4, turn_s * 0.75, turn_s * 2):
        assert predicting._limit_requests(0, "h", 1, quick_s)[0][3] == 1
    assert predicting._limit_requests(4, "h", 1, turn_s * 9)[0][3] == 1
    assert predicting._limit_requests(None, "h", 10, turn_s / 4) == []
    assert predicting._limit_requests(4, "h", 3, turn_s / 4) == []
    assert predicting._limit_requests(4, "h", 4, turn_s / 4)[0][3] == 8
