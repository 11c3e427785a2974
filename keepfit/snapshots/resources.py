"""Open and close the connections that snapshots, restores and transfers need.

Owns one dataclass with the store (Redis), the registry (MongoDB), the storage, the keyring and the row log. Never
decides what is done with them. Invariant: the Redis and MongoDB clients belong to the event loop in which they are
opened. Addresses and keys come from the settings.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from keepfit.backends import redis_clients
from keepfit.backends.blobs import Storage, open_storage
from keepfit.history import Registry
from keepfit.rowlog.row_log import RowLog, open_log
from keepfit.security.envelope import Keyring
from keepfit.settings import Settings
from keepfit.store.models import Store


@dataclass(frozen=True, slots=True)
class Resources:
    """Connections and keys; `row_log` is None where no row log is set up."""

    store: Store
    registry: Registry
    storage: Storage
    keyring: Keyring
    row_log: RowLog | None = None

    async def close(self) -> None:
        """Close the connections."""
        self.registry.close()
        await self.store.client.aclose()


def connect(settings: Settings) -> Resources:
    """Create all clients, inside the event loop that uses them; the caller closes them.

    Raises
    ------
    SettingsError
        If an address or a key in the settings is invalid.
    """
    keyring = Keyring.from_text(settings.signing_keys.get_secret_value())
    storage, row_log = open_storage(settings.snapshot_url), open_log(settings.row_log_url)
    store = Store(redis_clients.store_async(settings))
    return Resources(store, Registry(settings.mongo_url.get_secret_value()), storage, keyring, row_log)


@asynccontextmanager
async def open_resources(settings: Settings) -> AsyncIterator[Resources]:
    """Create all clients, and close them at the end of the block; raises what :func:`connect` raises."""
    resources = connect(settings)
    try:
        yield resources
    finally:
        await resources.close()
