"""Many learning requests in one trip, on a real Valkey: order, repeats, limits, large ones."""

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import redis.asyncio

from keepfit import identity
from keepfit.backends import redis_clients, redis_keys, redis_scripts
from keepfit.backends.redis_scripts import ScriptConnection
from keepfit.errors import InboxFullError, InvalidError, NotFoundError, UnavailableError
from keepfit.model.bundle import Bundle
from keepfit.recipe.recipe import parse
from keepfit.rows.rows import Rows
from keepfit.rows.shaping import shape
from keepfit.security.envelope import Keyring
from keepfit.settings import Settings
from keepfit.store import inbox
from keepfit.store.commit import Claimed, InboxConsumer
from keepfit.store.inbox import Accepted, LearnRequest
from keepfit.store.models import Install, Store
from tests.conftest import SIGNING_KEYS
from tests.factories import commit_bundle

RECIPE = parse({"estimator": "SGDRegressor"})
KEYRING = Keyring.from_text(SIGNING_KEYS)
LOCK_S = 15.0


@pytest.fixture
async def client(settings: Settings) -> AsyncIterator[redis.asyncio.Redis]:
    """Return the gateway's connection to the store."""
    opened = redis_clients.store_async(settings)
    yield opened
    await opened.aclose()


@pytest.fixture
def consumer(settings: Settings) -> InboxConsumer:
    """Return the workers' side of the store."""
    return InboxConsumer(redis_clients.store_sync(settings), LOCK_S)


async def make(client: redis.asyncio.Redis, session: int) -> str:
    """Install a model that has learned nothing; return its hash."""
    metadata = {"type": "inbox", "session": session}
    model_hash = identity.hash_of(metadata)
    new = Install(model_hash, identity.canonical(metadata).decode(), RECIPE.text(), generation=1)
    assert await Store(client).install(new)
    return model_hash


def one(model: str, value: float, width: int = 1, key: str | None = None) -> LearnRequest:
    """Return a request of a single row of equal values."""
    rows = shape(RECIPE, [[value] * width], [value], learning=True)
    return LearnRequest(model, 1, width, rows.encode(), key)


def many(count: int) -> Rows:
    """Return as many rows as take more room than one call may carry."""
    return shape(RECIPE, [[float(i)] for i in range(count)], [1.0] * count, learning=True)


