"""Models for tests, created and trained in this process through the functions that gateways and workers call.

Owns no server and no process: a :class:`Workshop` needs a Redis, a MongoDB and a storage, and no worker.
"""

import sys
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import msgspec
from redis import Redis

from keepfit import identity
from keepfit.backends import redis_clients, redis_keys
from keepfit.backends.blobs import Storage
from keepfit.backends.redis_scripts import ScriptConnection
from keepfit.history import Registry
from keepfit.jobs import run_queue
from keepfit.model import serialization
from keepfit.model.bundle import Bundle
from keepfit.objects import dump
from keepfit.recipe import recipe
from keepfit.recipe.catalogue import Kind
from keepfit.rows import shaping
from keepfit.rows.rows import Rows
from keepfit.rows.served import Served
from keepfit.security import envelope
from keepfit.settings import Settings
from keepfit.snapshots.resources import Resources, open_resources
from keepfit.store import inbox, open_rows
from keepfit.store.commit import Claimed, Committed, InboxConsumer
from keepfit.store.inbox import Accepted
from keepfit.store.models import Install, Model, Store
from keepfit.store.open_rows import KeepRequest, Kept
from keepfit_snapshotter.run import PassLimits, Snapshotter
from keepfit_workers.learning import seal_bundle
from tests.conftest import SHOES_RECIPE

SHOES = [["nike", 2001], ["adidas", 2003], ["nike", 2010]]
SIZES = [4.0, 5.0, 3.0]


def dump_local(source: str, keys: str, kind: Kind = "regressor") -> str:
    """Return what `source` names `learner`, or an object of its one class, as the text of a recipe.

    No process can import it.
    """
    script = ModuleType("notebook")
    exec(compile(source, "notebook", "exec"), script.__dict__)
    learner = vars(script).get("learner")
    if learner is None:
        (cls,) = (value for value in vars(script).values() if isinstance(value, type))
        learner = cls()
    sys.modules["notebook"] = script
    try:
        return dump(learner, keys, kind=kind, modules=[script])
    finally:
        del sys.modules["notebook"]


def commit_bundle(
    consumer: InboxConsumer,
    keyring: envelope.Keyring,
    claimed: Claimed,
    bundle: Bundle,
    count: int,
    token: str,
    dead_reason: str = "",
) -> Committed:
    """Seal a bundle that has learned the first `count` claimed requests, and commit it as a worker does."""
    return consumer.commit(claimed, seal_bundle(keyring, claimed, bundle, count), count, token, dead_reason)


