"""The state of a deployment as an operator sees it: its parts, workers, models, pending requests and snapshots.

Owns what `keepfit status` reads, and the verdict. Changes nothing. Invariant: a part that does not answer in time is
reported as such and never keeps the others from being reported. Data comes from the gateway's ``/readyz`` and
``/v1/system``, from the servers that the settings name, and from the data folder of `keepfit up`. All models are read
only if no gateway has counted them.
"""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import msgspec

from keepfit.backends import queue_servers, redis_clients, redis_keys, redis_scripts
from keepfit.backends.blobs import open_storage
from keepfit.client.clients import AsyncClient
from keepfit.errors import KeepfitError
from keepfit.history import Registry
from keepfit.jobs import gateway_records, run_queue, waiting
from keepfit.local.data_folder import running_stack
from keepfit.settings import Settings
from keepfit.store.dead_letters import count_rows
from keepfit.store.models import Store

T = TypeVar("T")

OK, DEGRADED, UNAVAILABLE = "ok", "degraded", "unavailable"
PROBE_S_MAX = 5.0
SCAN_COUNT = 1000
# Rows are counted in up to this many pending requests, whose payloads are read for it.
COUNTED_MAX = 1000
WORKER_FIELDS = ("hostname", "pid", "state", "last_heartbeat")
# Exists in every storage that was used.
STORAGE_MARKER = "keepfit-history"


class Counts(NamedTuple):
    """What a gateway has counted: models, those in Redis, those with pending requests, these, and models with most."""

    registered: int
    live: int
    models: int
    requests: int
    pending: list[str]


async def read(settings: Settings, url: str, data: Path) -> dict[str, Any]:
    """Return the state of the deployment as one JSON document; `url` is that of the gateway."""
    store_client = redis_clients.store_async(settings)
    try:
        async with Registry(settings.mongo_url.get_secret_value()) as registry:
            (gateway, answers), (queue, workers), (storage, _) = await asyncio.gather(
                _probe(_gateway, settings, url), _probe(_all_workers, settings), _probe(_storage, settings)
            )
            ready, counts = answers or (None, None)
            (store, pending), (history, documents) = await asyncio.gather(
                _probe(_store, store_client, counts), _probe(_history, registry, counts)
            )
    finally:
        await store_client.aclose()
    workers, pending, documents = workers or {}, pending or {}, documents or {}
    waiting = pending.get("waiting")
    if waiting is not None:
        waiting["oldest_s"] = workers.get("oldest_s") if waiting["requests"] else None
    up = running_stack(data)
    # How many processes a gateway elsewhere has is not known here.
    processes = settings.gateway_processes if up is not None and up.url == url else None
    state = {
        "up": msgspec.to_builtins(up),
        "gateway": {"url": url, "state": gateway, "ready": ready, "processes": processes},
        "store": store,
        "queue": queue,
        "history": history,
        "storage": storage,
        "gateways": workers.get("gateways", []),
        "workers": workers.get("workers", []),
        "models": {"registered": documents.get("models"), "live": pending.get("live")},
        "waiting": waiting,
        "snapshots": {**pending.get("snapshots", {}), "last": documents.get("last_snapshot")},
    }
    return {"status": _verdict(state), **state}


def _verdict(state: dict[str, Any]) -> str:
    """Return `unavailable` if nothing can be learned and predicted, `degraded` if another part fails, else `ok`."""
    ready = state["gateway"]["ready"] or {}
    if any(state[part] != OK for part in ("store", "queue")) or state["gateway"]["state"] != OK or not state["workers"]:
        return UNAVAILABLE
    if ready["status"] == UNAVAILABLE:
        return UNAVAILABLE
    parts = (ready["status"], state["history"], state["storage"], state["snapshots"].get("reason") or OK)
    return OK if set(parts) == {OK} else DEGRADED


async def _probe(read_part: Callable[..., Awaitable[T]], *args: Any) -> tuple[str, T | None]:
    """Return "ok" and what a part answers, or the reason why it does not answer and None."""
    try:
        async with asyncio.timeout(PROBE_S_MAX):
            return OK, await read_part(*args)
    except KeepfitError as error:
        return str(error), None
    except TimeoutError:
        return f"No answer came within {PROBE_S_MAX:g} s.", None


async def _gateway(settings: Settings, url: str) -> tuple[dict[str, Any], Counts | None]:
    """Return the answer of `/readyz`, and what the gateway has counted; None if it could not, or may not say."""
    async with AsyncClient(url, settings.api_key.get_secret_value()) as client:
        ready = await client.ready()
        try:
            _, system = await client.request("GET", "/v1/system", is_repeated=False)
            _, page = await client.request("GET", f"/v1/models?sort=inbox&limit={COUNTED_MAX}", is_repeated=False)
        except KeepfitError:
            return ready, None
    models, waiting_now = system["models"], system["waiting"]
    if models is None or waiting_now is None or waiting_now["requests"] is None:
        return ready, None
    pending = [model["hash"] for model in page["models"] if model["inbox"]]
    return ready, Counts(models["registered"], models["live"], waiting_now["models"], waiting_now["requests"], pending)


async def _storage(settings: Settings) -> None:
    storage = open_storage(settings.snapshot_url)
    await asyncio.to_thread(storage.get, STORAGE_MARKER)


