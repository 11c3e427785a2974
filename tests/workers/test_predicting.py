"""Answering questions in one worker process, without RQ around it."""

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
from keepfit.recipe.recipe import parse
from keepfit.rows.rows import Rows
from keepfit.rows.shaping import shape
from keepfit.store import inbox
from keepfit.store.models import Install, Model, Store
from keepfit_workers import predicting
from keepfit_workers.context import WorkerContext
from keepfit_workers.learning import learn
from keepfit_workers.predicting import answer_all
from tests.factories import accept

RECIPE = parse({"estimator": "SGDRegressor", "scaler": "StandardScaler"})
ROOM = run_queue.PREDICT.name


def rows_of(*values: float, learning: bool = False) -> Rows:
    """Rows of one column, with themselves as their target."""
    return shape(RECIPE, [[value] for value in values], list(values) if learning else None, learning=learning)


async def taught(store: Store, context: WorkerContext, session: int, value: float = 1.0) -> Model:
    """Make a model that has learned two rows."""
    metadata = {"type": "test", "session": session}
    model_hash = identity.hash_of(metadata)
    await store.install(Install(model_hash, identity.canonical(metadata).decode(), RECIPE.text(), generation=1))
    return await teach(store, context, model_hash, value)


async def teach(store: Store, context: WorkerContext, model_hash: str, value: float) -> Model:
    """Have a model learn two rows."""
    model = await store.describe(model_hash)
    assert model is not None
    await accept(store, model, rows_of(value, value + 1, learning=True))
    learn(context, model_hash, "lease")
    return model


def question(number: int, model: Model, rows: Rows | None, operation: Operation = "predict", **more: Any) -> bytes:
    """Return a question of the gateway `g`, as it comes from the room."""
    return messages.encode(WorkerRequest(number, "g", model.hash, operation, model.generation, rows, **more))


def answers(context: WorkerContext, *entries: bytes) -> dict[int, WorkerReply]:
    """Have entries answered; return the answers by number, however they were sent."""
    left = answer_all(context, entries)
    if left:
        redis_scripts.run(context.queue, *left)
    batches = context.queue.lrange(redis_keys.replies("g"), 0, -1)
    context.queue.delete(redis_keys.replies("g"))
    return {answer.id: answer for batch in batches for answer in messages.decode_replies(batch)}


def expected(client: redis.Redis, context: WorkerContext, model: Model, *values: float) -> list[Any]:
    """Return what the stored bundle predicts."""
    data = client.get(redis_keys.bundle(model.hash))
    assert isinstance(data, bytes)
    bundle: Bundle = serialization.unseal(data, context.keyring, RECIPE, model.hash)[1]
    return bundle.predict(rows_of(*values))


