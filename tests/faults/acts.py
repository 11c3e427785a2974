"""What a process does that a fault point ends: the parts of keepfit, one act each, run in a child of its own.

Owns the acts and how a child is started for one. Never checks anything; the tests do, in the process that lives on.
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

from keepfit.backends import redis_clients, redis_scripts
from keepfit.backends.redis_scripts import Command
from keepfit.observability import failpoints
from keepfit.restore.bulk import ModelFilter, restore_many
from keepfit.restore.requests import RestoreRequest
from keepfit.settings import Settings
from keepfit.store import commit
from keepfit_gateway import app
from keepfit_snapshotter.run import run_once
from keepfit_workers import context, jobs, learning, sweep

# Children are forked from a process that has all modules and no threads.
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["tests.faults.acts"])


@contextmanager
def child(point: str, act: Callable[..., None], *args: Any) -> Iterator[BaseProcess]:
    """Run an act in a child with a fault point armed ('' for none); what still runs at the end is killed."""
    started = _context.Process(target=_play, args=(point, act, *args))
    started.start()
    try:
        yield started
    finally:
        if started.is_alive():
            started.kill()
        started.join()


def end_of(point: str, act: Callable[..., None], *args: Any) -> int | None:
    """Run an act in a child and return its exit code: minus the signal's number where one ended it."""
    with child(point, act, *args) as started:
        started.join(60)
        return started.exitcode


def pipe() -> tuple[Connection, Connection]:
    """Pipe for an act that has something to say: the end to read from, and its own."""
    return _context.Pipe(duplex=False)


def _play(point: str, act: Callable[..., None], *args: Any) -> None:
    if point:
        failpoints.arm(point)
    act(*args)


def learn(settings: Settings, lease: str) -> None:
    """Work a lease on the learn room."""
    here = context.start(settings, "first")
    jobs.partial_fit(lease)
    here.close()


def stop_learning(settings: Settings, lease: str) -> None:
    """Work a lease on the learn room, one request at a time, with a SIGTERM during the first."""
    step = learning._step
    commit.ENTRIES_MAX = 1

    def stopped(here: context.WorkerContext, taken: commit.Claimed, lease: str) -> bool:
        here.stopping = True
        return step(here, taken, lease)

    learning._step = stopped
    learn(settings, lease)


def learn_torn(settings: Settings, lease: str, sent: int) -> None:
    """Work a lease, and die when of the first commit's commands only the first `sent` are on their way."""
    trip = redis_scripts._trip

    def torn(client: Any, commands: Sequence[Command]) -> list[Any]:
        if any(command[:2] == ("EVALSHA", redis_scripts.SHA1["commit"]) for command in commands):
            trip(client, commands[:sent])
            os.kill(os.getpid(), signal.SIGKILL)
        return trip(client, commands)

    redis_scripts._trip = torn
    learn(settings, lease)


def answer(settings: Settings, lease: str) -> None:
    """Work a lease on the predict room."""
    here = context.start(settings, "first")
    jobs.predict(lease)
    here.close()


def reap(settings: Settings) -> None:
    """End expired leases, again and again; for a child that does not live long."""
    store, queue = redis_clients.store_sync(settings), redis_clients.queue_sync(settings)
    while True:
        sweep.sweep(store, queue, settings.lease_ttl_s)


def serve(settings: Settings, urls: Connection) -> None:
    """Be a gateway; tell its URL."""
    app.run(settings, urls.send)


def save(settings: Settings) -> None:
    """Make one pass of the snapshotter."""
    asyncio.run(run_once(settings))


def restore(settings: Settings, model_hash: str) -> None:
    """Put a model back from its snapshot."""
    asyncio.run(restore_many(settings, ModelFilter(hash=model_hash)))


def go_back(settings: Settings, model_hash: str) -> None:
    """Put version 1 in the place of a live model."""
    asyncio.run(
        restore_many(
            settings, ModelFilter(hash=model_hash), RestoreRequest(version=1), confirm=lambda plans: True, follow=True
        )
    )


def pass_by(name: str, times: int) -> None:
    """Reach a point so often."""
    for _ in range(times):
        failpoints.reach(name)


def raise_a_family(name: str, codes: Connection) -> None:
    """Have three forked children reach a point, one after the other; tell their exit codes."""
    forking = multiprocessing.get_context("fork")
    ends = []
    for _ in range(3):
        one = forking.Process(target=failpoints.reach, args=(name,))
        one.start()
        one.join()
        ends.append(one.exitcode)
    codes.send(ends)
