"""Scorers that a worker sends: with replies to gateways that ask for them, and with commits of followed models."""

from collections.abc import Iterator
from typing import Any

import pytest
import redis

from keepfit import identity
from keepfit.backends import redis_keys, redis_scripts
from keepfit.jobs import messages
from keepfit.jobs.messages import Operation, WorkerReply, WorkerRequest
from keepfit.model.bundle import Bundle
from keepfit.model.scorers import encoded_scorer
from keepfit.recipe.recipe import Recipe, parse
from keepfit.rows.rows import Rows
from keepfit.rows.shaping import shape
from keepfit.scoring import encoding
from keepfit.store.models import Install, Model, Store
from keepfit_workers import learning, scorers
from keepfit_workers.context import WorkerContext
from keepfit_workers.predicting import answer_all
from keepfit_workers.scorers import ENTRY_BYTES, EncodedScorers
from tests.factories import accept, claimed_entry

LINEAR = parse({"estimator": "SGDRegressor", "scaler": "StandardScaler"})
# Words are counted by scikit-learn, which gateways do not have.
TEXT = parse({"estimator": "SGDRegressor", "features": {"review": {"type": "text", "n_features": 16}}})
MANY_BYTES = 1 << 20


@pytest.fixture
def subscription(client: redis.Redis) -> Iterator[Any]:
    """Return a subscription to scorers and commits."""
    pubsub = client.pubsub(ignore_subscribe_messages=True)
    pubsub.subscribe(redis_keys.SCORERS, redis_keys.COMMITS)
    for _ in range(2):
        pubsub.get_message(timeout=10)
    yield pubsub
    pubsub.close()


def received(client: redis.Redis, subscription: Any) -> list[tuple[bytes, bytes]]:
    """Return channel and data of the messages published so far."""
    client.publish(redis_keys.COMMITS, "end")
    messages_: list[tuple[bytes, bytes]] = []
    while True:
        message = subscription.get_message(timeout=10)
        if message is None:
            continue
        if message["data"] == b"end":
            return messages_
        messages_.append((message["channel"], message["data"]))


async def install(store: Store, recipe: Recipe, session: int) -> str:
    """Install a model that has learned nothing; return its hash."""
    metadata = {"type": "scorers", "session": session}
    model_hash = identity.hash_of(metadata)
    await store.install(Install(model_hash, identity.canonical(metadata).decode(), recipe.text(), generation=1))
    return model_hash


async def learn(store: Store, context: WorkerContext, model_hash: str, *rows: Any) -> Model:
    """Let the worker learn rows, the target of which is their number."""
    described = await store.describe(model_hash)
    assert described is not None
    y = [float(number) for number in range(len(rows))]
    await accept(store, described, shape(described.recipe, list(rows), y, learning=True))
    learning.learn(context, model_hash, "lease")
    after = await store.describe(model_hash)
    assert after is not None
    return after


def ask(
    context: WorkerContext, model: Model, X: list[Any], operation: Operation = "predict", bytes_max: int = MANY_BYTES
) -> WorkerReply:
    """Ask the worker; return its reply."""
    rows = shape(model.recipe, X, learning=False)
    request = WorkerRequest(
        1, "g", model.hash, operation, model.generation, rows, as_json=True, scorer_bytes_max=bytes_max
    )
    redis_scripts.run(context.queue, *answer_all(context, [claimed_entry(messages.encode(request))]))
    batch = context.queue.lpop(redis_keys.replies("g"))
    assert isinstance(batch, bytes)
    (reply,) = messages.decode_replies(batch)
    return reply


async def test_a_reply_carries_the_scorer_that_gives_the_same_answer(store: Store, context: WorkerContext) -> None:
    """The scorer is of the version of the reply, and answers with the same bytes."""
    model = await learn(store, context, await install(store, LINEAR, 1), [1.0, 2.0], [3.0, 5.0], [2.0, 1.0])
    reply = ask(context, model, [[0.1, 0.7], [3.0, -1.0]])
    scorer = encoding.decode(reply.scorer, model.recipe)
    assert (scorer.generation, scorer.version, scorer.rows_seen) == (1, reply.version, reply.rows_seen) == (1, 1, 3)
    rows = shape(model.recipe, [[0.1, 0.7], [3.0, -1.0]], learning=False)
    assert scorer.answer(model.recipe, rows, proba=False) == reply.result


async def test_a_reply_has_no_scorer_unless_asked_for(store: Store, context: WorkerContext) -> None:
    """None is sent to a gateway that does not ask, that allows fewer bytes, or of a model that has none."""
    linear = await learn(store, context, await install(store, LINEAR, 2), [1.0], [3.0])
    text = await learn(store, context, await install(store, TEXT, 3), ["good"], ["bad"])
    size = len(ask(context, linear, [[1.0]]).scorer)
    assert size > 0
    assert len(ask(context, linear, [[1.0]], bytes_max=size).scorer) == size
    assert ask(context, linear, [[1.0]], bytes_max=size - 1).scorer == b""
    assert ask(context, linear, [[1.0]], bytes_max=0).scorer == b""
    assert ask(context, text, [["good"]]).scorer == b""


