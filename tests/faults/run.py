"""Run the load, inject the scheduled faults, measure recovery, then verify what was learned.

Owns how an event is applied at its time, and what is measured. Never changes keepfit itself: it signals processes that
it has started, and disturbs bytes that pass its proxies. Invariant: every process that it stops is resumed or killed.
"""

import asyncio
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from redis.exceptions import RedisError

from keepfit.backends import redis_keys
from tests.faults import schedule
from tests.faults.check import Verdict, verify
from tests.faults.clients import Clients, TrackedModel, session
from tests.faults.proxy import Proxy, proxied
from tests.faults.pulls import FOLDER, PulledModel
from tests.faults.schedule import Event
from tests.faults.stack import ServerProcess, Stack

# Time to search for a worker in the middle of a batch, before any worker is used.
SEARCH_S_MAX = 1.5
# Redis executes the commands that a stopped process has sent within about this time.
IN_FLIGHT_S = 0.03
# The wait for the last row ends when nothing has been learned for this long; slow learning is not an error.
IDLE_S_MAX = 30.0
DELAY_S = 0.02
MESSAGES_PER_FAULT = 3
COUNTS = ("accepted", "learned")

Report = Callable[[float, int, int], None]


@dataclass(frozen=True, slots=True)
class Settings:
    """Size of a run."""

    seed: int
    seconds: float
    rows: int
    models: int = 4
    clients: int = 4
    workers: int = 4
    gateways: int = 2
    lease_ttl_s: float = 1.5
    # A failpoint stops one worker, which is resumed when other workers have gone on.
    one_stops_itself: bool = False
    # Rows of one more model, which learns by a pull job.
    pulled_rows: int = 0


@dataclass(slots=True)
class WorkerFault:
    """A worker killed or paused while it held a model: seconds until the model's next commit, concurrent faults."""

    model: str
    at_s: float
    concurrent: set[str] = field(default_factory=set)
    recovery_s: float | None = None


@dataclass(frozen=True, slots=True)
class RedisOutage:
    """A killed Redis: length of the outage, then the times until it was ready, until an answer, until a commit."""

    outage_s: float
    ready_s: float
    answer_s: float
    commit_s: float


@dataclass(slots=True)
class Outcome:
    """Results of a run."""

    settings: Settings
    seconds: float = 0.0
    done: Counter[str] = field(default_factory=Counter)
    kills: list[WorkerFault] = field(default_factory=list)
    pauses: list[WorkerFault] = field(default_factory=list)
    outages: list[RedisOutage] = field(default_factory=list)
    verdicts: list[Verdict] = field(default_factory=list)
    refused: int = 0
    workers_died: int = 0
    drain_s: float = 0.0
    commits: int = 0
    attempts: int = 0
    statuses: dict[str, int] = field(default_factory=dict)
    load_errors: list[str] = field(default_factory=list)
    replies_dropped: int = 0
    requests_torn: int = 0
    connections_cut: int = 0

    @property
    def errors(self) -> list[str]:
        """All errors that were found, in answers and in models."""
        return [
            *self.load_errors,
            *(f"model {verdict.model}: {error}" for verdict in self.verdicts for error in verdict.errors),
        ]


