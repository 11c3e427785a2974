"""Accept, claim and commit: the protocol by which rows become part of a bundle, on a real Valkey server."""

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
import redis
import redis.asyncio

from keepfit import identity
from keepfit.backends import redis_clients, redis_keys
from keepfit.errors import IdempotencyError, InboxFullError, InvalidError, NotFoundError, StaleModelError
from keepfit.model.bundle import Bundle
from keepfit.model.serialization import seal, unseal
from keepfit.recipe.recipe import Recipe, parse
from keepfit.rows.rows import Rows
from keepfit.rows.shaping import shape
from keepfit.security.envelope import Header, Keyring, runtime
from keepfit.settings import Settings
from keepfit.store.commit import GONE, REQUESTS_CHANGED, SUPERSEDED, Claimed, Harm, InboxConsumer
from keepfit.store.models import Install, Model, Store
from tests.conftest import SHOES_RECIPE, SIGNING_KEYS
from tests.factories import accept, commit_bundle

KEYRING = Keyring.from_text(SIGNING_KEYS)
RECIPE = parse(SHOES_RECIPE)
METADATA = {"type": "shoes", "session": "commit"}
HASH = identity.hash_of(METADATA)
LOCK_S = 15.0


@pytest.fixture
async def store(settings: Settings) -> AsyncIterator[Store]:
    """Return a store with one model in it."""
    client = redis_clients.store_async(settings)
    opened = Store(client)
    await opened.install(Install(HASH, identity.canonical(METADATA).decode(), RECIPE.text(), generation=1))
    yield opened
    await client.aclose()


@pytest.fixture
def client(settings: Settings) -> redis.Redis:
    """Return a plain client of the store."""
    return redis_clients.store_sync(settings)


@pytest.fixture
def consumer(client: redis.Redis) -> InboxConsumer:
    """Return the inbox as a worker uses it."""
    return InboxConsumer(client, LOCK_S)


def rows_of(*votes: tuple[str, float, float], recipe: Recipe = RECIPE) -> Rows:
    """Return rows of votes (make, year, size)."""
    return shape(recipe, [[make, year] for make, year, _ in votes], [size for *_, size in votes], learning=True)


async def model_of(store: Store) -> Model:
    """Describe the model, which must exist."""
    model = await store.describe(HASH)
    assert model is not None
    return model


def claim(consumer: InboxConsumer, token: str) -> Claimed:
    """Claim the model, which must be unlocked."""
    claimed = consumer.claim(HASH, token, "")
    assert claimed is not None
    return claimed


def learned(claimed: Claimed, count: int | None = None) -> Bundle:
    """Return the claimed bundle after it has learned the first `count` entries."""
    bundle = unseal(claimed.data, KEYRING, RECIPE, HASH)[1] if claimed.data else Bundle.new(RECIPE)
    for entry in claimed.entries[:count]:
        bundle.partial_fit(entry.rows())
    return bundle


async def test_sequences_count_accepted_requests_from_one(store: Store) -> None:
    """Accepted requests are numbered 1, 2, 3 and wait in that order."""
    model = await model_of(store)
    sequences = [(await accept(store, model, rows_of(("nike", 2000 + i, 3)))).sequence for i in range(3)]
    assert sequences == [1, 2, 3]
    assert (await model_of(store)).inbox == 3


async def test_commit_makes_the_bundle_live_and_trims_what_it_learned(store: Store, consumer: InboxConsumer) -> None:
    """A commit of two of three requests leaves the third, adds one version and records the learned sequence."""
    model = await model_of(store)
    for i in range(3):
        await accept(store, model, rows_of(("nike", 2000 + i, 3), ("puma", 2001, 4)))
    claimed = claim(consumer, "a")
    committed = commit_bundle(consumer, KEYRING, claimed, learned(claimed, 2), 2, "a")
    assert (committed.version, committed.has_pending) == (1, True)
    after = await model_of(store)
    assert (after.version, after.rows_seen, after.learned, after.inbox) == (1, 4, 2, 1)
    again = claim(consumer, "a")
    assert [entry.sequence for entry in again.entries] == [3]
    header, bundle = unseal(again.data, KEYRING, RECIPE, HASH)
    assert (header.version, header.sequence, header.rows_seen, bundle.rows_seen) == (1, 2, 4, 4)
    assert await store.changed() == [HASH]


