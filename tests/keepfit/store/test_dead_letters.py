"""Dead letters: listed, retried and discarded, each in one atomic script, on a real Valkey server."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from keepfit.backends import redis_clients, redis_keys, redis_scripts
from keepfit.errors import InboxFullError, NotFoundError, StaleModelError
from keepfit.recipe.recipe import parse
from keepfit.rows.shaping import shape
from keepfit.settings import Settings
from keepfit.store import dead_letters
from keepfit.store.dead_letters import CALL_ENTRIES_MAX, PAGE_BYTES_MAX, SHOWN_BYTES_MAX, DeadLetters, decode_payload
from tests.factories import SHOES, SIZES, Workshop, commit_bundle, workshop

REASON = "ValueError: no"


@pytest.fixture
async def shop(settings: Settings) -> AsyncIterator[Workshop]:
    """Open a workshop on servers of this test only."""
    async with workshop(settings) as opened:
        yield opened


@pytest.fixture
async def dead(settings: Settings) -> AsyncIterator[DeadLetters]:
    """Return the dead letters of the store."""
    client = redis_clients.store_async(settings)
    yield DeadLetters(client)
    await client.aclose()


def make_dead_letters(shop: Workshop, model_hash: str, count: int = 1) -> None:
    """Make dead letters of the next requests, as a worker does."""
    for _ in range(count):
        claimed = shop.consumer.claim(model_hash, "t", "")
        assert claimed is not None
        bundle = shop._unsealed(model_hash, claimed.recipe_text, claimed.data)
        assert (
            commit_bundle(shop.consumer, shop.keyring, claimed, bundle, 1, "t", REASON).version == claimed.version + 1
        )


async def make_model(shop: Workshop, count: int = 1, X: list[Any] = SHOES, y: list[Any] = SIZES) -> str:
    """Create a model with `count` dead letters; return its hash."""
    model_hash = await shop.make()
    for _ in range(count):
        await shop.accept(model_hash, X, y)
    make_dead_letters(shop, model_hash, count)
    return model_hash


async def test_a_page_lists_dead_letters_with_their_reasons(shop: Workshop, dead: DeadLetters) -> None:
    """Each entry has its id, sequence, time, reason and rows, oldest first, page by page."""
    model_hash = await make_model(shop, 3)
    generation = (await shop.model(model_hash)).generation
    first, following = await dead.page(model_hash, 2)
    second, end = await dead.page(model_hash, 2, following or "")
    assert [entry.sequence for entry in first + second] == [1, 2, 3]
    assert (following, end) == (f"{generation}-2", None)
    (entry, *_) = first
    assert (entry.id, entry.generation, entry.reason, entry.rows) == (f"{generation}-1", generation, REASON, 3)
    assert entry.size_bytes == len(entry.payload)
    recipe = (await shop.model(model_hash)).recipe
    assert decode_payload(recipe, entry.payload) == {"X": SHOES, "y": SIZES}


async def test_rows_are_shown_as_they_were_sent() -> None:
    """Numbers, categories, labels and weights are decoded in the order of the columns."""
    recipe = parse({
        "estimator": "SGDClassifier", "classes": ["a", "b"],
        "features": {"x": "number", "make": "category", "z": "number", "size": "category"},
    })  # fmt: skip
    X, y = [[1.5, "nike", 2.0, "small"], [3.0, "puma", 4.0, 7]], ["a", "b"]
    assert decode_payload(recipe, shape(recipe, X, y, [1.0, 2.0], learning=True).encode()) == {
        "X": X,
        "y": y,
        "sample_weight": [1.0, 2.0],
    }
    only = parse({"estimator": "SGDRegressor", "features": {"a": "category"}})
    assert decode_payload(only, shape(only, [["x"], ["y"]], [1, 2], learning=True).encode()) == {
        "X": [["x"], ["y"]],
        "y": [1.0, 2.0],
    }
    plain = parse({"estimator": "MiniBatchKMeans"})
    assert decode_payload(plain, shape(plain, [[1, 2]], learning=True).encode()) == {"X": [[1.0, 2.0]]}


async def test_large_rows_are_listed_by_their_number_only(shop: Workshop, dead: DeadLetters) -> None:
    """Rows larger than a page shows, in the inbox or in a key of their own, are listed with number and size only."""
    recipe = {"estimator": "SGDRegressor"}
    model_hash = await shop.make(recipe)
    for n in (SHOWN_BYTES_MAX // 8, 40_000):
        await shop.accept(model_hash, [[1.0]] * n, [1.0] * n)
    make_dead_letters(shop, model_hash, 2)
    inside, separate = (await dead.page(model_hash, 10))[0]
    assert (inside.rows, inside.payload, inside.large_key) == (SHOWN_BYTES_MAX // 8, b"", "")
    assert (separate.rows, separate.payload, bool(separate.large_key)) == (40_000, b"", True)
    assert separate.size_bytes > 256 * 1024
    shop.redis.delete(separate.large_key)
    assert (await dead.page(model_hash, 10))[0][1].rows is None


async def test_a_page_is_no_larger_than_its_bound(shop: Workshop, dead: DeadLetters) -> None:
    """A page ends before its rows exceed PAGE_BYTES_MAX, and the next page continues from there."""
    model_hash = await shop.make({"estimator": "SGDRegressor"})
    n, count = SHOWN_BYTES_MAX // 16 - 10, 20
    for _ in range(count):
        await shop.accept(model_hash, [[1.0]] * n, [1.0] * n)
    make_dead_letters(shop, model_hash, count)
    seen, after, pages = [], "", 0
    while True:
        entries, following = await dead.page(model_hash, 100, after)
        assert sum(len(entry.payload) for entry in entries) <= PAGE_BYTES_MAX
        assert all(entry.payload for entry in entries)
        seen += [entry.sequence for entry in entries]
        pages += 1
        if following is None:
            break
        after = following
    assert seen == list(range(1, count + 1))
    assert pages == 2


async def test_a_retried_request_is_added_last_and_learned_once(shop: Workshop, dead: DeadLetters) -> None:
    """A retry assigns the next sequences in order; moved requests are in the inbox and no longer dead letters."""
    model_hash = await make_model(shop, 2)
    await shop.accept(model_hash)
    model = await shop.model(model_hash)
    retried = await dead.retry(model, shop.settings, None)
    assert (retried.sequences, retried.refused, retried.left) == ([4, 5], {}, 0)
    pending = await shop.model(model_hash)
    assert (pending.inbox, pending.version) == (3, retried.version)
    shop.work(model_hash)
    after = await shop.model(model_hash)
    assert (after.inbox, after.rows_seen, after.learned) == (0, 9, 5)
    assert shop.redis.hget(redis_keys.state(model_hash), "bytes") == b"0"


async def test_a_retry_moves_only_the_named_ids(shop: Workshop, dead: DeadLetters) -> None:
    """Only named dead letters are moved; unknown ids are reported as refused, and a repeated id moves nothing twice."""
    model_hash = await make_model(shop, 3)
    model = await shop.model(model_hash)
    named, unknown = f"{model.generation}-2", f"{model.generation}-9"
    retried = await dead.retry(model, shop.settings, [named, unknown, named, f"{model.generation}-02"])
    assert retried.sequences == [4]
    assert set(retried.refused) == {unknown, f"{model.generation}-02"}
    assert retried.left == 2
    again = await dead.retry(model, shop.settings, [named])
    assert (again.sequences, list(again.refused)) == ([], [named])
    assert (await shop.model(model_hash)).inbox == 1


async def test_a_retried_request_that_fails_again_gets_a_new_id(shop: Workshop, dead: DeadLetters) -> None:
    """If the same rows are refused again, they are a dead letter again, under another sequence."""
    model_hash = await make_model(shop)
    model = await shop.model(model_hash)
    await dead.retry(model, shop.settings, None)
    make_dead_letters(shop, model_hash)
    (entry,), _ = await dead.page(model_hash, 10)
    assert entry.id == f"{model.generation}-2"
    assert decode_payload(model.recipe, entry.payload)["X"] == SHOES


async def test_a_repeated_call_moves_nothing_twice(shop: Workshop, redis_url: str) -> None:
    """The script run again under its key, as after a lost reply, returns the first reply and adds nothing."""
    model_hash = await make_model(shop)
    model = await shop.model(model_hash)
    call = redis_scripts.call(
        "retry",
        [
            redis_keys.state(model_hash),
            redis_keys.inbox(model_hash),
            redis_keys.dead(model_hash),
            redis_keys.idempotency(model_hash, "r:once"),
            redis_keys.dead(model_hash),
        ],
        [model.generation, 10_000, 100, 10_000, f"{model.generation}-1"],
    )
    first, again = (redis_scripts.run(shop.redis, call)[0] for _ in range(2))
    assert first == again == [b"ok", 1, b"2", 1, first[4]]
    assert (await shop.model(model_hash)).inbox == 1


async def test_large_rows_are_kept_until_a_snapshot_contains_them(shop: Workshop, dead: DeadLetters) -> None:
    """Rows in a key of their own have no time to live; they are deleted once they are learned and in a snapshot."""
    model_hash = await shop.make({"estimator": "SGDRegressor"})
    n = 40_000
    await shop.accept(model_hash, [[1.0]] * n, [1.0] * n)
    make_dead_letters(shop, model_hash)
    (entry,), _ = await dead.page(model_hash, 1)
    assert shop.redis.ttl(entry.large_key) == -1
    model = await shop.model(model_hash)
    assert (await dead.retry(model, shop.settings, None)).sequences == [2]
    assert shop.redis.hget(redis_keys.state(model_hash), "bytes") == str(entry.size_bytes).encode()
    # A client that read the list before the retry cannot discard the moved entry.
    assert (await dead.discard(model_hash, [entry.id]))[0] == 0
    assert shop.redis.ttl(entry.large_key) == -1
    shop.work(model_hash)
    assert (await shop.model(model_hash)).rows_seen == n
    assert shop.redis.ttl(entry.large_key) == -1
    await shop.snapshotter.run_pass()
    assert not shop.redis.exists(entry.large_key)


async def test_lost_rows_are_not_retried(shop: Workshop, dead: DeadLetters) -> None:
    """A request whose large rows Redis has lost stays a dead letter, and the retry reports it as lost."""
    model_hash = await shop.make({"estimator": "SGDRegressor"})
    await shop.accept(model_hash, [[1.0]] * 40_000, [1.0] * 40_000)
    make_dead_letters(shop, model_hash)
    (entry,), _ = await dead.page(model_hash, 1)
    shop.redis.delete(entry.large_key)
    retried = await dead.retry(await shop.model(model_hash), shop.settings, [entry.id])
    assert (retried.sequences, retried.left) == ([], 1)
    assert "lost" in retried.refused[entry.id]


async def test_a_full_inbox_refuses_a_retry(shop: Workshop, dead: DeadLetters) -> None:
    """Entries that fit are moved and the rest stays; if none fits, InboxFullError is raised, and nothing is lost."""
    model_hash = await make_model(shop, 3)
    model = await shop.model(model_hash)
    small = shop.settings.model_copy(update={"inbox_entries_max": 2})
    retried = await dead.retry(model, small, None)
    assert (retried.sequences, retried.left) == ([4, 5], 1)
    assert "full" in next(iter(retried.refused.values()))
    with pytest.raises(InboxFullError):
        await dead.retry(model, small, None)
    few = shop.settings.model_copy(update={"inbox_bytes_max": 1024})
    with pytest.raises(InboxFullError):
        await dead.retry(model, few.model_copy(update={"inbox_bytes_max": 1}), None)
    assert await dead.count(model_hash) == 1


async def test_another_generation_is_not_retried(shop: Workshop, dead: DeadLetters) -> None:
    """Entries of an earlier generation stay with a reason; a caller with an earlier generation gets StaleModelError."""
    model_hash = await make_model(shop, 2)
    model = await shop.model(model_hash)
    shop.redis.hset(redis_keys.state(model_hash), "generation", model.generation + 1)
    with pytest.raises(StaleModelError):
        await dead.retry(model, shop.settings, None)
    later = await shop.model(model_hash)
    retried = await dead.retry(later, shop.settings, [f"{model.generation}-1"])
    assert (retried.sequences, retried.left) == ([], 2)
    assert "generation" in retried.refused[f"{model.generation}-1"]
    await shop.accept(model_hash)
    make_dead_letters(shop, model_hash)
    assert (await dead.retry(later, shop.settings, None)).left == 2, (
        "entries of an earlier generation blocked the retry"
    )


async def test_discarded_requests_are_deleted(shop: Workshop, dead: DeadLetters) -> None:
    """Discarded entries are deleted for good, with their large rows; the rest stays."""
    model_hash = await shop.make({"estimator": "SGDRegressor"})
    await shop.accept(model_hash, [[1.0]] * 40_000, [1.0] * 40_000)
    await shop.accept(model_hash, [[1.0]], [1.0])
    make_dead_letters(shop, model_hash, 2)
    (first, second), _ = await dead.page(model_hash, 2)
    assert await dead.discard(model_hash, [first.id, first.id, "9-9"]) == (1, 2)
    assert not shop.redis.exists(first.large_key)
    assert [entry.id for entry in (await dead.page(model_hash, 2))[0]] == [second.id]


async def test_a_missing_model_has_no_dead_letters(shop: Workshop, dead: DeadLetters) -> None:
    """A deleted model has no dead letters; discarding raises NotFoundError, a retry moves nothing."""
    model_hash = await make_model(shop)
    model = await shop.model(model_hash)
    generation = model.generation
    shop.lose(model_hash)
    assert await dead.page(model_hash, 10) == ([], None)
    with pytest.raises(NotFoundError):
        await dead.discard(model_hash, [f"{generation}-1"])
    assert (await dead.retry(model, shop.settings, None)).sequences == []


async def test_many_dead_letters_are_moved_in_bounded_calls(shop: Workshop, dead: DeadLetters) -> None:
    """One call moves a bounded number; concurrent calls move each entry once."""
    count = CALL_ENTRIES_MAX + 10
    model_hash = await shop.make()
    for _ in range(count):
        await shop.accept(model_hash)
    state = shop.redis
    for sequence in range(1, count + 1):
        ((_, fields),) = state.xrange(redis_keys.inbox(model_hash), f"{sequence}-0", f"{sequence}-0")  # type: ignore[misc, union-attr]
        letter: dict[Any, Any] = {"generation": 1, "sequence": sequence, "reason": REASON, "rows": fields[b"rows"]}
        letter |= {"big": "", "size": len(fields[b"rows"]), "at": 0}
        state.xadd(redis_keys.dead(model_hash), letter, id=f"1-{sequence}")
    state.delete(redis_keys.inbox(model_hash))
    model = await shop.model(model_hash)
    assert model.generation == 1
    state.hset(redis_keys.state(model_hash), mapping={"learned": count, "bytes": 0})
    calls = await asyncio.gather(*(dead.retry(model, shop.settings, None) for _ in range(3)))
    moved = [sequence for call in calls for sequence in call.sequences]
    assert len(calls[0].sequences) <= CALL_ENTRIES_MAX
    while (rest := await dead.retry(model, shop.settings, None)).sequences:
        moved += rest.sequences
    assert sorted(moved) == list(range(count + 1, 2 * count + 1))
    assert await dead.count(model_hash) == 0
    assert state.xlen(redis_keys.inbox(model_hash)) == count


async def test_find_reason_returns_the_reason_of_a_dead_letter(shop: Workshop, dead: DeadLetters) -> None:
    """find_reason() returns why a request is a dead letter, and whether any was ever removed."""
    model_hash = await make_model(shop, 2)
    model = await shop.model(model_hash)
    assert await dead.find_reason(model_hash, model.generation, 1) == (REASON, False)
    assert await dead.find_reason(model_hash, model.generation, 3) == (None, False)
    await dead.retry(model, shop.settings, [f"{model.generation}-1"])
    assert await dead.find_reason(model_hash, model.generation, 1) == (None, True)


@pytest.mark.parametrize("name", ["1-1", "123-9007199254740991"])
def test_valid_ids_are_accepted(name: str) -> None:
    """An id is a generation and a sequence."""
    assert dead_letters.ID.fullmatch(name)


@pytest.mark.parametrize("name", ["", "1", "-", "+", "(1-1", "1-1 ", "1-1\n", "a-1", "1-*", "1" * 20 + "-1"])
def test_other_ids_are_refused(name: str) -> None:
    """A text that Redis would read as a range, or cannot parse, is not an id."""
    assert not dead_letters.ID.fullmatch(name)