class FaultRun:
    """One run on one stack."""

    def __init__(
        self, settings: Settings, stack: Stack, store: Proxy, queue: Proxy, models: Sequence[TrackedModel],
        pulled: PulledModel | None = None,
    ) -> None:  # fmt: skip
        self.outcome = Outcome(settings)
        self._settings = settings
        self._stack = stack
        self._proxies = {"store": store, "queue": queue}
        self._pulled = pulled
        self._models = models if pulled is None else [*models, pulled.model]
        rate = settings.rows / settings.seconds
        self._clients = Clients(stack.urls, models, settings.clients, rate)
        self._active_faults: Counter[str] = Counter()
        self._awaiting_commit: dict[str, list[WorkerFault]] = {model_.hash: [] for model_ in self._models}
        self._paused: set[int] = set()
        self._committed = asyncio.Event()
        self._effect_tasks: set[asyncio.Task[None]] = set()
        self._restarting: set[str] = set()

    async def run(self, events: Sequence[Event], report: Report) -> Outcome:
        """Send all rows while the events are applied, wait until all are learned, verify the models."""
        async with session() as http:
            await self._clients.register(http)
            if self._pulled is not None:
                await self._clients.create(http, self._pulled.model)
                await self._pulled.start(http)
            watch = asyncio.create_task(self._watch_commits())
            started = time.monotonic()
            reporting = asyncio.create_task(self._report_progress(report, started))
            sending = asyncio.create_task(self._clients.send_all(http))
            try:
                await self._run_events(events, started)
                if self._settings.one_stops_itself:
                    await self._resume_stopped_worker(sending)
                await sending
                # Wait until paused processes are resumed and killed servers are back.
                await asyncio.gather(*self._effect_tasks)
                self.outcome.seconds = time.monotonic() - started
                if self._pulled is not None:
                    self.outcome.load_errors += await self._pulled.finish(http)
                await self._drain()
                self.outcome.drain_s = time.monotonic() - started - self.outcome.seconds
            finally:
                for task in (watch, reporting, sending):
                    task.cancel()
                await asyncio.gather(watch, reporting, sending, return_exceptions=True)
        await self._verify()
        return self.outcome

    async def _report_progress(self, report: Report, started: float) -> None:
        while True:
            report(time.monotonic() - started, self._clients.stats.accepted, sum(self.outcome.done.values()))
            await asyncio.sleep(0.5)

    async def _run_events(self, events: Sequence[Event], started: float) -> None:
        for event in events:
            if (wait := started + event.at_s - time.monotonic()) > 0:
                await asyncio.sleep(wait)
            task = asyncio.create_task(self._apply(event))
            self._effect_tasks.add(task)

    async def _apply(self, event: Event) -> None:
        match event.action:
            case schedule.KILL_WORKER:
                await self._kill_worker(event)
            case schedule.PAUSE_WORKER:
                await self._pause_worker(event)
            case schedule.KILL_GATEWAY:
                gateway = self._stack.gateways[event.target % len(self._stack.gateways)]
                await self._restart(gateway, event.action, 0.0)
            case schedule.KILL_STORE:
                await self._restart_redis(self._stack.store, event)
            case schedule.KILL_QUEUE:
                await self._restart(self._stack.queue, event.action, event.duration_s)
            case _:
                await self._disturb_connections(event)

    async def _disturb_connections(self, event: Event) -> None:
        """Disturb connections; those of the store in three of four cases."""
        proxy = self._proxies["store" if event.target % 4 else "queue"]
        self._active_faults[event.action] += 1
        self._add_concurrent_fault(event.action)
        match event.action:
            case schedule.CUT:
                proxy.cut()
            case schedule.SLOW:
                await proxy.slow(DELAY_S, event.duration_s)
            case schedule.HANG:
                await proxy.hang(event.duration_s)
            case schedule.DROP:
                proxy.drop_replies(MESSAGES_PER_FAULT)
            case schedule.TEAR:
                proxy.tear_requests(MESSAGES_PER_FAULT)
        self.outcome.done[event.action] += 1
        self._active_faults[event.action] -= 1

    def _add_concurrent_fault(self, action: str) -> None:
        """Add a concurrent fault to all that wait for a commit."""
        for faults in self._awaiting_commit.values():
            for fault in faults:
                fault.concurrent.add(action)

    # Workers.

    async def _stop_worker(self, target: int) -> tuple[int, str] | None:
        """Stop a worker that has claimed rows; return its process id and its model.

        In one of four cases, and if no such worker is found in time, stop any worker that runs; the model is '' then.
        """
        deadline = time.monotonic() + SEARCH_S_MAX
        with suppress(RedisError, OSError):
            while target % 4 and time.monotonic() < deadline:
                for turn in range(len(self._models)):
                    model = self._models[(target + turn) % len(self._models)].hash
                    if (pid := await self._stop_holder(model)) is not None:
                        return pid, model
        running = [pid for pid in self._stack.workers() if pid not in self._paused]
        pid = running[target % len(running)] if running else None
        return (pid, "") if pid is not None and self._stop(pid) else None

    def _stop(self, pid: int) -> bool:
        try:
            os.kill(pid, signal.SIGSTOP)
        except ProcessLookupError:
            return False
        self._paused.add(pid)
        return True

    def _resume(self, pid: int) -> None:
        self._paused.discard(pid)
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)

    async def _stop_holder(self, model: str) -> int | None:
        """Stop the worker that has claimed rows of a model; return None if its commit was already sent."""
        before = await self._batch(model)
        if before is None:
            return None
        holder = await self._stack.queue_client.hget(redis_keys.LEASE_HOLDERS, before[0])
        pid = None if holder is None else self._stack.pid_of(holder.decode().partition(" ")[0])
        if pid is None or pid in self._paused or not self._stop(pid):
            return None
        try:
            await asyncio.sleep(IN_FLIGHT_S)
            if await self._batch(model) == before:
                return pid
        except (RedisError, OSError):
            self._resume(pid)
            raise
        self._resume(pid)
        return None

    async def _batch(self, model: str) -> tuple[bytes, bytes, bytes] | None:
        """Return lease, last claimed request and version of a model whose rows are claimed and not committed."""
        pipe = self._stack.store_client.pipeline(transaction=True)
        pipe.get(redis_keys.lock(model))
        pipe.hmget(redis_keys.state(model), "holder", "tried", "learned", "version")
        lease, (holder, tried, learned, version) = await pipe.execute()
        return (lease, tried, version) if lease is not None and lease == holder and int(tried) > int(learned) else None

    async def _kill_worker(self, event: Event) -> None:
        stopped = await self._stop_worker(event.target)
        if stopped is None:
            return
        pid, model = stopped
        # Remove it from the paused ones: process ids are reused.
        self._paused.discard(pid)
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
            self._measure_recovery(model, self.outcome.kills)
            self.outcome.done[event.action] += 1

    async def _pause_worker(self, event: Event) -> None:
        stopped = await self._stop_worker(event.target)
        if stopped is None:
            return
        pid, model = stopped
        self._active_faults[event.action] += 1
        self._add_concurrent_fault(event.action)
        self._measure_recovery(model, self.outcome.pauses)
        await asyncio.sleep(self._stack.lease_ttl_s + event.duration_s)
        self._resume(pid)
        self._active_faults[event.action] -= 1
        self.outcome.done[event.action] += 1

    async def _resume_stopped_worker(self, sending: "asyncio.Task[None]") -> None:
        """Wait for a worker that a failpoint stops; resume it when all models were committed by other workers since."""
        while not (stopped := [pid for pid in self._stack.workers() if _is_stopped(pid)]):
            assert not sending.done(), "no worker stopped itself while rows were sent"
            await asyncio.sleep(0.02)
        before = await self._versions()
        while not all(now >= then + 3 for now, then in zip(await self._versions(), before, strict=True)):
            assert not sending.done(), "a model was not committed again while rows were sent"
            await asyncio.sleep(0.02)
        for pid in stopped:
            self._resume(pid)
            self.outcome.done[schedule.PAUSE_WORKER] += 1

    async def _versions(self) -> list[int]:
        """Return the version of each model."""
        store = self._stack.store_client
        return [int(await store.hget(redis_keys.state(model_.hash), "version") or 0) for model_ in self._models]

    def _measure_recovery(self, model: str, measured: list[WorkerFault]) -> None:
        """Measure the time until another worker commits the model of the stopped one."""
        if model:
            concurrent = {action for action, count in self._active_faults.items() if count}
            fault = WorkerFault(model, time.monotonic(), concurrent)
            measured.append(fault)
            self._awaiting_commit.setdefault(model, []).append(fault)

    async def _watch_commits(self) -> None:
        """Receive every commit message; subscribe again after an outage of the store."""
        while True:
            try:
                async with self._stack.store_client.pubsub() as subscription:
                    await subscription.subscribe(redis_keys.COMMITS)
                    while True:
                        message = await subscription.get_message(ignore_subscribe_messages=True, timeout=1.0)
                        if message is not None:
                            self._on_commit(message["data"].decode())
            except (RedisError, OSError):
                await asyncio.sleep(0.02)

    def _on_commit(self, text: str) -> None:
        model, _, version, *_ = text.split(" ")
        if not int(version):
            return
        now = time.monotonic()
        self.outcome.commits += 1
        self._committed.set()
        for fault in self._awaiting_commit.get(model, ()):
            fault.recovery_s = now - fault.at_s
        self._awaiting_commit[model] = []

    # Servers and gateways.

    async def _restart(self, process: ServerProcess, action: str, outage_s: float) -> float:
        """Kill a process and start it again after `outage_s`; return the seconds until it was ready again."""
        if action + str(process.log) in self._restarting:
            return 0.0
        self._restarting.add(action + str(process.log))
        self._active_faults[action] += 1
        self._add_concurrent_fault(action)
        process.kill()
        await asyncio.sleep(outage_s)
        started = time.monotonic()
        process.start()
        await process.wait_ready()
        self._active_faults[action] -= 1
        self._restarting.discard(action + str(process.log))
        self.outcome.done[action] += 1
        return time.monotonic() - started

    async def _restart_redis(self, process: ServerProcess, event: Event) -> None:
        if event.action + str(process.log) in self._restarting:
            return
        ready_s = await self._restart(process, event.action, event.duration_s)
        ready = time.monotonic()
        self._clients.stats.first_answer.clear()
        self._committed.clear()
        await self._clients.stats.first_answer.wait()
        answer_s = time.monotonic() - ready
        await self._committed.wait()
        self.outcome.outages.append(RedisOutage(event.duration_s, ready_s, answer_s, time.monotonic() - ready))

    # The end.

    async def _drain(self) -> None:
        """Wait until no request is pending, or until learning has stopped."""
        last, deadline = None, time.monotonic() + IDLE_S_MAX
        while time.monotonic() < deadline:
            with suppress(RedisError, OSError):
                counts = [
                    [int(n) for n in await self._stack.store_client.hmget(redis_keys.state(model_.hash), *COUNTS)]
                    for model_ in self._models
                ]
                if all(accepted == learned for accepted, learned in counts):
                    return
                if counts != last:
                    last, deadline = counts, time.monotonic() + IDLE_S_MAX
            await asyncio.sleep(0.05)
        self.outcome.load_errors.append(f"nothing was learned for {IDLE_S_MAX:g} s: {COUNTS} are {last}")

    async def _verify(self) -> None:
        outcome, stats = self.outcome, self._clients.stats
        # The verification blocks this process and with it the proxies: stop the services that use them first.
        await self._stack.stop_services()
        outcome.verdicts = [await verify(self._stack.store_client, model_) for model_ in self._models]
        log = self._stack.worker_log()
        outcome.refused = sum(document.get("event") == "commit_refused" for document in log)
        outcome.workers_died = sum(document.get("event") == "worker_died" for document in log)
        outcome.attempts, outcome.statuses = stats.attempts, dict(stats.statuses)
        outcome.load_errors += stats.errors
        for proxy in self._proxies.values():
            outcome.replies_dropped += proxy.dropped
            outcome.requests_torn += proxy.torn
            outcome.connections_cut += proxy.cuts


