"""The open connections of one gateway, and their maximum.

Owns which connection is closed for a new one: the oldest without a request; without such, the one whose last answer was
sent completely the longest time ago; without such, the oldest whose client does not read an answer or has not sent a
whole request. Never closes a connection whose complete request is being handled: if all are, the new connection is
closed. Invariant: there are never more than the maximum, which leaves descriptors for everything else that the gateway
opens.
"""

import resource
from typing import Protocol

import structlog

from keepfit.observability.outage import LogThrottle

log = structlog.get_logger(__name__)

# Descriptors for what is no connection of a client: Redis, MongoDB, large chunked bodies. At least so many.
OTHER_FILES_MIN = 64
LOG_EVERY_S = 10.0


class Connection(Protocol):
    """What is needed of a connection."""

    client: str

    @property
    def waits_for_client(self) -> bool:
        """Whether nothing happens until the client reads an answer or sends the rest of a body."""

    @property
    def has_unsent(self) -> bool:
        """Whether a part of an answer is still in the gateway, because the client does not read."""

    def drop(self) -> None:
        """Close the connection at once."""


class OpenConnections:
    """The connections of one gateway, at most `count_max`. Each is new, idle or busy; the oldest comes first."""

    def __init__(self, count_max: int) -> None:
        self.count_max = count_max
        self.dropped = 0
        self._new: dict[Connection, None] = {}
        self._idle: dict[Connection, None] = {}
        self._busy: dict[Connection, None] = {}
        self._throttle = LogThrottle(LOG_EVERY_S)

    def __len__(self) -> int:
        return len(self._new) + len(self._idle) + len(self._busy)

    def add(self, connection: Connection) -> None:
        """Add a connection without a request; drop another one, or this one, if there are too many."""
        self._new[connection] = None
        if len(self) > self.count_max:
            self._drop_one()

    def mark_busy(self, connection: Connection) -> None:
        """Note that the head of a request has arrived."""
        if connection in self._idle:
            del self._idle[connection]
        else:
            self._new.pop(connection, None)
        self._busy[connection] = None

    def mark_idle(self, connection: Connection) -> None:
        """Note that all requests that have arrived are answered."""
        if connection in self._busy:
            del self._busy[connection]
            self._idle[connection] = None

    def mark_answered(self, connection: Connection) -> None:
        """Note that a request has arrived and is answered; no other one is open."""
        if connection in self._idle:
            del self._idle[connection]
        else:
            self._new.pop(connection, None)
        self._idle[connection] = None

    def remove(self, connection: Connection) -> None:
        """Forget a connection that is closed."""
        for each in (self._new, self._idle, self._busy):
            each.pop(connection, None)

    def _drop_one(self) -> None:
        newest = next(reversed(self._new))
        if len(self._new) > 1:
            dropped = next(iter(self._new))
        elif self._idle:
            # Closing one gracefully would keep its descriptor for as long as its client does not read.
            dropped = next((each for each in self._idle if not each.has_unsent), next(iter(self._idle)))
        else:
            dropped = next((each for each in self._busy if each.waits_for_client), newest)
        self.remove(dropped)
        self.dropped += 1
        more = self._throttle.due("connections_dropped")
        if more is not None:
            log.warning("connections_dropped", client=dropped.client, connections_max=self.count_max, more=more)
        dropped.drop()


def raise_file_limit() -> None:
    """Raise the number of files that this process may open as far as the system permits."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def connections_max(wanted: int) -> int:
    """Return the maximum number of connections: `wanted`, or what the limit of open files leaves for clients."""
    files_max, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files_max == resource.RLIM_INFINITY:
        return wanted
    return max(1, min(wanted, files_max - max(OTHER_FILES_MIN, files_max // 8)))
