"""The store is a Redis Cluster: a slot moves and a primary dies while rows flow, and no accepted row is lost."""

import asyncio
from collections.abc import Iterator

import aiohttp
import pytest

from keepfit.backends import redis_clients, redis_keys, redis_scripts
from tests.clustered import Clustered, clustered, settings_of, stack_on
from tests.conftest import Stack
from tests.recovery.flow import flowing

CLIENTS, ROWS = 4, 60


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clustered]:
    """Run the nodes."""
    with clustered(tmp_path_factory.mktemp("cluster") / "redis") as running:
        yield running


@pytest.fixture(scope="module")
def stack(cluster: Clustered, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Run a stack whose store is on the cluster; a row is on the primary and its replica before it is accepted."""
    with stack_on(cluster, tmp_path_factory.mktemp("stack"), replicas_min=1) as running:
        yield running


async def test_commits_of_models_on_all_nodes_are_events(stack: Stack) -> None:
    """The event stream has the last version of models, whichever node has them."""
    async with aiohttp.ClientSession(stack.url) as http:
        wanted = {}
        async with http.get("/v1/events") as stream:
            for number in range(6):
                model = {"metadata": {"type": "events", "n": number}, "recipe": {"estimator": "SGDRegressor"}}
                async with http.post("/v1/models", json=model) as response:
                    model_hash = (await response.json())["hash"]
                for _ in range(2):
                    path = f"/v1/models/{model_hash}/partial_fit"
                    rows = {"X": [[1.0]], "y": [1.0]}
                    async with http.post(path, json=rows, headers={"Prefer": "wait=20"}) as response:
                        assert response.status == 200
                        wanted[model_hash] = (await response.json())["version"]
            async for line in stream.content:
                kind, _, text = line.decode().partition(": ")
                if kind == "data" and '"kind":"commit"' in text:
                    for model_hash, version in list(wanted.items()):
                        if model_hash in text and f'"version":{version},' in text:
                            del wanted[model_hash]
                if not wanted:
                    break


async def test_a_lost_model_is_restored_into_the_cluster(cluster: Clustered, stack: Stack) -> None:
    """A model that is in no node any more, but has a snapshot, goes on from it."""
    rows = {"X": [[1.0]], "y": [1.0]}
    async with aiohttp.ClientSession(stack.url) as http:
        model = {"metadata": {"type": "lost"}, "recipe": {"estimator": "SGDRegressor"}}
        async with http.post("/v1/models", json=model) as response:
            model_hash = (await response.json())["hash"]
        path, wait = f"/v1/models/{model_hash}", {"Prefer": "wait=20"}
        async with http.post(f"{path}/partial_fit", json=rows, headers=wait) as response:
            assert response.status == 200
        async with http.post(f"{path}/snapshot") as response:
            assert response.status == 201, await response.text()
        with redis_clients.store_sync(settings_of(stack, cluster)) as store:
            names = [redis_keys.state(model_hash), redis_keys.bundle(model_hash), redis_keys.inbox(model_hash)]
            assert redis_scripts.run(store, ("UNLINK", *names)) == [3]
        async with http.post(f"{path}/predict", json={"X": [[1.0]]}) as response:
            assert response.status == 200, await response.text()
        async with http.post(f"{path}/partial_fit", json=rows, headers=wait) as response:
            assert (await response.json())["rows_seen"] == 2
        async with http.get("/v1/models?type=lost") as response:
            assert [one["hash"] for one in (await response.json())["models"]] == [model_hash]
        async with http.delete(path) as response:
            assert response.status == 204


async def test_no_accepted_row_is_lost_while_a_slot_moves_and_a_primary_dies(cluster: Clustered, stack: Stack) -> None:
    """Each row is learned once, in order; a caller gets at most a 503 with Retry-After."""
    async with flowing(stack.url, CLIENTS, "moved") as flow:
        await flow.more(ROWS)
        target = await asyncio.to_thread(cluster.move, flow.hash)
        await flow.more(ROWS)
        await asyncio.to_thread(cluster.kill, target, flow.hash)
        # Without a second server nothing is accepted. It ends with the thread that starts it, so this test is the last.
        await asyncio.to_thread(cluster.start, target)
        await flow.more(ROWS)
        await flow.end()
    flow.check(settings_of(stack, cluster))