async def _history(registry: Registry, counts: Counts | None) -> dict[str, Any]:
    newest = await registry.documents(limit=1)
    last = {name: newest[0][name] for name in ("timestamp", "hash", "version")} if newest else None
    models = len(await registry.hashes()) if counts is None else counts.registered
    return {"models": models, "last_snapshot": last}


async def _store(client: Any, counts: Counts | None) -> dict[str, Any]:
    """Return live models, pending requests and the state of the snapshots."""
    snapshots = await Store(client).snapshot_state()
    if counts is None:
        live, pending = await _all_models(client)
        models, requests = len(pending), sum(count for _, _, count in pending)
    else:
        live, models, requests = counts.live, counts.models, counts.requests
        pending = await _pending(client, [redis_keys.state(each) for each in counts.pending])
    rows, counted = await _count_rows(client, pending)
    return {
        "live": live,
        "waiting": {"models": models, "requests": requests, "rows": rows, "rows_counted_in": counted},
        "snapshots": {
            "last_pass_s": snapshots.age_s,
            "changed": snapshots.changed,
            "failed": snapshots.failed,
            "reason": snapshots.reason,
        },
    }


async def _all_models(client: Any) -> tuple[int, list[tuple[str, int, int]]]:
    """Return the number of live models, and those with pending requests, without a gateway: read all models."""
    live, pending = 0, []
    cursor = b"0"
    while True:
        ((cursor, names),) = await redis_scripts.run_async(
            client, ("SCAN", cursor, "MATCH", redis_keys.STATE_PATTERN, "COUNT", SCAN_COUNT)
        )
        live += len(names)
        pending += await _pending(client, [name.decode() for name in names])
        if cursor == b"0":
            return live, pending


async def _pending(client: Any, names: list[str]) -> list[tuple[str, int, int]]:
    """Return the hashes of the models with these states that have pending requests, rows learned, and requests."""
    counts = await redis_scripts.run_async(client, *(("HMGET", name, "accepted", "learned") for name in names))
    found = [(redis_keys.hash_of_state(name), int(learned or 0), int(accepted or 0) - int(learned or 0))
             for name, (accepted, learned) in zip(names, counts, strict=True)]  # fmt: skip
    return [one for one in found if one[2]]


async def _count_rows(client: Any, pending: list[tuple[str, int, int]]) -> tuple[int, int]:
    """Return the rows of the first pending requests, and in how many requests they were counted."""
    rows = counted = 0
    for model_hash, learned, count in pending:
        taken = min(count, COUNTED_MAX - counted)
        if not taken:
            break
        (entries,) = await redis_scripts.run_async(
            client, ("XRANGE", redis_keys.inbox(model_hash), f"{learned + 1}-0", "+", "COUNT", taken)
        )
        for _, fields in entries:
            found = dict(zip(fields[::2], fields[1::2], strict=True))
            head = found[b"rows"]
            if b"big" in found:
                (head,) = await redis_scripts.run_async(client, ("GETRANGE", found[b"big"], 0, 15))
            rows += count_rows(head) or 0
            counted += 1
    return rows, counted


async def _all_workers(settings: Settings) -> dict[str, Any]:
    """Return what :func:`_workers` finds in all servers of the queue that answer."""
    each = await queue_servers.read_each(settings, _workers)
    gateways = gateway_records.joined(found["gateways"] for found in each)
    return {
        "gateways": [msgspec.to_builtins(record) for record in gateways],
        "workers": sorted((one for found in each for one in found["workers"]), key=lambda worker: worker["name"]),
        "oldest_s": max(found["oldest_s"] for found in each),
    }


async def _workers(client: Any) -> dict[str, Any]:
    """Return gateways, workers with the leases and models that they hold, and how long work has waited for a claim."""
    await redis_scripts.run_async(client, ("PING",))
    (names,) = await redis_scripts.run_async(client, ("SMEMBERS", redis_keys.RQ_WORKERS))
    records = await redis_scripts.run_async(client, *(("HMGET", name, *WORKER_FIELDS) for name in names))
    held: dict[str, list[dict[str, Any]]] = {}
    (holders,) = await redis_scripts.run_async(client, ("HGETALL", redis_keys.LEASE_HOLDERS))
    pairs = holders.items() if isinstance(holders, dict) else zip(holders[::2], holders[1::2], strict=True)
    for lease, holder in pairs:
        (claimed,) = await redis_scripts.run_async(client, ("LRANGE", redis_keys.claimed(lease.decode()), 0, -1))
        models = run_queue.models_in(claimed)
        queue = run_queue.LEARN if models else run_queue.PREDICT
        held.setdefault(holder.decode().partition(" ")[0], []).append(
            {"queue": queue.name, "lease": lease.decode(), "models": models, "requests": len(claimed)}
        )
    workers = []
    for name, record in zip(names, records, strict=True):
        host, pid, state, _ = (field.decode() if field else "" for field in record)
        if host or pid:  # the record of a dead worker expires
            known = name.decode().removeprefix(redis_keys.RQ_WORKER_PREFIX)
            workers.append({"name": known, "host": host, "pid": pid, "state": state, "holds": held.get(known, [])})
    gateways = await gateway_records.read_all(client)
    return {"gateways": gateways, "workers": workers, "oldest_s": await waiting.unclaimed_s(client)}