LARGE = many(inbox.CALL_BYTES_MAX // 16 + 1000)


def take(consumer: InboxConsumer, model_hash: str, token: str = "t") -> Claimed:
    """Take the model, which must be free."""
    taken = consumer.claim(model_hash, token, "")
    assert taken is not None
    return taken


def learn_all(consumer: InboxConsumer, model_hash: str) -> list[float]:
    """Learn all that waits for a model; return the targets in the order in which they were learned."""
    taken = take(consumer, model_hash)
    bundle = Bundle.new(RECIPE)
    for entry in taken.entries:
        bundle.partial_fit(entry.rows())
    assert commit_bundle(consumer, KEYRING, taken, bundle, len(taken.entries), "t").version == 1
    return [float(value) for entry in taken.entries for value in entry.rows().target()]


async def test_requests_of_many_models_go_in_one_trip(
    client: redis.asyncio.Redis, consumer: InboxConsumer, settings: Settings
) -> None:
    """Each model's requests get sequences of their own, in the order given; models to be told of are named once."""
    models = [await make(client, session) for session in range(3)]
    requests = [one(models[i % 3], float(i)) for i in range(30)]
    outcomes, alone = await inbox.accept(ScriptConnection(client), settings, requests)
    assert outcomes == [Accepted(1 + i // 3, 0) for i in range(30)]
    assert alone == sorted(models)
    assert [learn_all(consumer, model) for model in models] == [[float(i) for i in range(m, 30, 3)] for m in range(3)]


async def test_a_model_that_is_learned_just_now_needs_no_hint(
    client: redis.asyncio.Redis, consumer: InboxConsumer, settings: Settings
) -> None:
    """Who holds the lock sees the mail before letting go of it, so nobody else has to be told."""
    model = await make(client, 1)
    take(consumer, model)
    _, alone = await inbox.accept(ScriptConnection(client), settings, [one(model, 1.0)])
    assert alone == []
    assert consumer.unlock(model, "t", force=False)


async def test_a_trip_made_twice_accepts_once(client: redis.asyncio.Redis, settings: Settings) -> None:
    """A call whose answer was lost is made again by the gateway, and gets the first answer."""
    model = await make(client, 1)
    requests = [one(model, float(i)) for i in range(3)]
    command = inbox._accept_command(settings, requests)
    first = await redis_scripts.run_async(client, command)
    await inbox.accept(ScriptConnection(client), settings, requests)
    assert (await redis_scripts.run_async(client, command))[0][:3] == first[0][:3] == [b"ok", 1, 3]
    assert await client.xlen(redis_keys.inbox(model)) == 6


async def test_what_does_not_fit_is_refused_and_the_rest_is_taken(
    client: redis.asyncio.Redis, settings: Settings
) -> None:
    """Of a batch, as many are accepted as there is room for; the others hear how many wait and leave nothing."""
    model = await make(client, 1)
    small = settings.model_copy(update={"inbox_entries_max": 3})
    outcomes, _ = await inbox.accept(ScriptConnection(client), small, [one(model, float(i)) for i in range(5)])
    assert outcomes[:3] == [Accepted(1, 0), Accepted(2, 0), Accepted(3, 0)]
    for outcome in outcomes[3:]:
        assert isinstance(outcome, InboxFullError)
        assert "3 requests are pending" in str(outcome)
    assert await client.xlen(redis_keys.inbox(model)) == 3


async def test_a_full_inbox_names_a_wait_by_the_pace_of_learning(
    client: redis.asyncio.Redis, settings: Settings
) -> None:
    """Retry-After is the time that half of what waits takes at the pace of the last commit, within a minute."""
    model = await make(client, 1)
    small = settings.model_copy(update={"inbox_entries_max": 100})
    await inbox.accept(ScriptConnection(client), small, [one(model, float(i)) for i in range(100)])
    for pace, seconds in (("", 1), ("0", 1), ("10", 5), ("1000", 1), ("1", 50)):
        if pace:
            await client.hset(redis_keys.state(model), "pace", pace)
        ((refused,), _) = await inbox.accept(ScriptConnection(client), small, [one(model, 0.0)])
        assert isinstance(refused, InboxFullError)
        assert refused.retry_after_s == seconds


async def test_one_bad_request_spoils_no_other(client: redis.asyncio.Redis, settings: Settings) -> None:
    """Requests of another width, for a missing model or a full one fail by themselves, in the same trip."""
    model = await make(client, 1)
    requests = [
        one(model, 1.0),
        one(model, 2.0, width=2),
        one("0" * 64, 1.0),
        one(model, 3.0),
        one(model, 4.0, key="mine"),
    ]
    outcomes, _ = await inbox.accept(ScriptConnection(client), settings, requests)
    assert [type(outcome) for outcome in outcomes] == [Accepted, InvalidError, NotFoundError, Accepted, Accepted]
    assert await client.xlen(redis_keys.inbox(model)) == 3


async def test_a_large_request_is_written_ahead(
    client: redis.asyncio.Redis, consumer: InboxConsumer, settings: Settings
) -> None:
    """Rows that one call may not carry lie beside the inbox until they are learned, bit for bit, and then go."""
    model = await make(client, 1)
    (outcome,), _ = await inbox.accept(
        ScriptConnection(client), settings, [await inbox.make_request(client, model, 1, LARGE)]
    )
    assert outcome == Accepted(1, 0)
    (entry,) = take(consumer, model).entries
    assert await client.ttl(entry.large_key) == -1
    assert await client.hget(redis_keys.state(model), "bytes") == str(entry.size_bytes).encode()
    assert entry.size_bytes == LARGE.size_bytes
    assert np.array_equal(entry.rows().number_matrix(), LARGE.number_matrix())
    learn_all(consumer, model)
    assert not await client.exists(entry.large_key)
    assert await client.hget(redis_keys.state(model), "bytes") == b"0"


async def test_a_large_request_that_is_refused_leaves_nothing_for_long(
    client: redis.asyncio.Redis, settings: Settings
) -> None:
    """What was written ahead for a refused request expires by itself; rows that went too soon are said to be lost."""
    model = await make(client, 1)
    ((refused,), _) = await inbox.accept(
        ScriptConnection(client), settings, [await inbox.make_request(client, model, 2, LARGE)]
    )
    assert isinstance(refused, Exception)
    (left,) = await client.keys(f"kf:{{{model}}}:big:*")
    assert 0 < await client.pttl(left) <= inbox.STAGED_TTL_MS
    for harm in (("DEL",), ("SETRANGE", inbox.CALL_BYTES_MAX * 2, "more")):
        request = await inbox.make_request(client, model, 1, LARGE)
        await client.execute_command(harm[0], request.large_key, *harm[1:])
        ((lost,), _) = await inbox.accept(ScriptConnection(client), settings, [request])
        assert isinstance(lost, UnavailableError)
    assert await client.xlen(redis_keys.inbox(model)) == 0


@pytest.mark.parametrize("put_aside", [False, True])
async def test_deleting_a_model_takes_its_large_requests_along(
    client: redis.asyncio.Redis, consumer: InboxConsumer, settings: Settings, put_aside: bool
) -> None:
    """Rows that wait beside the inbox, or were put aside, are deleted with the model."""
    model = await make(client, 1)
    await inbox.accept(ScriptConnection(client), settings, [await inbox.make_request(client, model, 1, LARGE)])
    taken = take(consumer, model)
    if put_aside:
        commit_bundle(consumer, KEYRING, taken, Bundle.new(RECIPE), 1, "t", "no")
    assert await client.exists(taken.entries[0].large_key)
    assert await Store(client).delete(model)
    # A key of the call itself expires by itself.
    assert [name for name in await client.keys(f"kf:{{{model}}}:*") if b":idem:" not in name] == []


async def test_rows_that_redis_lost_are_put_aside_and_not_waited_for(
    client: redis.asyncio.Redis, consumer: InboxConsumer, settings: Settings
) -> None:
    """Where the rows of a large request are gone, reading them says so; the model is not stuck."""
    model = await make(client, 1)
    await inbox.accept(ScriptConnection(client), settings, [await inbox.make_request(client, model, 1, LARGE)])
    await client.delete(take(consumer, model).entries[0].large_key)
    (entry,) = take(consumer, model).entries
    with pytest.raises(LookupError, match="lost"):
        entry.rows()


async def test_keys_of_clients_hold_across_trips_and_generations(
    client: redis.asyncio.Redis, settings: Settings
) -> None:
    """A client's key gives the first answer again in another trip, beside other requests, and not to a new model."""
    model = await make(client, 1)
    keyed = one(model, 1.0, key="vote")
    (first,), _ = await inbox.accept(ScriptConnection(client), settings, [keyed])
    again, _ = await inbox.accept(ScriptConnection(client), settings, [one(model, 2.0), keyed])
    assert again == [Accepted(2, 0), first]
    # A caller may be ahead of it by a generation, and is given the first answer as long as the model is the same.
    assert (await inbox.accept(ScriptConnection(client), settings, [replace(keyed, generation=2)]))[0] == [first]
    await client.hset(redis_keys.state(model), "generation", 2)
    assert (await inbox.accept(ScriptConnection(client), settings, [replace(keyed, generation=2)]))[0] == [
        Accepted(3, 0)
    ]


def test_calls_are_bounded() -> None:
    """No call carries more bytes or requests than may keep Redis from others; nothing is left out or put twice."""
    requests: list[Any] = [LearnRequest("a" * 64, 1, 1, bytes(32_000)) for _ in range(100)]
    requests += [one("b" * 64, 1.0) for _ in range(1200)]
    calls = inbox._group_into_calls(requests)
    assert sorted(position for call in calls for position in call) == list(range(len(requests)))
    for call in calls:
        assert sum(len(requests[i].payload) for i in call) <= inbox.CALL_BYTES_MAX
        assert len(call) <= inbox.CALL_REQUESTS_MAX
        assert len({requests[i].hash for i in call}) == 1
        assert call == sorted(call)
    assert len(calls) <= 20


async def test_rows_keep_the_id_of_their_request(
    client: redis.asyncio.Redis, consumer: InboxConsumer, settings: Settings
) -> None:
    """The id that a client sent waits with the rows, which are read as without it; without one nothing is added."""
    model = await make(client, 1)
    named = [
        replace(one(model, 1.0), request_id="abc-1"),
        one(model, 2.0),
        replace(one(model, 3.0), request_id="é" * 40),
    ]
    await inbox.accept(ScriptConnection(client), settings, named)
    taken = take(consumer, model)
    assert [inbox.request_id_of(entry.payload) for entry in taken.entries] == ["abc-1", "", "é" * 40]
    assert [entry.rows() for entry in taken.entries] == [Rows.decode(each.payload) for each in named]
    assert taken.entries[1].payload == named[1].payload


async def test_a_change_keeps_its_place_among_rows(
    client: redis.asyncio.Redis, consumer: InboxConsumer, settings: Settings
) -> None:
    """Of one trip, rows before a change are learned before it and rows after it after it; it may have an id, too."""
    model = await make(client, 1)
    changes = [inbox.make_change(model, 1, {"C": i}) for i in (1.5, {"a": [2]}, 3)]
    changes[1] = replace(changes[1], request_id="abc-1")
    requests = [one(model, 1.0), changes[0], one(model, 2.0), changes[1], changes[2], one(model, 3.0)]
    outcomes, _ = await inbox.accept(ScriptConnection(client), settings, requests)
    assert outcomes == [Accepted(i, 0) for i in range(1, 7)]
    taken = take(consumer, model)
    assert [entry.change for entry in taken.entries] == [None, {"C": 1.5}, None, {"C": {"a": [2]}}, {"C": 3}, None]
    assert [inbox.request_id_of(entry.payload) for entry in taken.entries] == ["", "", "", "abc-1", "", ""]
    with pytest.raises(InvalidError, match="262160 bytes; at most 262144"):
        inbox.make_change(model, 1, {"C": "x" * inbox.CALL_BYTES_MAX})


async def test_the_id_of_a_request_does_not_make_it_another(client: redis.asyncio.Redis, settings: Settings) -> None:
    """A retry under the same Idempotency-Key, with an id of its own, gets the first answer."""
    model = await make(client, 1)
    first = replace(one(model, 1.0, key="k"), request_id="first")
    assert await inbox.accept(ScriptConnection(client), settings, [first]) == ([Accepted(1, 0)], [model])
    again = replace(first, request_id="second")
    assert await inbox.accept(ScriptConnection(client), settings, [again]) == ([Accepted(1, 0)], [model])


@pytest.mark.parametrize("payload", [b"", b"\x01", b"\x90", b"\xc1", one("", 1.0).payload])
def test_bytes_without_an_id_have_none(payload: bytes) -> None:
    """Whatever stands in an inbox, asking for its id raises nothing."""
    assert inbox.request_id_of(payload) == ""


async def test_what_goes_to_the_log_is_what_was_accepted(client: redis.asyncio.Redis, settings: Settings) -> None:
    """Each call with its model's origin, first sequence, digest and key; of one that did not fit, what did."""
    first, second = await make(client, 1), await make(client, 2)
    await client.hset(redis_keys.state(second), mapping={"generation": 7, "origin": 5})
    small = settings.model_copy(update={"inbox_entries_max": 3})
    large = await inbox.make_request(client, second, 7, LARGE, "large", logged=True)
    requests = [
        *(one(first, float(i)) for i in range(5)),
        one(first, 0.0, width=2),
        one("0" * 64, 1.0),
        replace(one(second, 1.0, key="mine"), generation=7, request_id="abc-1"),
        large,
    ]
    line = ScriptConnection(client)
    outcomes, told, logged = await inbox.accept_logged(line, small, requests)
    assert [type(outcome).__name__ for outcome in outcomes] == [
        *["Accepted"] * 3, *["InboxFullError"] * 2, "InvalidError", "NotFoundError", "Accepted", "Accepted",
    ]  # fmt: skip
    assert told == sorted([first, second])
    assert [(call.hash, call.origin, call.sequence, call.name, positions) for call, positions in logged] == [
        (first, 1, 1, "", [0, 1, 2]),
        (second, 5, 1, "c:mine", [7]),
        (second, 5, 2, "c:large", [8]),
    ]
    (many, _), (keyed, _), (whole, _) = logged
    assert many.payloads == tuple(request.payload for request in requests[:3])
    assert whole.payloads == (LARGE.encode(),)
    assert [inbox.request_id_of(payload) for payload in keyed.payloads] == ["abc-1"]
    assert (many.at, keyed.at) == (whole.at, whole.at)
    # A repeat, which nobody can tell from what was never logged, is the same call at a later time.
    again, _, ((repeat, _), _) = await inbox.accept_logged(line, small, requests[7:])
    assert again == outcomes[7:]
    assert repeat.at > keyed.at
    assert replace(repeat, at=keyed.at) == keyed
    assert await inbox.verify_accepted(line, [many, keyed, whole]) == [None] * 3
    await client.hset(redis_keys.state(first), "accepted", 2)
    await client.delete(redis_keys.state(second))
    assert [type(one) for one in await inbox.verify_accepted(line, [many, keyed])] == [UnavailableError] * 2
