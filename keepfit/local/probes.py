"""Connect once to the servers and storages that the settings name, before `keepfit up` starts anything.

Owns which dependency is asked what. Invariant: a server that `keepfit up` starts itself is not probed; a probe leaves
nothing behind.
"""

import asyncio
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from keepfit.backends import queue_servers, redis_clients, redis_scripts
from keepfit.backends.blobs import Entry, open_storage
from keepfit.errors import KeepfitError, SettingsError
from keepfit.history import Registry
from keepfit.settings import Settings


def check_reachable(settings: Settings) -> None:
    """Check that the servers and storages that `settings` names answer, and accept our credentials.

    Raises
    ------
    SettingsError
        If one does not. The message names the variable.
    """
    given = settings.model_fields_set
    probes: list[tuple[str, Callable[[Settings], None]]] = [
        ("store_url", lambda settings: _ping(redis_clients.store_sync(settings))),
        ("queue_url", _ping_queue),
        ("queue_urls", _ping_queue),
        ("mongo_url", _ping_mongo),
        ("snapshot_url", lambda settings: _write(settings.snapshot_url, "KEEPFIT_SNAPSHOT_URL")),
        ("row_log_url", lambda settings: _write(settings.row_log_url, "KEEPFIT_ROW_LOG_URL")),
    ]
    for name, probe in probes:
        if name in given and getattr(settings, name):
            with _named(name):
                probe(settings)


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Raise an error of a probe as one of the setting `name`."""
    try:
        yield
    except SettingsError:
        raise
    except KeepfitError as error:
        raise SettingsError(f"KEEPFIT_{name.upper()}: {error}") from error


def _ping(client: Any) -> None:
    with client:
        redis_scripts.run(client, ("PING",))


def _ping_queue(settings: Settings) -> None:
    for one in queue_servers.settings_of(settings):
        _ping(redis_clients.queue_sync(one))


def _ping_mongo(settings: Settings) -> None:
    async def ping() -> None:
        async with Registry(settings.mongo_url.get_secret_value()) as registry:
            await registry.ping()

    asyncio.run(ping())


def _write(url: str, setting: str) -> None:
    """Write a small blob and delete it."""
    storage, path = open_storage(url, setting), f"probe-{uuid.uuid4().hex}"
    storage.put(path, b"keepfit")
    storage.delete([Entry(path)])