async def test_a_commit_claims_the_remaining_requests_in_the_same_round_trip(
    store: Store, consumer: InboxConsumer
) -> None:
    """A commit of a part of a batch returns the rest, with the same content as another claim."""
    model = await model_of(store)
    for i in range(3):
        await accept(store, model, rows_of(("nike", 2000 + i, 3)))
    first = claim(consumer, "a")
    bundle = learned(first, 1)
    claimed = commit_bundle(consumer, KEYRING, first, bundle, 1, "a").claimed
    assert claimed is not None
    assert (claimed.version, claimed.learned, claimed.attempts, claimed.data) == (1, 1, 0, b"")
    again = consumer.claim(HASH, "a", claimed.digest)
    assert again == replace(claimed, claimed_s=again.claimed_s if again else 0.0)
    for entry in claimed.entries:
        bundle.partial_fit(entry.rows())
    last = commit_bundle(consumer, KEYRING, claimed, bundle, 2, "a")
    assert (last.version, last.has_pending, last.claimed) == (2, False, None)


async def test_a_commit_after_the_lock_was_lost_claims_no_requests(
    store: Store, consumer: InboxConsumer, client: redis.Redis
) -> None:
    """A commit after another lease got the lock succeeds, claims no requests and leaves that lock."""
    model = await model_of(store)
    for i in range(2):
        await accept(store, model, rows_of(("nike", 2000 + i, 3)))
    first = claim(consumer, "a")
    client.set(redis_keys.lock(HASH), "b")
    committed = commit_bundle(consumer, KEYRING, first, learned(first, 1), 1, "a")
    assert (committed.version, committed.claimed) == (1, None)
    assert client.get(redis_keys.lock(HASH)) == b"b"


async def test_a_worker_with_an_expired_lock_commits_nothing(
    store: Store, consumer: InboxConsumer, client: redis.Redis
) -> None:
    """If its lock expired and another worker committed, a worker is refused, and the other's bundle stays."""
    model = await model_of(store)
    await accept(store, model, rows_of(("nike", 2000, 3)))
    expired = claim(consumer, "expired")
    client.delete(redis_keys.lock(HASH))
    other = claim(consumer, "other")
    assert commit_bundle(consumer, KEYRING, other, learned(other), 1, "other").version == 1
    live = client.get(redis_keys.bundle(HASH))
    assert commit_bundle(consumer, KEYRING, expired, learned(expired), 1, "expired").version == SUPERSEDED
    assert client.get(redis_keys.bundle(HASH)) == live
    assert (await model_of(store)).rows_seen == 1


async def test_without_the_comparison_an_expired_lock_would_lose_rows(
    store: Store, consumer: InboxConsumer, client: redis.Redis
) -> None:
    """Control: the common pattern of a plain lock and SET loses the row that the commit script protects."""
    model = await model_of(store)
    await accept(store, model, rows_of(("nike", 2000, 3)))
    expired = claim(consumer, "expired")
    client.delete(redis_keys.lock(HASH))
    other = claim(consumer, "other")
    commit_bundle(consumer, KEYRING, other, learned(other), 1, "other")
    await accept(store, model, rows_of(("puma", 2001, 4)))
    second = claim(consumer, "other")
    commit_bundle(consumer, KEYRING, second, learned(second), 1, "other")
    assert (await model_of(store)).rows_seen == 2
    header = Header("bundle", HASH, 1, 1, 1, 1, "", runtime())
    client.set(redis_keys.bundle(HASH), seal(learned(expired), KEYRING, header))
    data = client.get(redis_keys.bundle(HASH))
    assert isinstance(data, bytes)
    assert unseal(data, KEYRING, RECIPE, HASH)[1].rows_seen == 1


async def test_a_locked_model_is_not_claimed_until_it_is_unlocked(store: Store, consumer: InboxConsumer) -> None:
    """Another lease cannot claim a locked model; the commit of all pending requests unlocks it."""
    model = await model_of(store)
    await accept(store, model, rows_of(("nike", 2000, 3)))
    claimed = claim(consumer, "a")
    assert consumer.claim(HASH, "b", "") is None
    assert not commit_bundle(consumer, KEYRING, claimed, learned(claimed), 1, "a").has_pending
    assert consumer.claim(HASH, "b", "") is not None


