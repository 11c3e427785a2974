"""The command `keepfit dead`: it lists what was put aside, and retries it when told to."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from typer.testing import CliRunner, Result

from keepfit.backends import redis_keys
from keepfit.cli import main
from keepfit.errors import NotFoundError
from keepfit.jobs import run_queue
from keepfit.settings import Settings
from tests.factories import Workshop, workshop
from tests.keepfit.store.test_dead_letters import REASON, put_aside

Run = Callable[..., Awaitable[Result]]


@pytest.fixture
async def shop(settings: Settings) -> AsyncIterator[Workshop]:
    """Return a workshop."""
    async with workshop(settings) as opened:
        yield opened


@pytest.fixture
def run(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Return the command on the test's own servers; beside the loop, because it has one of its own."""
    monkeypatch.setenv("KEEPFIT_STORE_URL", settings.store_url.get_secret_value())
    monkeypatch.setenv("KEEPFIT_MONGO_URL", settings.mongo_url.get_secret_value())

    async def invoke(*words: str) -> Result:
        return await asyncio.to_thread(CliRunner().invoke, main.app, ["dead", *words])

    return invoke


async def test_it_lists_and_retries(shop: Workshop, run: Run) -> None:
    """The table and the JSON lines say what was put aside and why; a retry moves it and rings for a worker."""
    model_hash = await shop.make()
    for _ in range(2):
        await shop.accept(model_hash)
    put_aside(shop, model_hash, 2)
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
    assert shop.redis.lrange(redis_keys.waiting(run_queue.LEARN.name), 0, -1) == [model_hash.encode()]
    assert (await run("--hash", model_hash, "--json")).stdout == ""


@pytest.mark.parametrize("more", [[], ["--retry"]], ids=str)
@pytest.mark.usefixtures("shop")
async def test_a_model_that_is_not_there_is_an_error(run: Run, more: list[str]) -> None:
    """Of no model nothing is listed or retried, and the command says so."""
    found = await run("--hash", "0" * 64, *more)
    assert isinstance(found.exception, NotFoundError)
