"""Replies of a worker that are not sent yet.

Owns when replies are sent, and how many bytes of them at a time. Never computes one. Invariant: each request gets one
reply; one that cannot be encoded, or is too large, becomes an error of its request and affects no other.
"""

import time
from collections import defaultdict

from redis import Redis

from keepfit.backends import redis_scripts
from keepfit.backends.redis_scripts import Command
from keepfit.jobs import messages
from keepfit.jobs.messages import WorkerReply, WorkerRequest
from keepfit.observability import failpoints

# How long replies may wait for those of slower models in the same batch.
SEND_AFTER_S = 0.002
# Replies of this size do not wait. A round trip has at most one reply more.
SEND_BYTES = 4 << 20


class Outbox:
    """Replies that are not sent yet."""

    def __init__(self, queue: Redis) -> None:
        self._queue = queue
        self._replies: dict[str, list[bytes]] = defaultdict(list)
        self._bytes = 0
        self._commands: list[Command] = []
        self._sent_s = time.monotonic()

    def put(self, request: WorkerRequest, reply: WorkerReply) -> None:
        """Add a reply, and the deletion of the request's rows if they have a key of their own."""
        encoded = messages.encode_reply(reply, as_json=request.as_json)
        self._replies[request.gateway].append(encoded)
        self._bytes += len(encoded)
        if request.rows_key:
            self._commands.append(("UNLINK", request.rows_key))
        if self._bytes > SEND_BYTES:
            self.send()

    def add(self, *commands: Command) -> None:
        """Add commands that are sent with the replies."""
        self._commands += commands

    def take_commands(self) -> list[Command]:
        """Remove and return the commands that send all replies."""
        failpoints.reach("answers.computed")
        commands: list[Command] = []
        for gateway, replies in self._replies.items():
            commands += messages.send_replies(gateway, replies)
        commands += self._commands
        self._replies.clear()
        self._bytes = 0
        self._commands = []
        return commands

    def send_if_due(self) -> None:
        """Send the replies if the last sending was more than :data:`SEND_AFTER_S` ago."""
        if time.monotonic() - self._sent_s > SEND_AFTER_S:
            self.send()

    def send(self) -> None:
        """Send the replies."""
        commands = self.take_commands()
        if commands:
            redis_scripts.run(self._queue, *commands)
        self._sent_s = time.monotonic()
