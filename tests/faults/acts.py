"""Actions of keepfit's services, each run in a child process that a failpoint may kill.

Owns the actions and how a child is started. Never checks results: the tests do, in the parent process.
"""

import asyncio
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

from keepfit import identity
from keepfit.backends import redis_clients, redis_scripts
from keepfit.backends.redis_scripts import Command
from keepfit.model import trained
from keepfit.observability import failpoints
from keepfit.restore.bulk import ModelFilter, restore_many
from keepfit.restore.requests import RestoreRequest
from keepfit.settings import Settings
from keepfit.snapshots.resources import open_resources
from keepfit.store import commit
from keepfit.transfer import first_version
from keepfit_gateway import app
from keepfit_snapshotter.run import run_once
from keepfit_workers import context, jobs, learning, pulling, sweep

# Children are forked from a server process that has all modules imported and no threads.
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["tests.faults.acts"])


@contextmanager
def child(point: str, action: Callable[..., None], *args: Any) -> Iterator[BaseProcess]:
    """Run an action in a child with a failpoint armed ('' for none); kill the child at the end if it still runs."""
    started = _context.Process(target=_run, args=(point, action, *args))
    started.start()
    try:
        yield started
    finally:
        if started.is_alive():
            started.kill()
        started.join()


def exit_code_of(point: str, action: Callable[..., None], *args: Any) -> int | None:
    """Run an action in a child and return its exit code, negative for a signal."""
    with child(point, action, *args) as started:
        started.join(60)
        return started.exitcode


def pipe() -> tuple[Connection, Connection]:
    """Return a pipe for an action that sends a result: the end for the test, and the end for the action."""
    return _context.Pipe(duplex=False)


def _run(point: str, action: Callable[..., None], *args: Any) -> None:
    if point:
        failpoints.arm(point)
    action(*args)


def learn(settings: Settings, lease: str) -> None:
    """Execute a lease."""
    here = context.start(settings, "first")
    jobs.partial_fit(lease)
    here.close()


def pull(settings: Settings) -> None:
    """Run pull jobs as the process `first`, until none waits."""
    pulling.run(settings, "first", os.getppid())


def stop_learning(settings: Settings, lease: str) -> None:
    """Execute a lease, one request per commit, with a stop request during the first."""
    fit = learning.Turn.fit
    commit.ENTRIES_MAX = 1

    def stop_and_fit(turn: learning.Turn, claimed: commit.Claimed) -> tuple[bool, commit.Claimed | None]:
        context.current().stopping = True
        return fit(turn, claimed)

    learning.Turn.fit = stop_and_fit  # type: ignore[method-assign]
    learn(settings, lease)


def learn_torn(settings: Settings, lease: str, sent: int) -> None:
    """Execute a lease, and die when only the first `sent` commands of the first commit are sent."""
    trip = redis_scripts._round_trip

    def torn(client: Any, commands: Sequence[Command]) -> list[Any]:
        if any(command[:2] == ("EVALSHA", redis_scripts.SHA1["commit"]) for command in commands):
            trip(client, commands[:sent])
            os.kill(os.getpid(), signal.SIGKILL)
        return trip(client, commands)

    redis_scripts._round_trip = torn
    learn(settings, lease)


def answer(settings: Settings, lease: str) -> None:
    """Execute a lease."""
    here = context.start(settings, "first")
    jobs.predict(lease)
    here.close()


def reap(settings: Settings) -> None:
    """Reap expired leases in a loop, until the child is killed."""
    store, queue = redis_clients.store_sync(settings), redis_clients.queue_sync(settings)
    while True:
        sweep.sweep(store, queue, settings.lease_ttl_s)


def serve(settings: Settings, urls: Connection) -> None:
    """Run a gateway and send its URL."""
    app.run(settings, urls.send)


def save(settings: Settings) -> None:
    """Run one pass of the snapshotter."""
    asyncio.run(run_once(settings))


def restore(settings: Settings, model_hash: str) -> None:
    """Restore a model from its snapshot."""
    asyncio.run(restore_many(settings, ModelFilter(hash=model_hash)))


def upload(settings: Settings, metadata_text: str, data: bytes) -> None:
    """Create a model from a file, as a worker does."""

    async def act() -> None:
        async with open_resources(settings) as resources:
            model_hash = identity.hash_of(identity.parse_json(metadata_text.encode()))
            bundle = trained.new_bundle(data, trained.Keys(resources.keyring, None), settings.bundle_bytes_max)
            await first_version.create(resources, model_hash, metadata_text, bundle, settings.bundle_bytes_max)

    asyncio.run(act())


def go_back(settings: Settings, model_hash: str) -> None:
    """Restore version 1 over a live model."""
    asyncio.run(
        restore_many(
            settings, ModelFilter(hash=model_hash), RestoreRequest(version=1), confirm=lambda plans: True, follow=True
        )
    )


def reach(name: str, times: int) -> None:
    """Reach a failpoint this many times."""
    for _ in range(times):
        failpoints.reach(name)


def reach_in_forks(name: str, codes: Connection) -> None:
    """Fork three children that reach a failpoint one after the other; send their exit codes."""
    forking = multiprocessing.get_context("fork")
    exit_codes = []
    for _ in range(3):
        one = forking.Process(target=failpoints.reach, args=(name,))
        one.start()
        one.join()
        exit_codes.append(one.exitcode)
    codes.send(exit_codes)