async def test_each_question_gets_its_own_part_of_one_call(
    store: Store, context: WorkerContext, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Questions about one model are computed in one call, whatever stands between them, and answered one by one."""
    first, second = await taught(store, context, 1), await taught(store, context, 2, 5.0)
    calls: list[int] = []
    predict = Bundle.predict
    monkeypatch.setattr(Bundle, "predict", lambda bundle, rows: calls.append(rows.n) or predict(bundle, rows))
    found = answers(
        context,
        question(1, first, rows_of(1.0)),
        question(2, second, rows_of(2.0)),
        question(3, first, rows_of(3.0, 4.0)),
    )
    assert sorted(calls) == [1, 3]
    monkeypatch.undo()
    assert [found[1].result, found[3].result] == [expected(client, context, first, *v) for v in ((1.0,), (3.0, 4.0))]
    assert found[2].result == expected(client, context, second, 2.0)


async def test_an_answer_is_by_the_newest_version(store: Store, context: WorkerContext, client: redis.Redis) -> None:
    """A bundle held in memory is used only while it is the stored one, whoever learned meanwhile."""
    model = await taught(store, context, 1)
    for turn in range(3):
        (answer,) = answers(context, question(1, model, rows_of(2.0))).values()
        assert (answer.version, answer.rows_seen) == (turn + 1, 2 * turn + 2)
        assert answer.result == expected(client, context, model, 2.0)
        another = WorkerContext(context.settings, "another")
        await teach(store, another, model.hash, float(turn))
        another.close()


async def test_one_bad_question_spoils_no_other(store: Store, context: WorkerContext) -> None:
    """Rows of another width, a stale generation, an unknown model and rows that are gone fail by themselves."""
    model = await taught(store, context, 1)
    wide = shape(RECIPE, [[1.0, 2.0]], learning=False)
    context.queue.set(redis_keys.request_rows("cut"), b"\x95\x01")
    found = answers(
        context,
        question(1, model, rows_of(1.0)),
        question(2, model, wide),
        messages.encode(WorkerRequest(3, "g", model.hash, "predict", 7, rows_of(1.0))),
        messages.encode(WorkerRequest(4, "g", "0" * 64, "predict", 1, rows_of(1.0))),
        question(5, model, None, rows_key=redis_keys.request_rows("gone")),
        question(6, model, None, rows_key=redis_keys.request_rows("cut")),
        b"garbage",
        question(7, model, rows_of(1.0)),
    )
    kinds = {number: answer.error[0] if answer.error else None for number, answer in found.items()}
    assert kinds == {
        1: None,
        2: "InvalidError",
        3: "StaleModelError",
        4: "NotFoundError",
        5: UnavailableError.__name__,
        6: UnavailableError.__name__,
        7: None,
    }


async def test_large_rows_are_read_from_beside_and_then_gone(
    store: Store, context: WorkerContext, client: redis.Redis
) -> None:
    """A question whose rows lie beside it is answered like any other, and its rows go with the answer."""
    model = await taught(store, context, 1)
    key = redis_keys.request_rows("rows")
    await inbox.write_in_pieces(store._store, key, rows_of(1.0, 2.0), 60_000)
    (answer,) = answers(context, question(1, model, None, rows_key=key)).values()
    assert answer.result == expected(client, context, model, 1.0, 2.0)
    assert not context.queue.exists(key)


async def test_quick_models_do_not_wait_for_slow_ones(
    store: Store, context: WorkerContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answers that are there are sent while a slower model of the same batch is still to come."""
    quick, slow = await taught(store, context, 1), await taught(store, context, 2)
    monkeypatch.setattr(predicting, "SEND_AFTER_S", 0.0)
    sent_before: list[Any] = []
    predict = Bundle.predict

    def spy(bundle: Bundle, rows: Rows) -> Any:
        sent_before.append(context.queue.llen(redis_keys.replies("g")))
        return predict(bundle, rows)

    monkeypatch.setattr(Bundle, "predict", spy)
    answers(context, question(1, quick, rows_of(1.0)), question(2, slow, rows_of(1.0)))
    assert sent_before == [0, 1]


async def test_a_slow_model_gets_short_turns_and_loses_them_when_it_is_quick(
    store: Store, context: WorkerContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a claim may take of a model follows what it costs, in any worker, and nothing is left of it in the end."""
    model = await taught(store, context, 1)
    turns = redis_keys.request_limits(ROOM)
    monkeypatch.setattr(predicting, "TURN_S", 0.0)
    answers(context, *(question(number, model, rows_of(1.0)) for number in range(8)))
    assert context.queue.hget(turns, model.hash) == b"1"
    monkeypatch.setattr(predicting, "TURN_S", 60.0)
    another = WorkerContext(context.settings, "another")
    for turn in (2, 4, 8, 16, 32, 64, 128, 256):
        another.set_request_limits([model.hash.encode(), str(turn // 2).encode()])
        answers(another, *(question(number, model, rows_of(1.0)) for number in range(turn // 2)))
        assert context.queue.hget(turns, model.hash) == str(turn).encode()
    another.set_request_limits([model.hash.encode(), b"256"])
    answers(another, *(question(number, model, rows_of(1.0)) for number in range(256)))
    another.close()
    assert context.queue.hget(turns, model.hash) is None


def test_a_turn_is_what_fits_into_its_time() -> None:
    """Ten questions in five times the time make two; a bound that was not reached is not raised."""
    turn_s = predicting.TURN_S
    assert predicting._limit_requests(None, "h", 10, turn_s * 5)[0][3] == 2
    assert predicting._limit_requests(4, "h", 1, turn_s * 9)[0][3] == 1
    assert predicting._limit_requests(None, "h", 10, turn_s / 4) == []
    assert predicting._limit_requests(4, "h", 3, turn_s / 4) == []
    assert predicting._limit_requests(4, "h", 4, turn_s / 4)[0][3] == 8