def _is_stopped(pid: int) -> bool:
    """Return whether a process is stopped by a signal."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
    except OSError:
        return False


def _ignore_progress(elapsed_s: float, accepted: int, events: int) -> None:
    """Ignore the progress of a run."""


async def run_faults(
    folder: Path,
    settings: Settings,
    events: Sequence[Event],
    report: Report = _ignore_progress,
    worker_command: list[str] | None = None,
    environment: Mapping[str, str] | None = None,
) -> Outcome:
    """Start a stack in `folder`, apply `events` to it under load, and verify the result."""
    models = [TrackedModel.of(number, settings.rows // settings.models) for number in range(settings.models)]
    stack = Stack(folder, settings.workers, settings.gateways, settings.lease_ttl_s, worker_command)
    async with proxied(stack.store_port, settings.seed) as store, proxied(stack.queue_port, settings.seed) as queue:
        try:
            await stack.start_servers()
            prefixes = {"KEEPFIT_PULL_PREFIXES": (folder / FOLDER).as_uri()}
            await stack.start_services(store, queue, {**prefixes, **(environment or {})})
            pulled = None
            if settings.pulled_rows:
                pulled = PulledModel(folder, stack.urls, settings.models, settings.pulled_rows)
            return await FaultRun(settings, stack, store, queue, models, pulled).run(events, report)
        finally:
            await stack.stop()
