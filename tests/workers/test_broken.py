"""Damaged bundles: workers repair them while they predict and learn, or report why they cannot."""

import asyncio
import itertools
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import structlog

from keepfit.backends import redis_clients, redis_keys, redis_scripts
from keepfit.jobs.messages import WorkerRequest, decode_replies, encode
from keepfit.model.bundle import Bundle
from keepfit.model.serialization import unseal
from keepfit.recipe.recipe import parse
from keepfit.rows.shaping import shape
from keepfit.security.envelope import Keyring
from keepfit.store.commit import InboxConsumer
from keepfit_workers.context import WorkerContext
from keepfit_workers.learning import learn
from keepfit_workers.predicting import answer_all
from tests.conftest import SHOES_RECIPE, Stack, start_stack, stop_stack
from tests.factories import SHOES, Workshop, claimed_entry, commit_bundle

ROWS, CLIENTS = 1600, 8


async def request_predictions(shop: Workshop, context: WorkerContext, *hashes: str) -> list[Any]:
    """Execute one predict request per model; return the replies in the order in which they were sent."""
    entries = []
    for number, model_hash in enumerate(hashes):
        model = await shop.model(model_hash)
        rows = shape(model.recipe, SHOES, learning=False)
        entries.append(encode(WorkerRequest(number, "g", model_hash, "predict", model.generation, rows)))
    # A worker executes leases in a thread without an event loop.
    unsent = await asyncio.to_thread(answer_all, context, [claimed_entry(entry) for entry in entries])
    if unsent:
        redis_scripts.run(context.queue, *unsent)
    batches = context.queue.lrange(redis_keys.replies("g"), 0, -1)
    context.queue.delete(redis_keys.replies("g"))
    return [reply for batch in batches for reply in decode_replies(batch)]


async def test_a_damaged_bundle_is_repaired_and_then_predicts(shop: Workshop, context: WorkerContext) -> None:
    """Other models are answered first; the damaged one gets StaleModelError, because the repair adds a generation."""
    damaged, intact = await shop.learned(), await shop.learned()
    expected = await shop.predict(damaged)
    shop.redis.delete(redis_keys.bundle(damaged))
    replies = await request_predictions(shop, context, damaged, intact)
    assert [(reply.id, reply.error and reply.error[0]) for reply in replies] == [(1, None), (0, "StaleModelError")]
    (again,) = await request_predictions(shop, context, damaged)
    assert again.result == expected


async def test_pending_requests_are_learned_after_the_bundle_is_repaired(
    shop: Workshop, context: WorkerContext
) -> None:
    """A worker that claims a damaged bundle repairs it in one turn and learns the pending requests in the next."""
    model_hash, twin = await shop.learned(), await shop.learned()
    shop.redis.set(redis_keys.bundle(model_hash), b"KFIT\x01?")
    for each in (model_hash, twin):
        await shop.accept(each)
    assert await asyncio.to_thread(learn, context, model_hash, "lease")
    assert not await asyncio.to_thread(learn, context, model_hash, "lease")
    after = await shop.model(model_hash)
    assert (after.rows_seen, after.inbox, after.version) == (6, 0, 2)
    shop.work(twin)
    assert await shop.predict(model_hash) == await shop.predict(twin)