async def test_unlock_keeps_the_lock_while_requests_are_pending(store: Store, consumer: InboxConsumer) -> None:
    """The holder of the lock must notice a request accepted meanwhile, as no other lease was enqueued for it."""
    claim(consumer, "a")
    model = await model_of(store)
    await accept(store, model, rows_of(("nike", 2000, 3)))
    assert consumer.unlock(HASH, "a", force=False)
    assert consumer.claim(HASH, "b", "") is None
    assert consumer.unlock(HASH, "a", force=True)
    assert consumer.claim(HASH, "b", "") is not None


async def test_a_commit_is_refused_if_the_sequence_holds_other_rows(
    store: Store, consumer: InboxConsumer, client: redis.Redis
) -> None:
    """If Redis lost its last writes and other rows have the same sequence, a bundle of the lost rows is refused."""
    model = await model_of(store)
    lost_tail = {key: client.dump(key) for key in (redis_keys.state(HASH),)}
    await accept(store, model, rows_of(("nike", 2000, 3)))
    claimed = claim(consumer, "a")
    client.delete(redis_keys.inbox(HASH), redis_keys.lock(HASH))
    for key, dumped in lost_tail.items():
        client.restore(key, 0, dumped, replace=True)  # type: ignore[arg-type]
    await accept(store, model, rows_of(("puma", 1990, 5)))
    assert commit_bundle(consumer, KEYRING, claimed, learned(claimed), 1, "a").version == REQUESTS_CHANGED


async def test_a_commit_to_a_deleted_or_recreated_model_is_refused(store: Store, consumer: InboxConsumer) -> None:
    """A bundle of a model that was deleted, or deleted and created again, is not stored."""
    model = await model_of(store)
    await accept(store, model, rows_of(("nike", 2000, 3)))
    claimed = claim(consumer, "a")
    await store.delete(HASH)
    assert commit_bundle(consumer, KEYRING, claimed, learned(claimed), 1, "a").version == GONE
    await store.install(Install(HASH, identity.canonical(METADATA).decode(), RECIPE.text(), generation=2))
    assert commit_bundle(consumer, KEYRING, claimed, learned(claimed), 1, "a").version == GONE
    assert (await model_of(store)).version == 0


async def test_a_commit_with_a_reason_makes_a_dead_letter(
    store: Store, consumer: InboxConsumer, client: redis.Redis
) -> None:
    """The request counts as finished, adds no rows seen, and is kept with its reason."""
    model = await model_of(store)
    await accept(store, model, rows_of(("nike", 2000, 3)))
    claimed = claim(consumer, "a")
    assert commit_bundle(consumer, KEYRING, claimed, Bundle.new(RECIPE), 1, "a", "ValueError: no").version == 1
    after = await model_of(store)
    assert (after.rows_seen, after.learned, after.inbox) == (0, 1, 0)
    ((_, letter),) = client.xrange(redis_keys.dead(HASH))  # type: ignore[misc, union-attr]
    assert letter[b"reason"] == b"ValueError: no"
    assert letter[b"rows"] == claimed.entries[0].payload


async def test_the_same_idempotency_key_is_learned_once(store: Store) -> None:
    """The same key and rows return the first sequence again; the same key with other rows is refused."""
    model = await model_of(store)
    first = await accept(store, model, rows_of(("nike", 2000, 3)), "vote-1")
    assert await accept(store, model, rows_of(("nike", 2000, 3)), "vote-1") == first
    with pytest.raises(IdempotencyError):
        await accept(store, model, rows_of(("nike", 2000, 4)), "vote-1")
    assert (await model_of(store)).inbox == 1


async def test_refusals_of_accept_change_nothing(store: Store) -> None:
    """A full inbox, another width, a stale generation and a missing model are refused, and nothing is stored."""
    plain = parse({"estimator": "SGDRegressor"})
    model = replace(await model_of(store), recipe=plain)
    for i in range(2):
        await accept(store, model, rows_of(("nike", 2000 + i, 3)), inbox_entries_max=2)
    with pytest.raises(InboxFullError):
        await accept(store, model, rows_of(("nike", 2002, 3)), inbox_entries_max=2)
    with pytest.raises(StaleModelError):
        await accept(store, replace(model, generation=7), rows_of(("nike", 2000, 3)))
    with pytest.raises(NotFoundError):
        await accept(store, replace(model, hash="0" * 64), rows_of(("nike", 2000, 3)))
    wide = shape(plain, [[1.0, 2.0, 3.0]], [1.0], learning=True)
    with pytest.raises(InvalidError, match="3 values where the model has 2"):
        await accept(store, model, wide)
    after = await model_of(store)
    assert after.inbox == 2