@dataclass(frozen=True, slots=True)
class Workshop:
    """Everything that creates, trains and saves models: the resources of a snapshotter and of a worker."""

    settings: Settings
    resources: Resources
    snapshotter: Snapshotter
    consumer: InboxConsumer
    redis: Redis

    @property
    def store(self) -> Store:
        """The models in Redis."""
        return self.resources.store

    @property
    def registry(self) -> Registry:
        """The registry of models and their history documents."""
        return self.resources.registry

    @property
    def keyring(self) -> envelope.Keyring:
        """The signing keys."""
        return self.resources.keyring

    @property
    def storage(self) -> Storage:
        """The storage of snapshots."""
        return self.resources.storage

    async def make(self, document: dict[str, Any] | recipe.Recipe | None = None, /, **metadata: Any) -> str:
        """Register and install a model that has learned nothing; return its hash."""
        named = {"type": "shoes", "session": uuid.uuid4().hex, **metadata}
        text = identity.canonical(named).decode()
        model_hash = identity.hash_of(named)
        wanted = document if isinstance(document, recipe.Recipe) else recipe.parse(document or SHOES_RECIPE)
        registered, _ = await self.registry.register(model_hash, text, wanted.text())
        new = Install(model_hash, text, wanted.text(), registered.generation, born=registered.born)
        assert await self.store.install(new)
        return model_hash

    async def accept(self, model_hash: str, X: list[Any] = SHOES, y: list[Any] | None = SIZES) -> int:
        """Accept rows into the inbox of the model; return their sequence."""
        model = await self.model(model_hash)
        shaped = shaping.shape(model.recipe, X, y, learning=True)
        return (await accept(self.store, model, shaped)).sequence

    async def learn(self, model_hash: str, X: list[Any] = SHOES, y: list[Any] | None = SIZES) -> int:
        """Accept rows, learn all pending requests and commit; return the new version."""
        await self.accept(model_hash, X, y)
        return self.work(model_hash).version

    def work(self, model_hash: str) -> Committed:
        """Learn all pending requests and commit, as a worker does."""
        token = uuid.uuid4().hex
        claimed = self.consumer.claim(model_hash, token, "")
        assert claimed is not None
        bundle = self._unsealed(model_hash, claimed.recipe_text, claimed.data)
        for entry in claimed.entries:
            if entry.change is not None:
                bundle.change(entry.change)
            else:
                rows = entry.rows()
                bundle.curve.accepted(bundle.rows_seen, [(rows.n, entry.accepted_s)])
                bundle.partial_fit(rows)
        committed = commit_bundle(self.consumer, self.keyring, claimed, bundle, len(claimed.entries), token)
        assert committed.version == claimed.version + 1
        return committed

    async def keep(self, model_hash: str, ids: Sequence[str], row: Sequence[Any] = (1.0, 2.0)) -> None:
        """Keep a row under each of the ids until its label comes, as a gateway does that has predicted it."""
        model, connection = await self.model(model_hash), ScriptConnection(self.store.client)
        rows = shaping.shape(model.recipe, [list(row)] * len(ids), learning=False)
        kept = open_rows.make_rows(ids, rows, [Served(1, 1, 0.5)] * len(ids), proba=False)
        (result,) = await open_rows.keep(connection, self.settings, [KeepRequest(model_hash, model.generation, kept)])
        await connection.close()
        assert isinstance(result.outcome, Kept)

    async def learned(self, document: dict[str, Any] | None = None, /, **metadata: Any) -> str:
        """Create a model that has learned once; return its hash."""
        model_hash = await self.make(document, **metadata)
        await self.learn(model_hash)
        return model_hash

    async def model(self, model_hash: str) -> Model:
        """Return the state of a live model."""
        model = await self.store.describe(model_hash)
        assert model is not None
        return model

    async def predict(self, model_hash: str, X: list[Any] = SHOES) -> list[Any]:
        """Predict with the live bundle."""
        model = await self.model(model_hash)
        bundle = self._unsealed(model_hash, model.recipe.text(), self.data(model_hash))
        return bundle.predict(shaping.shape(model.recipe, X, learning=False))

    def data(self, model_hash: str) -> bytes:
        """Return the signed bytes of the live bundle."""
        found = self.redis.get(redis_keys.bundle(model_hash))
        assert isinstance(found, bytes)
        return found

    def lose(self, model_hash: str) -> None:
        """Delete all keys of one model, as the loss of the Redis server does."""
        found = list(self.redis.scan_iter(match=f"kf:{{{model_hash}}}:*"))
        self.redis.delete(*found)
        self.redis.zrem(redis_keys.CHANGED, model_hash)

    def _unsealed(self, model_hash: str, recipe_text: bytes | str, data: bytes) -> Bundle:
        wanted = recipe.from_text(recipe_text)
        if not data:
            return Bundle.new(wanted)
        return serialization.unseal(data, self.resources.keyring, wanted, model_hash)[1]


def claimed_entry(message: bytes, left_s: float = 60.0) -> bytes:
    """Return a worker request as a claim returns it, `left_s` seconds before its deadline."""
    return run_queue.make_entry("", left_s, message)


async def accept(store: Store, model: Model, shaped: Rows, key: str | None = None, **limits: int) -> Accepted:
    """Accept one request with `limits` in place of the settings; raise the error if it is refused."""
    settings = Settings().model_copy(update=limits)
    width = inbox.width_of(model.recipe, shaped)
    request = await inbox.make_request(store._store, model.hash, model.generation, shaped, key, width=width)
    connection = ScriptConnection(store._store)
    outcomes, _ = await inbox.accept(connection, settings, [request])
    await connection.close()
    (outcome,) = outcomes
    if not isinstance(outcome, Accepted):
        raise outcome
    return outcome


@asynccontextmanager
async def workshop(settings: Settings) -> AsyncIterator[Workshop]:
    """Open a workshop on the servers in `settings`."""
    client = redis_clients.store_sync(settings)
    try:
        async with open_resources(settings) as resources:
            await resources.registry.ensure_indexes()
            consumer = InboxConsumer(client, settings.lease_ttl_s, settings.replay_bytes_max)
            yield Workshop(settings, resources, Snapshotter(resources, PassLimits.of(settings)), consumer, client)
    finally:
        client.close()


def resigned(data: bytes, keyring: envelope.Keyring, other: envelope.Keyring, **changes: Any) -> bytes:
    """Open an envelope and sign it again with another key, or with other values in its header."""

    header, payload = keyring.open(data, envelope.BUNDLE)
    return other.seal(msgspec.structs.replace(header, **changes), payload)