async def test_missing_requests_are_reported_and_not_searched_for_again(
    shop: Workshop, context: WorkerContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Predictions name the missing requests, from the cached result after the first; pending requests stay pending."""
    model_hash = await shop.make()
    for _ in range(2):
        await shop.accept(model_hash)
        consumer = InboxConsumer(shop.redis, 6.0)
        claimed = consumer.claim(model_hash, "t", "")
        assert claimed is not None
        bundle = unseal(claimed.data, context.keyring, parse(SHOES_RECIPE), model_hash)[1] if claimed.data else None
        bundle = bundle or Bundle.new(parse(SHOES_RECIPE))
        bundle.partial_fit(claimed.entries[0].rows())
        commit_bundle(consumer, context.keyring, claimed, bundle, 1, "t")
    await shop.accept(model_hash)
    shop.redis.delete(redis_keys.bundle(model_hash))
    (reply,) = await request_predictions(shop, context, model_hash)
    assert reply.error[0] == "MissingRequestsError"
    assert "requests 1 to 2 are not retained" in reply.error[1]
    with structlog.testing.capture_logs() as logged:
        assert (await request_predictions(shop, context, model_hash))[0].error == reply.error
        assert not await asyncio.to_thread(learn, context, model_hash, "lease")
    assert logged == []
    assert (await shop.model(model_hash)).inbox == 1


@contextmanager
def unavailable(folder: Path) -> Iterator[None]:
    """Replace a folder by a file while the block runs."""
    folder.rename(folder.with_name("away"))
    folder.touch()
    try:
        yield
    finally:
        folder.unlink()
        folder.with_name("away").rename(folder)


async def test_an_outage_of_storage_is_retried(shop: Workshop, context: WorkerContext) -> None:
    """While the snapshot cannot be read, a request gets UnavailableError; later ones repair the model and succeed."""
    model_hash = await shop.learned()
    await shop.snapshotter.run_pass()
    expected = await shop.predict(model_hash)
    shop.redis.delete(redis_keys.bundle(model_hash))
    with unavailable(Path(shop.settings.snapshot_url.removeprefix("file://"))):
        (reply,) = await request_predictions(shop, context, model_hash)
    assert reply.error[0] == "UnavailableError"
    await request_predictions(shop, context, model_hash)
    assert (await request_predictions(shop, context, model_hash))[0].result == expected


@pytest.fixture
def own_stack(tmp_path: Path) -> Iterator[Stack]:
    """Run a stack for damage: a snapshot every 2 s, and workers that read the bundle again for each prediction."""
    environment = {
        "KEEPFIT_SNAPSHOT_EVERY_S": "2",
        "KEEPFIT_BUNDLE_CACHE_BYTES_MAX": "0",
        # A gateway that has the scorer of a model needs no bundle.
        "KEEPFIT_SCORER_BYTES_MAX": "0",
    }
    stack = start_stack(tmp_path / "data", environment=environment)
    yield stack
    assert stop_stack(stack) == 0


async def test_bundles_damaged_under_load_lose_no_row(own_stack: Stack) -> None:
    """While clients send rows and predict, bundles are damaged and deleted; each row is learned once, in order."""
    settings = own_stack.settings()
    client = redis_clients.store_sync(settings)
    accepted: dict[int, tuple[list[list[float]], list[float]]] = {}
    recipe = {"estimator": "SGDRegressor", "scaler": "StandardScaler"}
    async with aiohttp.ClientSession(own_stack.url) as http:
        made = await (await http.post("/v1/models", json={"metadata": {"type": "t"}, "recipe": recipe})).json()
        path, bundle_key = f"/v1/models/{made['hash']}", redis_keys.bundle(made["hash"])
        numbers, damages = itertools.count(), 0

        async def send_rows() -> None:
            for _ in range(ROWS // CLIENTS):
                number = next(numbers)
                X, y = [[number % 7.0, number % 11.0]], [number % 5.0]
                async with http.post(f"{path}/partial_fit", json={"X": X, "y": y}) as response:
                    reply = await response.json()
                    assert response.status == 202, reply
                accepted[reply["sequence"]] = X, y

        async def predict() -> int:
            # Each input differs: gateways would answer a repeated one from the prediction cache.
            async with http.post(f"{path}/predict", json={"X": [[next(numbers), 2.0]]}) as response:
                await response.read()
                return response.status

        def repairs() -> list[int]:
            """Return how many requests each repair has replayed."""
            lines = [line for line in own_stack.log("workers").splitlines() if "bundle_repaired" in line]
            return [json.loads(line)["requests"] for line in lines]

        sending = asyncio.gather(*(send_rows() for _ in range(CLIENTS)))
        # While rows are learned, the next commit may replace a damaged bundle before any worker reads it.
        while not sending.done() or damages < 10 or len(repairs()) < 2:
            data: Any = client.get(bundle_key)
            if data:
                offset = (damages * 997) % len(data)
                damaged = data[:offset] + bytes([data[offset] ^ 1]) + data[offset + 1 :]
                client.set(bundle_key, damaged) if damages % 2 else client.delete(bundle_key)
                damages += 1
            assert await predict() in (200, 409, 503)
            await asyncio.sleep(0.05)
        await sending
        async with asyncio.timeout(60):
            while (await (await http.get(path)).json())["rows_seen"] < ROWS or await predict() != 200:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
    keyring = Keyring.from_text(settings.signing_keys.get_secret_value())
    data = client.get(bundle_key)
    header, found = unseal(data, keyring, parse(recipe), made["hash"])
    client.close()
    expected = Bundle.new(parse(recipe))
    for sequence in sorted(accepted):
        expected.partial_fit(shape(expected.recipe, *accepted[sequence], learning=True))
    assert sorted(accepted) == list(range(1, ROWS + 1))
    assert (header.sequence, found.rows_seen) == (ROWS, ROWS)
    assert (found.estimator.coef_ == expected.estimator.coef_).all()
    assert (found.columns.scaler.mean_ == expected.columns.scaler.mean_).all()
    assert sum(repairs()) > 0
