"""The command `keepfit dead` lists dead letters, and retries them with --retry."""

import asyncio
import json
from collections.abc import Awaitable, Callable

import pytest
from typer.testing import CliRunner, Result

from keepfit.backends import redis_keys
from keepfit.cli import main
from keepfit.errors import NotFoundError
from keepfit.jobs import run_queue
from keepfit.settings import Settings
from tests.factories import Workshop
from tests.keepfit.store.test_dead_letters import REASON, make_dead_letters

Run = Callable[..., Awaitable[Result]]


@pytest.fixture
def run(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Return the command on the test's own servers; it runs in a thread, because it starts an event loop."""
    monkeypatch.setenv("KEEPFIT_STORE_URL", settings.store_url.get_secret_value())
    monkeypatch.setenv("KEEPFIT_MONGO_URL", settings.mongo_url.get_secret_value())

    async def invoke(*words: str) -> Result:
        return await asyncio.to_thread(CliRunner().invoke, main.app, ["dead", *words])

    return invoke


async def test_dead_letters_are_listed_and_retried(shop: Workshop, run: Run) -> None:
    """Table and JSON lines name each dead letter and its reason; --retry moves them and enqueues the model."""
    model_hash = await shop.make()
    for _ in range(2):
        await shop.accept(model_hash)
    make_dead_letters(shop, model_hash, 2)
    listed = await run("--hash", model_hash, "--json")
    first, second = map(json.loads, listed.stdout.splitlines())
    assert (first["sequence"], first["rows"], first["reason"]) == (1, 3, REASON)
    assert second["id"] == f"{second['generation']}-2"
    printed = (await run("--hash", model_hash)).stdout
    assert second["id"] in printed
    assert REASON in printed
    retried = await run("--hash", model_hash, "--retry", "--json")
    assert json.loads(retried.stdout) == {"hash": model_hash, "accepted": 2, "left": 0}
    assert (await shop.model(model_hash)).inbox == 2
    assert shop.redis.lrange(redis_keys.queued_models(run_queue.LEARN.name), 0, -1) == [model_hash.encode()]
    assert (await run("--hash", model_hash, "--json")).stdout == ""


@pytest.mark.parametrize("more", [[], ["--retry"]], ids=str)
@pytest.mark.usefixtures("shop")
async def test_an_unknown_model_is_an_error(run: Run, more: list[str]) -> None:
    """Listing or retrying the dead letters of an unknown model raises NotFoundError."""
    found = await run("--hash", "0" * 64, *more)
    assert isinstance(found.exception, NotFoundError)
