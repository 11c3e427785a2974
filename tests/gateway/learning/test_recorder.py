"""The row log as gateways write it: no answer before a request is logged; rejected requests can be repeated."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from keepfit.backends import redis_clients, redis_keys
from keepfit.backends.blobs import LocalStorage, S3Storage
from keepfit.errors import UnavailableError
from keepfit.identity import hash_of
from keepfit.recipe.recipe import parse
from keepfit.rowlog.row_log import Call, RowLog, open_log
from keepfit.rows import shaping
from keepfit.rows.rows import Rows
from keepfit.settings import Settings
from keepfit.snapshots.save import save
from keepfit.store import changes, first_answers, inbox
from keepfit.store.models import Install
from keepfit_gateway.learning import recorder
from tests.factories import Workshop, commit_bundle, workshop
from tests.gateway.api_client import Api, Reply, eventually, serving

RECIPE: dict[str, Any] = {"estimator": "SGDRegressor", "features": {"a": "number", "b": "number"}}
ROWS: dict[str, Any] = {"X": [[1.0, 2.0]], "y": [1.0]}
METADATA = {"type": "shoes"}


@pytest.fixture(params=["local", "s3"])
def logged(request: pytest.FixtureRequest, settings: Settings, tmp_path: Path) -> Settings:
    """Settings with a row log of each kind."""
    url = (tmp_path / "log").as_uri() if request.param == "local" else request.getfixturevalue("s3_url")
    return settings.model_copy(update={"row_log_url": url})


@pytest.fixture
def local(settings: Settings, tmp_path: Path) -> Settings:
    """Settings with a row log in a folder."""
    return settings.model_copy(update={"row_log_url": (tmp_path / "log").as_uri()})


def fit(api: Api, path: str, key: str = "", **document: Any) -> "asyncio.Task[Reply]":
    """Send rows."""
    headers = {"Idempotency-Key": key} if key else None
    return asyncio.create_task(api.post(f"{path}/partial_fit", document or ROWS, headers))


def logged_calls(settings: Settings, path: str) -> list[Call]:
    """Return all calls of a model in the log, in order."""
    log = open_log(settings.row_log_url)
    assert log is not None
    calls = log.view().calls(path.rpartition("/")[2], None)
    return sorted(calls, key=lambda call: (call.origin, call.sequence, call.at))


@contextmanager
def blocked_writes(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], None]]:
    """Block writes to the log; the yielded function releases a number of them."""
    gate, write = threading.Semaphore(0), RowLog.write

    def wait(log: RowLog, calls: Any) -> None:
        assert gate.acquire(timeout=30)
        write(log, calls)

    with monkeypatch.context() as patch:
        patch.setattr(RowLog, "write", wait)
        yield gate.release
        gate.release(1000)


async def test_accepted_requests_are_in_the_log(logged: Settings) -> None:
    """Rows with and without idempotency keys, and large ones, are logged as they are in Redis."""
    recipe, count = parse(RECIPE), inbox.CALL_BYTES_MAX // 16
    many = {"X": [[float(i), 0.5] for i in range(count)], "y": [float(i) for i in range(count)]}
    async with serving(logged) as api:
        path = await api.make(METADATA, RECIPE)
        (await fit(api, path)).of(202)
        (await fit(api, path, "mine")).of(202)
        (await fit(api, path, "large", **many)).of(202)
        first, keyed, large = logged_calls(logged, path)
    for call, document in ((first, ROWS), (keyed, ROWS), (large, many)):
        (payload,) = call.payloads
        assert Rows.decode(payload) == shaping.shape(recipe, document["X"], document["y"], learning=True)
    assert [(c.origin, c.sequence, c.name) for c in (first, keyed, large)] == [
        (1, 1, ""), (1, 2, "c:mine"), (1, 3, "c:large"),
    ]  # fmt: skip
    client = redis_clients.store_sync(logged)
    try:
        # The digest that identifies a repeat is the one that Redis compares.
        (answers, _), name = first_answers.answers_of(first.hash, "mine")
        seen = client.hget(answers, name)  # type: ignore[arg-type]
        assert isinstance(seen, bytes)
        assert seen.decode().split(" ")[0] == keyed.digest[: first_answers.DIGEST_LENGTH]
        seconds, _ = client.time()  # type: ignore[misc]
        assert first.at <= keyed.at <= large.at <= seconds + 1
        entries: Any = client.xrange(redis_keys.inbox(first.hash))
        assert [fields[b"rows"] for _, fields in entries if b"big" not in fields] == [
            *first.payloads, *keyed.payloads,
        ]  # fmt: skip
    finally:
        client.close()


async def test_requests_during_a_write_share_the_next_object(local: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows and changes are accepted during a write and wait for their answers; one object stores them all."""
    async with serving(local) as api:
        path = await api.make(METADATA, RECIPE)
        with blocked_writes(monkeypatch) as release:
            sent = [fit(api, path)]
            await eventually(lambda: _accepted(local, path, 1), "the first request being accepted")
            sent += [fit(api, path, f"k{i}") for i in range(40)]
            await eventually(lambda: _accepted(local, path, 41), "all requests being accepted")
            change = api.call("PATCH", path, {"params": {"alpha": 0.5}}, headers={"Prefer": "wait=0"})
            sent.append(asyncio.create_task(change))
            await eventually(lambda: _accepted(local, path, 42), "the change being accepted")
            assert not [task for task in sent if task.done()]
            release(1)
            assert (await sent[0]).of(202)["sequence"] == 1
            assert not [task for task in sent[1:] if task.done()]
            release(1)
            answers = [(await task).of(202) for task in sent[1:]]
        assert sorted(answer["sequence"] for answer in answers) == list(range(2, 43))
    log = open_log(local.row_log_url)
    assert log is not None
    calls = logged_calls(local, path)
    assert [call.sequence for call in calls] == list(range(1, 43))
    assert changes.params_of(calls[-1].payloads[0]) == {"alpha": 0.5}
    assert len(log.paths("n", "n~")) == 2


