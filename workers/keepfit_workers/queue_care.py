"""What a supervisor does for one server of the queue: renew, reap and sweep, while that server answers.

Owns what is due there, the deaths of its workers that are not reaped yet, and whether it is away. Never starts or ends
a worker. Invariant: what one server does not answer delays nothing at the others for longer than :data:`PROBE_S`; the
locks of its workers, which are in the store, are renewed and released without it.
"""

import math
import os
import time
from collections.abc import Callable, Mapping, Sequence

import structlog
from redis import Redis
from redis.exceptions import RedisError

from keepfit.backends import queue_servers, redis_clients, redis_keys, redis_scripts
from keepfit.backends.backoff import Backoff
from keepfit.errors import KeepfitError
from keepfit.observability.outage import Outage
from keepfit.settings import Settings
from keepfit_workers import heartbeat, sweep
from keepfit_workers.heartbeat import Beat

log = structlog.get_logger(__name__)

SWEEP_S = 1.0
# Pause after the first failure in a row to reach a Redis: 0.13 to 0.25 s, because work that waits for Redis must not
# wait for the sweep as well; after each further one twice as long, up to the interval of the sweep.
RETRY_PAUSE_S = 0.25
# One of several servers is asked whether it answers, so that one that hangs does not hold up the others.
PROBE_S = 1.0


class QueueCare:
    """One server, as a supervisor looks after it; `is_alone` if it is the only one, and then it is not probed."""

    def __init__(self, settings: Settings, *, is_alone: bool) -> None:
        self.settings = settings
        self.name = queue_servers.name_of(settings.queue_url_or_store)
        self.dead: list[sweep.Death] = []
        self.has_workers = True
        self.away_since_s = math.inf
        self.next_beat_s = self.next_sweep_s = 0.0
        self._is_alone = is_alone
        self._expire_after_s = 0.0
        self._reaped_left_behind = False
        self._outage = Outage("redis", "leases are not renewed, dead workers not reaped, lost hints not found")
        self._backoff = Backoff(RETRY_PAUSE_S, SWEEP_S)

    def away_s(self, now_s: float) -> float:
        """Return for how long the server has not answered; below 0 if it does."""
        return now_s - self.away_since_s

    @property
    def is_up(self) -> bool:
        """Whether the server answered last time; one alone counts as up."""
        return self._is_alone or self.away_since_s == math.inf

    @property
    def due_s(self) -> float:
        """When this server is to be looked after again, by the monotonic clock."""
        return min(self.next_beat_s, self.next_sweep_s)

    def client(self) -> Redis:
        """Return a new client, which does not wait long for one of several servers."""
        return redis_clients.queue_sync(
            self.settings, answer_s=redis_clients.ANSWER_TIMEOUT_S if self._is_alone else PROBE_S
        )

    def probe(self) -> None:
        """Find whether one of several servers answers in time, and whether it has workers; not more often than due."""
        if self._is_alone or (not self.is_up and time.monotonic() < self.next_sweep_s):
            return
        try:
            with self.client() as client:
                (workers,) = redis_scripts.run(client, ("SCARD", redis_keys.RQ_WORKERS))
        except (KeepfitError, RedisError) as error:
            self.away_since_s = min(self.away_since_s, time.monotonic())
            self.fail(error)
        else:
            self.away_since_s, self.has_workers = math.inf, workers > 0

    def fail(self, error: Exception) -> None:
        """Note that Redis did not answer; the next attempt comes after a pause."""
        self._outage.begin(error)
        self.next_sweep_s = time.monotonic() + self._backoff.next_s()

    def succeed(self) -> None:
        """Note that all that was due is done."""
        self._outage.end()
        self._backoff.reset()

    def beat_if_due(self, store: Redis, queue: Redis, beats: Callable[[float], Sequence[Beat]]) -> None:
        """Renew what the workers hold, unless that was done a moment ago."""
        now_s = time.monotonic()
        if now_s < self.next_beat_s:
            return
        # Also after a failure: the next attempt is that of the next pass.
        self.next_beat_s = now_s + self.settings.lease_ttl_s / 3
        if self.is_up:
            heartbeat.renew(store, queue, beats(now_s), self.settings.lease_ttl_s)
        else:
            heartbeat.renew_locks(store, beats(now_s), self.settings.lease_ttl_s)

    def release_locks(self, store: Redis) -> None:
        """Release the locks of dead workers while their server is away: they are reaped when it is back."""
        for death in self.dead:
            sweep.release_lock(store, death)

    def reap(self, store: Redis, queue: Redis, pids: Mapping[str, int], beat: Callable[[], None]) -> None:
        """Reap dead workers, with a heartbeat in between; `pids` are those of the supervisor's workers, by name."""
        ttl_s = self.settings.lease_ttl_s
        if not self._reaped_left_behind:
            sweep.reap_left_behind(store, queue, ttl_s, {**pids, "": os.getpid()})
            self._reaped_left_behind = True
        while self.dead:
            sweep.reap(store, queue, self.dead[0], ttl_s)
            self.dead.pop(0)
            beat()

    def sweep_if_due(
        self,
        store: Redis,
        queue: Redis,
        beat: Callable[[], None],
        *,
        search: bool = True,
        notify: Callable[[Sequence[str]], None] | None = None,
        lost_hints: bool = False,
    ) -> bool:
        """Sweep once a second; with `search` also for models with pending requests, at once if hints are lost.

        Return whether it was due.
        """
        if time.monotonic() < self.next_sweep_s:
            return False
        self.next_sweep_s = time.monotonic() + SWEEP_S
        ttl_s = self.settings.lease_ttl_s
        if self._outage.active:
            # Other supervisors have lost Redis as well: their leases have expired, and they will renew them.
            self._expire_after_s = time.monotonic() + ttl_s
        expire = time.monotonic() >= self._expire_after_s
        after_outage = self._outage.active or lost_hints
        sweep.sweep(
            store,
            queue,
            ttl_s,
            after_outage=after_outage,
            expire=expire,
            beat=beat,
            search=search,
            notify=notify,
        )
        return True

    def give_up(self) -> None:
        """Forget what cannot be reaped: Redis holds a record that RQ did not write. Leases end at their deadlines."""
        self._reaped_left_behind = True
        self.dead.clear()
