"""Many learning requests in one round trip, on a real Valkey server: order, repeats, limits, large requests."""

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import redis.asyncio

from keepfit import identity
from keepfit.backends import redis_clients, redis_keys, redis_scripts
from keepfit.backends.redis_scripts import ScriptConnection
from keepfit.errors import IdempotencyError, InboxFullError, InvalidError, NotFoundError, UnavailableError
from keepfit.model.bundle import Bundle
from keepfit.recipe.recipe import parse
from keepfit.rows.acceptance import request_id_of
from keepfit.rows.rows import Rows
from keepfit.rows.shaping import shape
from keepfit.security.envelope import Keyring
from keepfit.settings import Settings
from keepfit.store import first_answers, inbox, staging
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
    """Return a gateway's client of the store."""
    opened = redis_clients.store_async(settings)
    yield opened
    await opened.aclose()


@pytest.fixture
def consumer(settings: Settings) -> InboxConsumer:
    """Return the inbox as a worker uses it."""
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
    """Return `count` rows of one column."""
    return shape(RECIPE, [[float(i)] for i in range(count)], [1.0] * count, learning=True)


LARGE = many(inbox.CALL_BYTES_MAX // 16 + 1000)


def claim(consumer: InboxConsumer, model_hash: str, token: str = "t") -> Claimed:
    """Claim the model, which must be unlocked."""
    claimed = consumer.claim(model_hash, token, "")
    assert claimed is not None
    return claimed


def learn_all(consumer: InboxConsumer, model_hash: str) -> list[float]:
    """Learn all pending requests of a model; return the targets in the order in which they were learned."""
    claimed = claim(consumer, model_hash)
    bundle = Bundle.new(RECIPE)
    for entry in claimed.entries:
        bundle.partial_fit(entry.rows())
    assert commit_bundle(consumer, KEYRING, claimed, bundle, len(claimed.entries), "t").version == 1
    return [float(value) for entry in claimed.entries for value in entry.rows().target()]


async def test_requests_of_many_models_are_accepted_in_one_round_trip(
    client: redis.asyncio.Redis, consumer: InboxConsumer, settings: Settings
) -> None:
    """Each model has its own sequences, in the order of its requests; models that need a hint are returned once."""
    models = [await make(client, session) for session in range(3)]
    requests = [one(models[i % 3], float(i)) for i in range(30)]
    outcomes, hints = await inbox.accept(ScriptConnection(client), settings, requests)
    assert outcomes == [Accepted(1 + i // 3, 0) for i in range(30)]
    assert hints == sorted(models)
    assert [learn_all(consumer, model) for model in models] == [[float(i) for i in range(m, 30, 3)] for m in range(3)]


async def test_a_locked_model_needs_no_hint(
    client: redis.asyncio.Redis, consumer: InboxConsumer, settings: Settings
) -> None:
    """The holder of the lock finds the pending requests when it unlocks, so no other worker needs a hint."""
    model = await make(client, 1)
    claim(consumer, model)
    _, hints = await inbox.accept(ScriptConnection(client), settings, [one(model, 1.0)])
    assert hints == []
    assert consumer.unlock(model, "t", force=False)


async def test_a_repeated_call_accepts_once(client: redis.asyncio.Redis, settings: Settings) -> None:
    """After a lost reply the gateway repeats the call and gets the first reply."""
    model = await make(client, 1)
    requests = [one(model, float(i)) for i in range(3)]
    command = inbox._accept_command(settings, requests)
    first = await redis_scripts.run_async(client, command)
    await inbox.accept(ScriptConnection(client), settings, requests)
    assert (await redis_scripts.run_async(client, command))[0][:3] == first[0][:3] == [b"ok", 1, 3]
    assert await client.xlen(redis_keys.inbox(model)) == 6


async def test_requests_beyond_the_limit_are_refused_and_the_others_accepted(
    client: redis.asyncio.Redis, settings: Settings
) -> None:
    """A batch is accepted up to the inbox's limit; the other requests are refused with the number of pending ones."""
    model = await make(client, 1)
    small = settings.model_copy(update={"inbox_entries_max": 3})
    outcomes, _ = await inbox.accept(ScriptConnection(client), small, [one(model, float(i)) for i in range(5)])
    assert outcomes[:3] == [Accepted(1, 0), Accepted(2, 0), Accepted(3, 0)]
    for outcome in outcomes[3:]:
        assert isinstance(outcome, InboxFullError)
        assert "3 requests are pending" in str(outcome)
    assert await client.xlen(redis_keys.inbox(model)) == 3


async def test_retry_after_of_a_full_inbox_follows_the_learning_rate(
    client: redis.asyncio.Redis, settings: Settings
) -> None:
    """Retry-After is the time to learn half of the pending requests at the last commit's rate, at most a minute."""
    model = await make(client, 1)
    small = settings.model_copy(update={"inbox_entries_max": 100})
    await inbox.accept(ScriptConnection(client), small, [one(model, float(i)) for i in range(100)])
    for pace, seconds in (("", 1), ("0", 1), ("10", 5), ("1000", 1), ("1", 50)):
        if pace:
            await client.hset(redis_keys.state(model), "pace", pace)
        ((refused,), _) = await inbox.accept(ScriptConnection(client), small, [one(model, 0.0)])
        assert isinstance(refused, InboxFullError)
        assert refused.retry_after_s == seconds


async def test_one_bad_request_fails_alone(client: redis.asyncio.Redis, settings: Settings) -> None:
    """Requests of another width or for a missing model fail; the others in the same round trip are accepted."""
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


async def test_the_width_of_rows_by_name_is_not_compared(
    client: redis.asyncio.Redis, consumer: InboxConsumer, settings: Settings
) -> None:
    """Complete rows and rows that lack columns are accepted in any order, and stay in order with changes."""
    model = await make(client, 1)
    named = parse({"estimator": "SGDRegressor", "features": {"a": "number"}})
    forms = Rows(1, bytes(8), [], bytes(8)), Rows(1, bytes(8), [["[0]"]], bytes(8))
    widths = [inbox.width_of(named, rows) for rows in forms]
    complete, lacking = [
        LearnRequest(model, 1, width, rows.encode()) for rows, width in zip(forms, widths, strict=True)
    ]
    change = inbox.make_change(model, 1, {"alpha": 0.5})
    connection = ScriptConnection(client)
    for requests in ([lacking], [complete, change, lacking]):
        outcomes, _ = await inbox.accept(connection, settings, requests)
        assert all(isinstance(outcome, Accepted) for outcome in outcomes)
    entries = claim(consumer, model).entries
    assert [bytes(entry.payload) for entry in entries] == [r.payload for r in (lacking, complete, change, lacking)]


async def test_a_large_request_is_staged(
    client: redis.asyncio.Redis, consumer: InboxConsumer, settings: Settings
) -> None:
    """Rows too large for one call are stored in a key of their own, bit for bit, and deleted once they are learned."""
    model = await make(client, 1)
    (outcome,), _ = await inbox.accept(
        ScriptConnection(client), settings, [await inbox.make_request(client, model, 1, LARGE)]
    )
    assert outcome == Accepted(1, 0)
    (entry,) = claim(consumer, model).entries
    assert await client.ttl(entry.large_key) == -1
    assert await client.hget(redis_keys.state(model), "bytes") == str(entry.size_bytes).encode()
    assert entry.size_bytes == len(entry.payload) == LARGE.size_bytes + 9
    assert np.array_equal(entry.rows().number_matrix(), LARGE.number_matrix())
    learn_all(consumer, model)
    assert not await client.exists(entry.large_key)
    assert await client.hget(redis_keys.state(model), "bytes") == b"0"


@pytest.mark.parametrize("n", [100, 200, 1000, 70_000])
async def test_a_large_request_is_read_once_and_aligned(
    client: redis.asyncio.Redis, consumer: InboxConsumer, settings: Settings, n: int
) -> None:
    """The numbers of claimed rows are in the memory of their payload, aligned, and cannot be changed."""
    rows = Rows(n, np.arange(float(70_000 // n * n)).tobytes(), [], np.arange(float(n)).tobytes())
    model = await make(client, 1)
    await inbox.accept(ScriptConnection(client), settings, [await inbox.make_request(client, model, 1, rows)])
    (entry,) = claim(consumer, model).entries
    decoded = entry.rows()
    assert decoded == rows
    view = decoded.number_view()
    assert np.shares_memory(view, np.frombuffer(entry.payload, np.uint8))
    assert view.ctypes.data % staging.ALIGNMENT == 0
    assert not view.flags.writeable
    assert decoded.number_matrix().flags.writeable


@pytest.mark.parametrize("size_bytes", [3_200_026, 2 << 20, 1 << 20, 100])
async def test_rows_of_another_size_are_lost(client: redis.asyncio.Redis, settings: Settings, size_bytes: int) -> None:
    """Of rows that are no longer whole in Redis, nothing is read."""
    await client.set("large", LARGE.encode()[: size_bytes - 1])
    with redis_clients.store_sync(settings) as store:
        assert len(staging.read_in_pieces(store, "large", size_bytes)) == 0


async def test_a_staged_request_that_is_refused_expires(client: redis.asyncio.Redis, settings: Settings) -> None:
    """The staged rows of a refused request expire; rows that are missing or changed raise UnavailableError."""
    model = await make(client, 1)
    ((refused,), _) = await inbox.accept(
        ScriptConnection(client), settings, [await inbox.make_request(client, model, 2, LARGE)]
    )
    assert isinstance(refused, Exception)
    (staged,) = await client.keys(f"kf:{{{model}}}:big:*")
    assert 0 < await client.pttl(staged) <= inbox.STAGED_TTL_MS
    for damage in (("DEL",), ("SETRANGE", inbox.CALL_BYTES_MAX * 2, "more")):
        request = await inbox.make_request(client, model, 1, LARGE)
        await client.execute_command(damage[0], request.large_key, *damage[1:])
        ((lost,), _) = await inbox.accept(ScriptConnection(client), settings, [request])
        assert isinstance(lost, UnavailableError)
    assert await client.xlen(redis_keys.inbox(model)) == 0


@pytest.mark.parametrize("dead", [False, True])
async def test_deleting_a_model_deletes_its_large_requests(
    client: redis.asyncio.Redis, consumer: InboxConsumer, settings: Settings, dead: bool
) -> None:
    """The large rows of pending requests and of dead letters are deleted with the model."""
    model = await make(client, 1)
    await inbox.accept(ScriptConnection(client), settings, [await inbox.make_request(client, model, 1, LARGE)])
    claimed = claim(consumer, model)
    if dead:
        commit_bundle(consumer, KEYRING, claimed, Bundle.new(RECIPE), 1, "t", "no")
    assert await client.exists(claimed.entries[0].large_key)
    assert await Store(client).delete(model)
    # The idempotency key of the call expires.
    assert [name for name in await client.keys(f"kf:{{{model}}}:*") if b":idem:" not in name] == []


async def test_reading_lost_rows_raises_a_lookup_error(
    client: redis.asyncio.Redis, consumer: InboxConsumer, settings: Settings
) -> None:
    """If the rows of a large request are missing, reading them raises LookupError, and the model is not blocked."""
    model = await make(client, 1)
    await inbox.accept(ScriptConnection(client), settings, [await inbox.make_request(client, model, 1, LARGE)])
    await client.delete(claim(consumer, model).entries[0].large_key)
    (entry,) = claim(consumer, model).entries
    with pytest.raises(LookupError, match="lost"):
        entry.rows()


async def test_idempotency_keys_hold_across_round_trips(client: redis.asyncio.Redis, settings: Settings) -> None:
    """A client's key returns the first reply in a later round trip, among other requests, not in a new generation."""
    model = await make(client, 1)
    keyed = one(model, 1.0, key="vote")
    (first,), _ = await inbox.accept(ScriptConnection(client), settings, [keyed])
    again, _ = await inbox.accept(ScriptConnection(client), settings, [one(model, 2.0), keyed])
    assert again == [Accepted(2, 0), first]
    # A caller with a later generation gets the first reply as long as the model's own generation is the same.
    assert (await inbox.accept(ScriptConnection(client), settings, [replace(keyed, generation=2)]))[0] == [first]
    await client.hset(redis_keys.state(model), "generation", 2)
    assert (await inbox.accept(ScriptConnection(client), settings, [replace(keyed, generation=2)]))[0] == [
        Accepted(3, 0)
    ]


async def test_keys_of_clients_are_bounded(client: redis.asyncio.Redis, settings: Settings) -> None:
    """Of each caller at most so many keys are remembered, at least half of them, the newest ones; in bounded memory."""
    model, connection = await make(client, 1), ScriptConnection(client)
    small = settings.model_copy(update={"idempotency_entries_max": 20})

    async def sequences_of(names: list[str]) -> list[int]:
        outcomes, _ = await inbox.accept(connection, small, [one(model, 1.0, key=name) for name in names])
        return [outcome.sequence for outcome in outcomes if isinstance(outcome, Accepted)]

    names = [f"key-{number}" for number in range(25)]
    assert await sequences_of(["key-24 other", *names]) == list(range(1, 27))
    held = [await client.hlen(key) for key in first_answers.answers_of(model, "")[0]]  # type: ignore[misc]
    assert held == [5, 10]
    # The fifteen newest keys, and the key of another caller, are learned once; the oldest one is learned again.
    assert await sequences_of([*names[10:], "key-24 other"]) == [*range(12, 27), 1]
    assert await sequences_of(names[:1]) == [27]
    assert len(await client.keys(f"kf:{{{model}}}:idem:*")) == 3
    await connection.close()


async def test_keys_of_release_0_1_are_known(client: redis.asyncio.Redis, settings: Settings) -> None:
    """A call that release 0.1 accepted, under a key of its own without a caller, is not learned again."""
    model, connection = await make(client, 1), ScriptConnection(client)
    call = one(model, 1.0, key="before alice")
    digest = inbox._digest([call])
    await client.set(redis_keys.idempotency(model, "c:before"), f"{digest} 7 1 1", ex=100)
    assert (await inbox.accept(connection, settings, [call, one(model, 1.0, key="before")]))[0] == [Accepted(7, 0)] * 2
    other, _ = await inbox.accept(connection, settings, [one(model, 2.0, key="before alice")])
    assert isinstance(other[0], IdempotencyError)
    await connection.close()


def test_calls_are_bounded() -> None:
    """Each request is in one call, and no call exceeds its limits, which bound how long it blocks Redis."""
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
    """The client's request id is stored with the rows, which are read as without it; without an id nothing is added."""
    model = await make(client, 1)
    named = [
        replace(one(model, 1.0), request_id="abc-1"),
        one(model, 2.0),
        replace(one(model, 3.0), request_id="é" * 40),
    ]
    await inbox.accept(ScriptConnection(client), settings, named)
    claimed = claim(consumer, model)
    assert [request_id_of(entry.payload) for entry in claimed.entries] == ["abc-1", "", "é" * 40]
    assert [entry.rows() for entry in claimed.entries] == [Rows.decode(each.payload) for each in named]
    assert claimed.entries[1].payload == named[1].payload


async def test_a_change_keeps_its_place_among_rows(
    client: redis.asyncio.Redis, consumer: InboxConsumer, settings: Settings
) -> None:
    """In one round trip a change keeps its position between rows; it may have a request id, too."""
    model = await make(client, 1)
    changes = [inbox.make_change(model, 1, {"C": i}) for i in (1.5, {"a": [2]}, 3)]
    changes[1] = replace(changes[1], request_id="abc-1")
    requests = [one(model, 1.0), changes[0], one(model, 2.0), changes[1], changes[2], one(model, 3.0)]
    outcomes, _ = await inbox.accept(ScriptConnection(client), settings, requests)
    assert outcomes == [Accepted(i, 0) for i in range(1, 7)]
    claimed = claim(consumer, model)
    assert [entry.change for entry in claimed.entries] == [None, {"C": 1.5}, None, {"C": {"a": [2]}}, {"C": 3}, None]
    assert [request_id_of(entry.payload) for entry in claimed.entries] == ["", "", "", "abc-1", "", ""]
    with pytest.raises(InvalidError, match="262160 bytes; at most 262144"):
        inbox.make_change(model, 1, {"C": "x" * inbox.CALL_BYTES_MAX})


async def test_the_request_id_is_not_part_of_the_idempotency_comparison(
    client: redis.asyncio.Redis, settings: Settings
) -> None:
    """A retry under the same Idempotency-Key, with another request id, gets the first reply."""
    model = await make(client, 1)
    first = replace(one(model, 1.0, key="k"), request_id="first")
    assert await inbox.accept(ScriptConnection(client), settings, [first]) == ([Accepted(1, 0)], [model])
    again = replace(first, request_id="second")
    assert await inbox.accept(ScriptConnection(client), settings, [again]) == ([Accepted(1, 0)], [model])


@pytest.mark.parametrize("payload", [b"", b"\x01", b"\x90", b"\xc1", one("", 1.0).payload])
def test_bytes_without_an_id_have_none(payload: bytes) -> None:
    """request_id_of() returns an empty text for any bytes without a request id, and never raises."""
    assert request_id_of(payload) == ""


async def test_logged_calls_contain_the_accepted_requests(client: redis.asyncio.Redis, settings: Settings) -> None:
    """A call is logged with origin, first sequence, digest and key; of a call that did not fit, the accepted part."""
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
    connection = ScriptConnection(client)
    outcomes, hints, logged = await inbox.accept_logged(connection, small, requests)
    assert [type(outcome).__name__ for outcome in outcomes] == [
        *["Accepted"] * 3, *["InboxFullError"] * 2, "InvalidError", "NotFoundError", "Accepted", "Accepted",
    ]  # fmt: skip
    assert hints == sorted([first, second])
    assert [(call.hash, call.origin, call.sequence, call.name, positions) for call, positions in logged] == [
        (first, 1, 1, "", [0, 1, 2]),
        (second, 5, 1, "c:mine", [7]),
        (second, 5, 2, "c:large", [8]),
    ]
    (many, _), (keyed, _), (whole, _) = logged
    assert many.payloads == tuple(request.payload for request in requests[:3])
    assert whole.payloads == (large.large_payload,)
    assert Rows.decode(large.large_payload) == LARGE
    assert [request_id_of(payload) for payload in keyed.payloads] == ["abc-1"]
    assert (many.at, keyed.at) == (whole.at, whole.at)
    # A repeat cannot be distinguished from a call that was never logged: it is the same call at a later time.
    again, _, ((repeat, _), _) = await inbox.accept_logged(connection, small, requests[7:])
    assert again == outcomes[7:]
    assert repeat.at > keyed.at
    assert replace(repeat, at=keyed.at) == keyed
    assert await inbox.verify_accepted(connection, [many, keyed, whole]) == [None] * 3
    await client.hset(redis_keys.state(first), "accepted", 2)
    await client.delete(redis_keys.state(second))
    assert [type(error) for error in await inbox.verify_accepted(connection, [many, keyed])] == [UnavailableError] * 2
