"""A run: the load, the schedule and the watch over both, then the check.

Owns what an event means at the moment it is due, and what is measured. Never changes what keepfit does: it signals
processes it has started and bytes that pass its proxies. Invariant: a process it has stopped is woken again.
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
from keepfit.jobs import run_queue
from tests.faults import schedule
from tests.faults.check import Verdict, examine
from tests.faults.clients import Crowd, Learner, session
from tests.faults.proxy import Proxy, proxied
from tests.faults.schedule import Event
from tests.faults.stack import Part, Stack

# How long the harness looks for a worker in the middle of a batch before it takes any.
LOOK_S = 1.5
# What a stopped process has sent takes at most about this long to be carried out.
ON_ITS_WAY_S = 0.03
# Slow is not wrong: the wait for the last row ends when nothing has been learned for this long.
STILL_S_MAX = 30.0
SLOW_BY_S = 0.02
MESSAGES_HARMED = 3
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


@dataclass(slots=True)
class Death:
    """A worker killed with a model in hand: when that model's next commit came, and what else was wrong meanwhile."""

    model: str
    at_s: float
    meanwhile: set[str] = field(default_factory=set)
    took_s: float | None = None


@dataclass(frozen=True, slots=True)
class Away:
    """A Redis killed: how long it was away, then how long until it was ready, until an answer, a commit."""

    away_s: float
    ready_s: float
    answer_s: float
    commit_s: float


@dataclass(slots=True)
class Outcome:
    """All that came of a run."""

    settings: Settings
    seconds: float = 0.0
    done: Counter[str] = field(default_factory=Counter)
    deaths: list[Death] = field(default_factory=list)
    sleeps: list[Death] = field(default_factory=list)
    away: list[Away] = field(default_factory=list)
    verdicts: list[Verdict] = field(default_factory=list)
    refused: int = 0
    workers_died: int = 0
    drained_s: float = 0.0
    commits: int = 0
    attempts: int = 0
    statuses: dict[str, int] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    replies_dropped: int = 0
    requests_torn: int = 0
    connections_cut: int = 0

    @property
    def faults(self) -> list[str]:
        """Everything that is not as it should be."""
        return self.wrong + [f"model {verdict.model}: {fault}" for verdict in self.verdicts for fault in verdict.faults]