async def _accepted(settings: Settings, path: str, count: int) -> bool:
    client = redis_clients.store_async(settings)
    try:
        return bool(await client.hget(redis_keys.state(path.rpartition("/")[2]), "accepted") == b"%d" % count)
    finally:
        await client.aclose()


async def test_an_unavailable_log_rejects_and_a_repeat_is_accepted_once(
    logged: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first request answers that Redis has the rows, the next that nothing is accepted; a repeat counts once."""

    def refuse(*_: Any) -> None:
        raise UnavailableError("No space left on device")

    async with serving(logged) as api:
        path = await api.make(METADATA, RECIPE)
        assert (await api.get("/readyz")).of(503)["row_log"] == "ok"
        with monkeypatch.context() as patch:
            for storage in (LocalStorage, S3Storage):
                patch.setattr(storage, "put", refuse)
            first = (await fit(api, path, "mine")).problem(503)
            assert "Redis has accepted this, but the row log did not store it" in first["detail"]
            assert "nothing is accepted" in (await fit(api, path, "mine")).problem(503)["detail"]
            assert "nothing is accepted" in (await fit(api, path, "other")).problem(503)["detail"]
            ready = (await api.get("/readyz")).json()
            assert ready["row_log"] == "fails"
            assert 'keepfit_dependency_up{dependency="row_log"} 0.0' in (await api.get("/metrics")).body.decode()
            assert await _accepted(logged, path, 1)
            assert logged_calls(logged, path) == []
        for _ in range(2):
            assert (await fit(api, path, "mine")).of(202)["sequence"] == 1
        assert (await fit(api, path, "other")).of(202)["sequence"] == 2
        assert (await api.get("/readyz")).json()["row_log"] == "ok"
        assert 'keepfit_dependency_up{dependency="row_log"} 1.0' in (await api.get("/metrics")).body.decode()
        assert await _accepted(logged, path, 2)
    assert {(call.origin, call.sequence, call.name) for call in logged_calls(logged, path)} == {
        (1, 1, "c:mine"), (1, 2, "c:other"),
    }  # fmt: skip


async def test_a_hanging_log_blocks_one_write(local: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hanging write answers 503 after the timeout, later requests at once; afterwards everything works again."""
    async with serving(local) as api:
        path = await api.make(METADATA, RECIPE)
        with blocked_writes(monkeypatch) as release:
            monkeypatch.setattr(recorder, "WRITE_S_MAX", 0.2)
            assert "did not store it" in (await fit(api, path, "mine")).problem(503)["detail"]
            assert "nothing is accepted" in (await fit(api, path, "mine")).problem(503)["detail"]
            monkeypatch.setattr(recorder, "WRITE_S_MAX", 30.0)
            release(2)

            async def accepted() -> bool:
                return (await fit(api, path, "mine")).status == 202

            await eventually(accepted, "the recovery of the log")
    assert {(call.origin, call.sequence, call.name) for call in logged_calls(local, path)} == {(1, 1, "c:mine")}


@pytest.mark.parametrize("event", ["deleted", "restored", "lost a tail"])
async def test_a_model_that_changes_during_a_write_answers_503(
    local: Settings, monkeypatch: pytest.MonkeyPatch, event: str
) -> None:
    """A restore may have read the log before the write: it answers 503, and a repeat is accepted for the new model."""
    async with serving(local) as api, workshop(local) as shop:
        path = await api.make(METADATA, RECIPE)
        model_hash = hash_of(METADATA)
        with blocked_writes(monkeypatch) as release:
            sent = fit(api, path, "mine")
            await eventually(lambda: _accepted(local, path, 1), "the request being accepted")
            if event == "lost a tail":
                shop.redis.hset(redis_keys.state(model_hash), "accepted", 0)
                shop.redis.delete(redis_keys.inbox(model_hash), redis_keys.new_answers(model_hash, ""))
            else:
                shop.lose(model_hash)
            if event == "restored":
                await _restore(shop, model_hash)
            release(1)
            problem = (await sent).problem(503)
            assert "restored, deleted or created again" in problem["detail"]
            if event == "deleted":
                await _restore(shop, model_hash)
            release(1)
            assert (await fit(api, path, "mine")).of(202)["sequence"] == 1
    expected = [(1, 1), (1, 1)] if event == "lost a tail" else [(1, 1), (2, 1)]
    assert [(call.origin, call.sequence) for call in logged_calls(local, path)] == expected


async def _restore(shop: Workshop, model_hash: str) -> None:
    """Restore a model as it was created, as a worker does if the log is empty."""
    registered = await shop.registry.find(model_hash)
    assert registered is not None
    generation = await shop.registry.next_generation(model_hash, registered.born)
    assert generation == 2
    texts = registered.metadata_text, registered.recipe_text
    assert await shop.store.install(Install(model_hash, *texts, generation, born=registered.born))


async def test_retried_requests_are_logged_with_their_new_sequence(logged: Settings) -> None:
    """Retried dead letters, including large ones, are logged like new requests, and name the sequence they had."""
    large = {"X": [[1.0, 2.0]] * 40_000, "y": [1.0] * 40_000}
    async with serving(logged) as api, workshop(logged) as shop:
        path = await api.make(METADATA, RECIPE)
        model_hash = hash_of(METADATA)
        for document in (ROWS, large):
            (await fit(api, path, **document)).of(202)
        for _ in range(2):
            claimed = shop.consumer.claim(model_hash, "t", "")
            assert claimed is not None
            bundle = shop._unsealed(model_hash, claimed.recipe_text, claimed.data)
            commit_bundle(shop.consumer, shop.keyring, claimed, bundle, 1, "t", "refused")
        assert (await api.model(path))["inbox"] == 0
        answer = (await api.post(f"{path}/dead/retry", {})).of(202)
        assert (answer["accepted"], answer["sequence"], answer["left"]) == (2, 4, 0)
    calls = logged_calls(logged, path)
    assert [(call.origin, call.sequence, call.name) for call in calls] == [
        (1, 1, ""),
        (1, 2, ""),
        (1, 3, "r:1"),
        (1, 4, "r:2"),
    ]
    assert [call.payloads for call in calls[2:]] == [call.payloads for call in calls[:2]]


async def test_labels_that_the_log_may_lack_wait_for_a_snapshot(
    local: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Labels whose write failed are logged by a repeat; once Redis no longer has them, a snapshot must contain them."""
    local = local.model_copy(update={"replay_bytes_max": 0})

    def refuse(*_: Any) -> None:
        raise UnavailableError("No space left on device")

    async with serving(local) as api, workshop(local) as shop:
        path = await api.make(METADATA, RECIPE)
        model_hash = hash_of(METADATA)
        await shop.learn(model_hash, ROWS["X"], ROWS["y"])
        for key in ("pending", "learned"):
            await shop.keep(model_hash, [f"{key} {name}" for name in ("a", "b")])
            body = {"labels": [{"id": f"{key} {name}", "y": 1.0} for name in ("a", "b")]}
            repeat = partial(api.post, f"{path}/labels", body, {"Idempotency-Key": key})
            with monkeypatch.context() as patch:
                patch.setattr(LocalStorage, "put", refuse)
                assert "the row log did not store it" in (await repeat()).problem(503)["detail"]
            if key == "learned":
                shop.work(model_hash)
                for _ in range(2):
                    assert "no snapshot contains them yet" in (await repeat()).problem(503)["detail"]
                assert await save(shop.resources, model_hash)
            answer = (await repeat()).of(202)
            assert (answer["accepted"], answer["errors"]) == (2, [])
    assert [(call.sequence, len(call.payloads)) for call in logged_calls(local, path)] == [(2, 2)]