async def test_an_error_has_no_scorer(store: Store, context: WorkerContext) -> None:
    """Neither has a reply to a question that cannot be answered, nor one of a model that has learned nothing."""
    fresh = await store.describe(await install(store, LINEAR, 4))
    assert fresh is not None
    assert ask(context, fresh, [[1.0]]).scorer == b""
    learned = await learn(store, context, await install(store, LINEAR, 5), [1.0], [3.0])
    refused = ask(context, learned, [[1.0, 2.0]])
    assert refused.error is not None
    assert refused.scorer == b""


async def test_each_version_is_encoded_once(
    store: Store, context: WorkerContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other gateways that ask get the same bytes; after a commit, those of the next version."""
    versions: list[int] = []

    def counted(bundle: Bundle, generation: int, version: int, bytes_max: int) -> bytes:
        versions.append(version)
        return encoded_scorer(bundle, generation, version, bytes_max)

    monkeypatch.setattr(scorers, "encoded_scorer", counted)
    model = await learn(store, context, await install(store, LINEAR, 6), [1.0], [3.0])
    first = [ask(context, model, [[number]]).scorer for number in (1.0, 2.0)]
    model = await learn(store, context, model.hash, [4.0])
    second = ask(context, model, [[1.0]]).scorer
    assert first[0] == first[1] != second
    assert versions == [1, 2]


def test_encoded_scorers_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The least recently used leave, and models without a scorer count too."""
    monkeypatch.setattr(scorers, "encoded_scorer", lambda bundle, *version: b"x" * 100 if bundle else b"")
    cache = EncodedScorers(bytes_max=3 * (ENTRY_BYTES + 100))
    some: Any = True
    for model in ("a", "b", "c", "a", "d"):
        cache.encoded(model, some, (1, 1), MANY_BYTES)
    assert list(cache._encoded) == ["c", "a", "d"]
    none: Any = False
    for number in range(100):
        cache.encoded(str(number), none, (1, 1), MANY_BYTES)
    assert len(cache._encoded) == 3 * (ENTRY_BYTES + 100) // ENTRY_BYTES
    assert cache._bytes == ENTRY_BYTES * len(cache._encoded)


async def test_a_commit_of_a_followed_model_announces_its_scorer(
    store: Store, context: WorkerContext, client: redis.Redis, subscription: Any
) -> None:
    """The scorer of the new version comes right before the version, and only while the model is followed."""
    model = await learn(store, context, await install(store, LINEAR, 7), [1.0], [3.0])
    client.set(redis_keys.followed(model.hash), 1, px=60_000)
    model = await learn(store, context, model.hash, [5.0], [2.0])
    client.delete(redis_keys.followed(model.hash))
    last = await learn(store, context, model.hash, [4.0])
    found = received(client, subscription)
    assert [channel.decode() for channel, _ in found] == [
        redis_keys.COMMITS, redis_keys.COMMITS, redis_keys.SCORERS, redis_keys.COMMITS, redis_keys.COMMITS
    ]  # fmt: skip
    name, generation, version, encoded = found[2][1].split(b" ", 3)
    assert (name.decode(), int(generation), int(version)) == (model.hash, 1, model.version)
    assert last.version == model.version + 1
    scorer = encoding.decode(encoded, model.recipe)
    assert (scorer.version, scorer.rows_seen) == (model.version, model.rows_seen) == (2, 4)


async def test_only_small_scorers_are_announced(
    store: Store, context: WorkerContext, client: redis.Redis, subscription: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A scorer above the size, and a model without one, are committed like any other."""
    monkeypatch.setattr(learning, "SCORER_BYTES_MAX", 64)
    for number, (recipe, row) in enumerate(((LINEAR, [1.0, 2.0]), (TEXT, ["good"]))):
        model_hash = await install(store, recipe, 8 + number)
        client.set(redis_keys.followed(model_hash), 1, px=60_000)
        assert (await learn(store, context, model_hash, row)).version == 1
    assert {channel.decode() for channel, _ in received(client, subscription)} == {redis_keys.COMMITS}


async def test_a_dead_letter_is_announced_with_the_unchanged_scorer(
    store: Store, context: WorkerContext, client: redis.Redis, subscription: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The version rises without having learned; the scorer names the new version."""
    model = await learn(store, context, await install(store, LINEAR, 10), [1.0], [3.0])
    client.set(redis_keys.followed(model.hash), 1, px=60_000)

    def refuse(bundle: Bundle, rows: Rows) -> None:
        raise ValueError("no")

    monkeypatch.setattr(Bundle, "partial_fit_unchecked", refuse)
    refused = await learn(store, context, model.hash, [2.0])
    assert (refused.version, refused.rows_seen) == (2, 2)
    (sent,) = [data for channel, data in received(client, subscription) if channel.decode() == redis_keys.SCORERS]
    scorer = encoding.decode(sent.split(b" ", 3)[3], refused.recipe)
    assert (scorer.version, scorer.rows_seen) == (2, 2)
