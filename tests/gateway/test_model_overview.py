"""The overview of all models: rates, orders and pages, and that a list of many models costs one reading."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from keepfit import identity
from keepfit.backends import redis_clients, redis_keys
from keepfit.errors import InvalidError, UnavailableError
from keepfit.history import Registry
from keepfit.settings import Settings
from keepfit_gateway import model_overview
from keepfit_gateway.model_overview import SORTS, ModelOverview, Place, Wanted

RECIPE = '{"estimator":"SGDRegressor"}'


@dataclass
class Deployment:
    """Registered models with states in Redis, and an overview of them whose clock a test sets."""

    overview: ModelOverview
    store: Any
    registry: Registry
    now_s: float = 100.0
    hashes: dict[str, str] = field(default_factory=dict)

    async def make(self, name: str) -> str:
        """Register a model that is not live."""
        metadata = {"type": "shoes", "name": name}
        model_hash = self.hashes[name] = identity.hash_of(metadata)
        await self.registry.register(model_hash, identity.canonical(metadata).decode(), RECIPE)
        return model_hash

    async def set(self, name: str, rows: int, *, pending: int = 0, error: float | None = None, **more: Any) -> None:
        """Set how far a live model is."""
        metrics = "{}" if error is None else f'{{"mean_absolute_error":{error},"baseline_mean_absolute_error":2.0}}'
        metadata = identity.canonical({"type": "shoes", "name": name})
        state = {
            "metadata": metadata,
            "generation": 1,
            "version": 1,
            "rows_seen": rows,
            "accepted": pending,
            "learned": 0,
        } | more
        await self.store.hset(redis_keys.state(self.hashes[name]), mapping={**state, "metrics": metrics})

    async def order(self, sort: Any, limit: int = 100, wanted: Wanted = Wanted()) -> list[str]:  # noqa: B008
        """Return the names of models in an order, read page by page."""
        reading = await self.overview.read()
        names: list[str] = []
        after, is_cut = None, True
        while is_cut:
            page, is_cut = reading.page(sort, wanted, limit, after)
            names += [line.metadata["name"] for _, line in page]
            # As a client sends it.
            after = Place.parse(str(page[-1][0])) if page else None
        return names


@pytest.fixture
async def deployment(settings: Settings, registry: Registry) -> AsyncIterator[Deployment]:
    """Open a deployment with three models, of which one is not live."""
    store = redis_clients.store_async(settings)
    opened = Deployment(ModelOverview(store, registry, lambda: opened.now_s), store, registry)
    for name in ("a", "b", "c"):
        await opened.make(name)
    await opened.set("a", rows=10, pending=2, error=1.0)
    await opened.set("b", rows=20, pending=7, error=0.5)
    yield opened
    await opened.overview.close()
    await store.aclose()


async def test_each_order_begins_with_the_largest_value(deployment: Deployment) -> None:
    """Models come by their value, those without one last, and pages of any size have each model once."""
    await deployment.overview.read()
    deployment.now_s += 10
    await deployment.set("a", rows=60, pending=2, error=1.0)
    # The next reading begins in the background; the one before is used until it is there.
    await asyncio.shield(deployment.overview._task or asyncio.create_task(deployment.overview._read()))
    by_hash = sorted(("a", "b", "c"), key=lambda name: deployment.hashes[name])
    expected = {"hash": by_hash, "inbox": ["b", "a", "c"], "error": ["a", "b", "c"], "rows": ["a", "b", "c"]}
    for sort in SORTS:
        for limit in (1, 2, 3, 100):
            found = await deployment.order(sort, limit)
            assert sorted(found) == ["a", "b", "c"]
            assert found == expected.get(sort, found), sort
    reading = await deployment.overview.read()
    assert {line.metadata["name"]: line.rows_per_s for line in reading.lines} == {"a": 5.0, "b": 0.0, "c": 0.0}
    assert (await deployment.order("rate"))[0] == "a"
    assert (len(reading.lines), reading.live, reading.pending) == (3, 2, (2, 9))


async def test_a_restored_model_has_no_rate(deployment: Deployment) -> None:
    """Rows of another generation, or fewer rows than before, are no rows learned."""
    await deployment.overview.read()
    deployment.now_s += 10
    await deployment.set("a", rows=900, generation=2)
    await deployment.set("b", rows=5)
    reading = await deployment.overview._read()
    assert [line.rows_per_s for line in reading.lines] == [0.0, 0.0, 0.0]


async def test_selections_hold_on_every_page(deployment: Deployment) -> None:
    """Words, conditions and those of a bound key each leave models out."""
    for wanted, expected in (
        (Wanted(("shoes",)), {"a", "b", "c"}),
        (Wanted(('"name":"b"',)), {"b"}),
        (Wanted((deployment.hashes["c"][:12],)), {"c"}),
        (Wanted(where=(("name", ("a",)),)), {"a"}),
        (Wanted(bound=(("name", ("a", "b")),)), {"a", "b"}),
        (Wanted(("shoes",), (("name", ("a",)),), (("name", ("b",)),)), set()),
    ):
        for limit in (1, 100):
            assert set(await deployment.order("rows", limit, wanted)) == expected


async def test_all_requests_share_one_reading(deployment: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a reading is fresh, or being made, no other request reads."""
    count = 0
    hashes = deployment.registry.hashes

    async def counted(*args: Any, **more: Any) -> list[str]:
        nonlocal count
        count += 1
        return await hashes(*args, **more)

    monkeypatch.setattr(deployment.registry, "hashes", counted)
    readings = await asyncio.gather(*(deployment.overview.read() for _ in range(50)))
    assert count == 1
    assert len({id(reading) for reading in readings}) == 1
    deployment.now_s += model_overview.FRESH_S
    await deployment.overview.read()
    assert count == 1
    # Old, and still usable: the answer is at once, and a reading begins.
    deployment.now_s += 1
    assert await deployment.overview.read() is readings[0]
    # After a pause it is not usable.
    deployment.now_s += 60
    assert await deployment.overview.read() is not readings[0]


async def test_too_many_models_are_an_error(deployment: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    """A list that would not be whole is refused, by the number of models and by the size of their metadata."""
    for name, bound in (("MODELS_MAX", 2), ("METADATA_BYTES_MAX", 100)):
        with monkeypatch.context() as patch:
            patch.setattr(model_overview, name, bound)
            with pytest.raises(InvalidError, match="too many to sort or search"):
                await deployment.overview.read()
    assert len((await deployment.overview.read()).lines) == 3


async def test_a_failed_reading_is_repeated(deployment: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    """An outage is reported to requests that wait, and the next one begins another reading."""

    async def away(*args: Any, **more: Any) -> list[str]:
        raise UnavailableError("MongoDB is unavailable.")

    with monkeypatch.context() as patch:
        patch.setattr(deployment.registry, "hashes", away)
        with pytest.raises(UnavailableError):
            await deployment.overview.read()
    assert len((await deployment.overview.read()).lines) == 3