class Storm:
    """One run over one stack."""

    def __init__(
        self, settings: Settings, stack: Stack, store: Proxy, queue: Proxy, learners: Sequence[Learner]
    ) -> None:
        self.outcome = Outcome(settings)
        self._settings = settings
        self._stack = stack
        self._proxies = {"store": store, "queue": queue}
        self._learners = learners
        rate = settings.rows / settings.seconds
        self._crowd = Crowd(stack.urls, learners, settings.clients, rate)
        self._wrong_now: Counter[str] = Counter()
        self._waiting: dict[str, list[Death]] = {learner.hash: [] for learner in learners}
        self._asleep: set[int] = set()
        self._committed = asyncio.Event()
        self._effects: set[asyncio.Task[None]] = set()
        self._busy: set[str] = set()

    async def run(self, events: Sequence[Event], report: Report) -> Outcome:
        """Send all rows while the events take place; wait until all is learned; check."""
        async with session() as http:
            await self._crowd.register(http)
            watch = asyncio.create_task(self._watch())
            started = time.monotonic()
            telling = asyncio.create_task(self._tell(report, started))
            sending = asyncio.create_task(self._crowd.send_all(http))
            try:
                await self._play(events, started)
                await sending
                # What is asleep or away comes back, whatever the load did.
                await asyncio.gather(*self._effects)
                self.outcome.seconds = time.monotonic() - started
                await self._drain()
                self.outcome.drained_s = time.monotonic() - started - self.outcome.seconds
            finally:
                for task in (watch, telling, sending):
                    task.cancel()
                await asyncio.gather(watch, telling, sending, return_exceptions=True)
        await self._conclude()
        return self.outcome

    async def _tell(self, report: Report, started: float) -> None:
        while True:
            report(time.monotonic() - started, self._crowd.tally.accepted, sum(self.outcome.done.values()))
            await asyncio.sleep(0.5)

    async def _play(self, events: Sequence[Event], started: float) -> None:
        for event in events:
            if (wait := started + event.at_s - time.monotonic()) > 0:
                await asyncio.sleep(wait)
            task = asyncio.create_task(self._do(event))
            self._effects.add(task)

    async def _do(self, event: Event) -> None:
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
                await self._restart(self._stack.queue, event.action, event.lasts_s)
            case _:
                await self._disturb(event)

    async def _disturb(self, event: Event) -> None:
        """Do harm to connections; three in four times to those of the store."""
        proxy = self._proxies["store" if event.target % 4 else "queue"]
        self._wrong_now[event.action] += 1
        self._note(event.action)
        match event.action:
            case schedule.CUT:
                proxy.cut()
            case schedule.SLOW:
                await proxy.slow(SLOW_BY_S, event.lasts_s)
            case schedule.HANG:
                await proxy.hang(event.lasts_s)
            case schedule.DROP:
                proxy.drop_replies(MESSAGES_HARMED)
            case schedule.TEAR:
                proxy.tear_requests(MESSAGES_HARMED)
        self.outcome.done[event.action] += 1
        self._wrong_now[event.action] -= 1

    def _note(self, action: str) -> None:
        """Remember with all that wait for a commit that something else went wrong meanwhile."""
        for deaths in self._waiting.values():
            for death in deaths:
                death.meanwhile.add(action)

    # Workers.

    async def _catch(self, target: int) -> tuple[int, str] | None:
        """Stop a worker that has rows in hand; return its process id and its model.

        One in four times, and where no worker is caught in time, any worker that is awake is stopped, and '' returned.
        """
        deadline = time.monotonic() + LOOK_S
        with suppress(RedisError, OSError):
            while target % 4 and time.monotonic() < deadline:
                for turn in range(len(self._learners)):
                    model = self._learners[(target + turn) % len(self._learners)].hash
                    if (pid := await self._stop_learner(model)) is not None:
                        return pid, model
        awake = [pid for pid in self._stack.workers() if pid not in self._asleep]
        pid = awake[target % len(awake)] if awake else None
        return (pid, "") if pid is not None and self._stop(pid) else None

    def _stop(self, pid: int) -> bool:
        try:
            os.kill(pid, signal.SIGSTOP)
        except ProcessLookupError:
            return False
        self._asleep.add(pid)
        return True

    def _wake(self, pid: int) -> None:
        self._asleep.discard(pid)
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)

    async def _stop_learner(self, model: str) -> int | None:
        """Stop the worker that has taken rows of a model and not committed them; None if its commit was on its way."""
        before = await self._batch(model)
        if before is None:
            return None
        holder = await self._stack.queue_client.hget(redis_keys.holders(run_queue.LEARN.name), before[0])
        pid = None if holder is None else self._stack.pid_of(holder.decode().rpartition(" ")[0])
        if pid is None or pid in self._asleep or not self._stop(pid):
            return None
        try:
            await asyncio.sleep(ON_ITS_WAY_S)
            if await self._batch(model) == before:
                return pid
        except (RedisError, OSError):
            self._wake(pid)
            raise
        self._wake(pid)
        return None

    async def _batch(self, model: str) -> tuple[bytes, bytes, bytes] | None:
        """Lease that has taken rows of a model and not committed them, how often they were taken, and the version."""
        pipe = self._stack.store_client.pipeline(transaction=True)
        pipe.get(redis_keys.lock(model))
        pipe.hmget(redis_keys.state(model), "attempts", "version")
        lease, (attempts, version) = await pipe.execute()
        return (lease, attempts, version) if lease is not None and int(attempts or 0) else None

    async def _kill_worker(self, event: Event) -> None:
        caught = await self._catch(event.target)
        if caught is None:
            return
        pid, model = caught
        # Asleep no more: process ids may come again.
        self._asleep.discard(pid)
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
            self._expect(model, self.outcome.deaths)
            self.outcome.done[event.action] += 1

    async def _pause_worker(self, event: Event) -> None:
        caught = await self._catch(event.target)
        if caught is None:
            return
        pid, model = caught
        self._wrong_now[event.action] += 1
        self._note(event.action)
        self._expect(model, self.outcome.sleeps)
        await asyncio.sleep(self._stack.lease_ttl_s + event.lasts_s)
        self._wake(pid)
        self._wrong_now[event.action] -= 1
        self.outcome.done[event.action] += 1

    def _expect(self, model: str, found: list[Death]) -> None:
        """Measure how long it takes until the model that was in hand is committed by somebody else."""
        if model:
            wrong = {action for action, count in self._wrong_now.items() if count}
            death = Death(model, time.monotonic(), wrong)
            found.append(death)
            self._waiting.setdefault(model, []).append(death)

    async def _watch(self) -> None:
        """Hear every commit; again from the beginning where the store was away."""
        while True:
            try:
                async with self._stack.store_client.pubsub() as heard:
                    await heard.subscribe(redis_keys.COMMITS)
                    while True:
                        message = await heard.get_message(ignore_subscribe_messages=True, timeout=1.0)
                        if message is not None:
                            self._hear(message["data"].decode())
            except (RedisError, OSError):
                await asyncio.sleep(0.02)

    def _hear(self, text: str) -> None:
        model, _, version, *_ = text.split(" ")
        if not int(version):
            return
        now = time.monotonic()
        self.outcome.commits += 1
        self._committed.set()
        for death in self._waiting.get(model, ()):
            death.took_s = now - death.at_s
        self._waiting[model] = []

    # Servers and gateways.

    async def _restart(self, part: Part, action: str, away_s: float) -> float:
        """Kill a part and start it again after a while; return how long it took to be ready then."""
        if action + str(part.log) in self._busy:
            return 0.0
        self._busy.add(action + str(part.log))
        self._wrong_now[action] += 1
        self._note(action)
        part.kill()
        await asyncio.sleep(away_s)
        started = time.monotonic()
        part.start()
        await part.wait_ready()
        self._wrong_now[action] -= 1
        self._busy.discard(action + str(part.log))
        self.outcome.done[action] += 1
        return time.monotonic() - started

    async def _restart_redis(self, part: Part, event: Event) -> None:
        if event.action + str(part.log) in self._busy:
            return
        ready_s = await self._restart(part, event.action, event.lasts_s)
        ready = time.monotonic()
        self._crowd.tally.first_answer.clear()
        self._committed.clear()
        await self._crowd.tally.first_answer.wait()
        answer_s = time.monotonic() - ready
        await self._committed.wait()
        self.outcome.away.append(Away(event.lasts_s, ready_s, answer_s, time.monotonic() - ready))

    # The end.

    async def _drain(self) -> None:
        """Wait until no mail is left, or nobody learns it."""
        last, deadline = None, time.monotonic() + STILL_S_MAX
        while time.monotonic() < deadline:
            with suppress(RedisError, OSError):
                counts = [
                    [int(n) for n in await self._stack.store_client.hmget(redis_keys.state(learner.hash), *COUNTS)]
                    for learner in self._learners
                ]
                if all(accepted == learned for accepted, learned in counts):
                    return
                if counts != last:
                    last, deadline = counts, time.monotonic() + STILL_S_MAX
            await asyncio.sleep(0.05)
        self.outcome.wrong.append(f"nothing was learned for {STILL_S_MAX:g} s: {COUNTS} are {last}")

    async def _conclude(self) -> None:
        outcome, tally = self.outcome, self._crowd.tally
        # The check keeps this process busy, and with it the proxies: nobody shall run into their silence.
        await self._stack.stop_services()
        outcome.verdicts = [await examine(self._stack.store_client, learner) for learner in self._learners]
        log = self._stack.worker_log()
        outcome.refused = sum(document.get("event") == "commit_refused" for document in log)
        outcome.workers_died = sum(document.get("event") == "worker_died" for document in log)
        outcome.attempts, outcome.statuses = tally.attempts, dict(tally.statuses)
        outcome.wrong += tally.wrong
        for proxy in self._proxies.values():
            outcome.replies_dropped += proxy.dropped
            outcome.requests_torn += proxy.torn
            outcome.connections_cut += proxy.cuts


def _nobody(elapsed_s: float, accepted: int, events: int) -> None:
    """Report to nobody."""


async def storm(
    folder: Path,
    settings: Settings,
    events: Sequence[Event],
    report: Report = _nobody,
    worker_command: list[str] | None = None,
    environment: Mapping[str, str] | None = None,
) -> Outcome:
    """Start a stack in `folder`, harm it by `events` under load, and check what came of it."""
    learners = [Learner.of(number, settings.rows // settings.models) for number in range(settings.models)]
    stack = Stack(folder, settings.workers, settings.gateways, settings.lease_ttl_s, worker_command)
    async with proxied(stack.store_port, settings.seed) as store, proxied(stack.queue_port, settings.seed) as queue:
        try:
            await stack.start_servers()
            await stack.start_services(store, queue, environment or {})
            return await Storm(settings, stack, store, queue, learners).run(events, report)
        finally:
            await stack.stop()
