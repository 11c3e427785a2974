"""Broken bundles that workers meet: put right while they answer and learn, or told of."""

import asyncio
import itertools
import json
from collections.abc import AsyncIterator, Iterator
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
from keepfit.settings import Settings
from keepfit.store.commit import InboxConsumer
from keepfit_workers.context import WorkerContext
from keepfit_workers.learning import learn
from keepfit_workers.predicting import answer_all
from tests.conftest import SHOES_RECIPE, Stack, start_stack, stop_stack
from tests.factories import SHOES, Workshop, commit_bundle, workshop

ROWS, CLIENTS = 1600, 8


@pytest.fixture
async def shop(settings: Settings) -> AsyncIterator[Workshop]:
    """Open a workshop on servers of the test's own."""
    async with workshop(settings) as opened:
        yield opened


async def asked(shop: Workshop, context: WorkerContext, *hashes: str) -> list[Any]:
    """Have predictions asked for of each model; return the answers as they come."""
    entries = []
    for number, model_hash in enumerate(hashes):
        model = await shop.model(model_hash)
        rows = shape(model.recipe, SHOES, learning=False)
        entries.append(encode(WorkerRequest(number, "g", model_hash, "predict", model.generation, rows)))
    # A worker has no loop of its own in its thread.
    left = await asyncio.to_thread(answer_all, context, entries)
    if left:
        redis_scripts.run(context.queue, *left)
    batches = context.queue.lrange(redis_keys.replies("g"), 0, -1)
    context.queue.delete(redis_keys.replies("g"))
    return [answer for batch in batches for answer in decode_replies(batch)]


async def test_who_asks_a_broken_model_is_answered_once_it_is_put_right(shop: Workshop, context: WorkerContext) -> None:
    """Others have their answers first; who knew the model as it was hears that it is another generation now."""
    broken, well = await shop.learned(), await shop.learned()
    expected = await shop.predict(broken)
    shop.redis.delete(redis_keys.bundle(broken))
    answers = await asked(shop, context, broken, well)
    assert [(answer.id, answer.error and answer.error[0]) for answer in answers] == [(1, None), (0, "StaleModelError")]
    (again,) = await asked(shop, context, broken)
    assert again.result == expected


async def test_what_waits_is_learned_once_the_bundle_is_put_right(shop: Workshop, context: WorkerContext) -> None:
    """A worker that finds the bundle broken puts it right in one turn, and learns what waits in the next."""
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


async def test_a_gap_is_told_and_not_looked_for_again(
    shop: Workshop, context: WorkerContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where requests are missing predictions say which, at once from then on; what waits is not touched."""
    model_hash = await shop.make()
    for _ in range(2):
        await shop.accept(model_hash)
        none_kept = InboxConsumer(shop.redis, 6.0)
        taken = none_kept.claim(model_hash, "t", "")
        assert taken is not None
        bundle = unseal(taken.data, context.keyring, parse(SHOES_RECIPE), model_hash)[1] if taken.data else None
        bundle = bundle or Bundle.new(parse(SHOES_RECIPE))
        bundle.partial_fit(taken.entries[0].rows())
        commit_bundle(none_kept, context.keyring, taken, bundle, 1, "t")
    await shop.accept(model_hash)
    shop.redis.delete(redis_keys.bundle(model_hash))
    (answer,) = await asked(shop, context, model_hash)
    assert answer.error[0] == "MissingRequestsError"
    assert "requests 1 to 2 are not retained" in answer.error[1]
    with structlog.testing.capture_logs() as logged:
        assert (await asked(shop, context, model_hash))[0].error == answer.error
        assert not await asyncio.to_thread(learn, context, model_hash, "lease")
    assert logged == []
    assert (await shop.model(model_hash)).inbox == 1


@contextmanager
def away(folder: Path) -> Iterator[None]:
    """Have a file where a folder was, for as long as the block runs."""
    folder.rename(folder.with_name("away"))
    folder.touch()
    try:
        yield
    finally:
        folder.unlink()
        folder.with_name("away").rename(folder)


async def test_a_part_that_is_away_is_waited_for(shop: Workshop, context: WorkerContext) -> None:
    """While the snapshot cannot be read the answer is that, and the next one is right."""
    model_hash = await shop.learned()
    await shop.snapshotter.run_pass()
    expected = await shop.predict(model_hash)
    shop.redis.delete(redis_keys.bundle(model_hash))
    with away(Path(shop.settings.snapshot_url.removeprefix("file://"))):
        (answer,) = await asked(shop, context, model_hash)
    assert answer.error[0] == "UnavailableError"
    await asked(shop, context, model_hash)
    assert (await asked(shop, context, model_hash))[0].result == expected


@pytest.fixture
def own_stack(tmp_path: Path) -> Iterator[Stack]:
    """Run a stack that may be harmed, with many snapshots, whose workers read bundles anew at every turn."""
    environment = {"KEEPFIT_SNAPSHOT_EVERY_S": "2", "KEEPFIT_BUNDLE_CACHE_BYTES_MAX": "0"}
    stack = start_stack(tmp_path / "data", environment=environment)
    yield stack
    assert stop_stack(stack) == 0


async def test_bundles_broken_under_load_cost_no_row(own_stack: Stack) -> None:
    """Bundles are damaged and deleted while clients teach and ask: in the end each row was learned once, in order."""
    settings = own_stack.settings()
    client = redis_clients.store_sync(settings)
    accepted: dict[int, tuple[list[list[float]], list[float]]] = {}
    recipe = {"estimator": "SGDRegressor", "scaler": "StandardScaler"}
    async with aiohttp.ClientSession(own_stack.url) as http:
        made = await (await http.post("/v1/models", json={"metadata": {"type": "t"}, "recipe": recipe})).json()
        path, bundle_key = f"/v1/models/{made['hash']}", redis_keys.bundle(made["hash"])
        numbers, broken = itertools.count(), 0

        async def teach() -> None:
            for _ in range(ROWS // CLIENTS):
                number = next(numbers)
                X, y = [[number % 7.0, number % 11.0]], [number % 5.0]
                async with http.post(f"{path}/partial_fit", json={"X": X, "y": y}) as response:
                    answer = await response.json()
                    assert response.status == 202, answer
                accepted[answer["sequence"]] = X, y

        async def ask() -> int:
            # Never the same: gateways would give what they answered before.
            async with http.post(f"{path}/predict", json={"X": [[next(numbers), 2.0]]}) as response:
                await response.read()
                return response.status

        teaching = asyncio.gather(*(teach() for _ in range(CLIENTS)))
        while not teaching.done() or broken < 10:
            data: Any = client.get(bundle_key)
            if data:
                place = (broken * 997) % len(data)
                damaged = data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]
                client.set(bundle_key, damaged) if broken % 2 else client.delete(bundle_key)
                broken += 1
            assert await ask() in (200, 409, 503)
            await asyncio.sleep(0.05)
        await teaching
        async with asyncio.timeout(60):
            while (await (await http.get(path)).json())["rows_seen"] < ROWS or await ask() != 200:  # noqa: ASYNC110
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
    lines = [line for line in own_stack.log("workers").splitlines() if "bundle_repaired" in line]
    requests = [json.loads(line)["requests"] for line in lines]
    assert len(requests) >= 2
    assert sum(requests) > 0