async def test_a_single_large_request_is_accepted_alone(store: Store) -> None:
    """A request larger than the inbox's limit is accepted if no other request is pending, and refused otherwise."""
    model = await model_of(store)
    large = rows_of(*[("nike", 2000.0 + i, 3.0) for i in range(200)])
    assert (await accept(store, model, large, inbox_bytes_max=1024)).sequence == 1
    with pytest.raises(InboxFullError):
        await accept(store, model, rows_of(("nike", 2000, 3)), inbox_bytes_max=1024)


async def test_bytes_of_the_inbox_return_to_zero(store: Store, consumer: InboxConsumer, client: redis.Redis) -> None:
    """Learned requests no longer count against the inbox's byte limit."""
    model = await model_of(store)
    for i in range(5):
        await accept(store, model, rows_of(("nike", 2000 + i, 3)))
    assert int(client.hget(redis_keys.state(HASH), "bytes") or 0) > 0  # type: ignore[arg-type]
    claimed = claim(consumer, "a")
    commit_bundle(consumer, KEYRING, claimed, learned(claimed), 5, "a")
    assert client.hget(redis_keys.state(HASH), "bytes") == b"0"
    assert client.xlen(redis_keys.inbox(HASH)) == 0


async def test_a_claim_reads_at_most_its_byte_limit_but_at_least_one_request(
    store: Store, consumer: InboxConsumer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch is bounded in bytes, in order, and never empty while requests are pending."""
    model = await model_of(store)
    for i in range(40):
        await accept(store, model, rows_of(("nike", 2000 + i, 3)))
    size = len(claim(consumer, "a").entries[0].payload)
    monkeypatch.setattr("keepfit.store.commit.BYTES_MAX", size * 3)
    assert [entry.sequence for entry in claim(consumer, "a").entries] == [1, 2, 3]
    monkeypatch.setattr("keepfit.store.commit.BYTES_MAX", 1)
    assert [entry.sequence for entry in claim(consumer, "a").entries] == [1]


async def test_attempts_count_deaths_and_not_claims(store: Store, consumer: InboxConsumer) -> None:
    """Claims without a commit count nothing; deaths count, each once; a commit resets the count."""
    model = await model_of(store)
    await accept(store, model, rows_of(("nike", 2000, 3)))
    assert [claim(consumer, "a").attempts for _ in range(3)] == [0, 0, 0]
    for harm, attempts in ((Harm.DEATH, 1), (None, 1), (Harm.MEMORY, 4)):
        consumer.unlock(HASH, "a", force=True, harm=harm)
        consumer.unlock(HASH, "a", force=True, harm=Harm.DEATH)
        assert claim(consumer, "a").attempts == attempts
    claimed = claim(consumer, "a")
    assert claimed.harm == "MEMORY"
    commit_bundle(consumer, KEYRING, claimed, learned(claimed), 1, "a")
    await accept(store, model, rows_of(("nike", 2001, 3)))
    assert claim(consumer, "a").attempts == 0


async def test_scripts_are_loaded_again_after_a_flush(
    store: Store, consumer: InboxConsumer, client: redis.Redis
) -> None:
    """After SCRIPT FLUSH (as after a restart or a failover) the next call loads the scripts and succeeds."""
    model = await model_of(store)
    client.script_flush()
    await accept(store, model, rows_of(("nike", 2000, 3)))
    client.script_flush()
    claimed = claim(consumer, "a")
    client.script_flush()
    assert commit_bundle(consumer, KEYRING, claimed, learned(claimed), 1, "a").version == 1


async def test_commits_are_published(store: Store, consumer: InboxConsumer, settings: Settings) -> None:
    """A commit publishes hash, generation, version, learned sequence and rows seen to subscribers."""
    subscriber: Any = redis.asyncio.Redis.from_url(settings.store_url.get_secret_value())
    async with subscriber.pubsub(ignore_subscribe_messages=True) as pubsub:
        await pubsub.subscribe(redis_keys.COMMITS)
        await pubsub.get_message(timeout=5)
        model = await model_of(store)
        await accept(store, model, rows_of(("nike", 2000, 3)))
        claimed = claim(consumer, "a")
        commit_bundle(consumer, KEYRING, claimed, learned(claimed), 1, "a")
        message = await pubsub.get_message(timeout=60)
    await subscriber.aclose()
    assert message["data"].decode().split(" ") == [HASH, "1", "1", "1", "1", "0", ""]
