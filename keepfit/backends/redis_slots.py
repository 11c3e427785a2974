"""Which commands of a round trip go to which nodes of a Redis Cluster, and what is done with redirections.

Owns the keys by which a command finds its node, the order of the commands, and how often a refused one is repeated. It
never connects: :mod:`keepfit.backends.redis_cluster` sends what :func:`plan` yields. Invariants: commands of one model
are executed in order; those of models come before or after those of no model as the caller wrote them; only commands
that a node has refused to execute are repeated, and scripts, which allow it.
"""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, Protocol

from redis.crc import key_slot
from redis.exceptions import AskError, ClusterDownError, MovedError, NoScriptError, ResponseError, TryAgainError

from keepfit.backends import redis_keys

Command = tuple[Any, ...]
Node = tuple[str, int]

# Of the keys that belong to no model.
GLOBAL_SLOT = key_slot(redis_keys.GLOBAL_TAG.encode())
KEYLESS = frozenset({"PING", "TIME"})
# Commands whose order does not matter: they are sent to all nodes at once.
READS = KEYLESS | {"EXISTS", "GET", "HGET", "HGETALL", "HLEN", "HMGET", "STRLEN", "XLEN", "ZRANGE", "ZSCORE"}
# Seconds before a refused command is repeated; together less than a second: the caller gets an error then.
PAUSES_S = (0.02, 0.05, 0.1, 0.2, 0.4)


class Replicas(Protocol):
    """Which replicas a promise waits for."""

    def commands(self, mark: str) -> tuple[Command, ...]:
        """Return the commands that wait; the first one writes the key `mark`."""
        ...

    def check(self, answer: Any) -> None:
        """Raise an error if fewer replicas have it."""
        ...


@dataclass(slots=True)
class Slots:
    """Which node has which slot, as far as is known; `is_stale` asks for the present state before the next command."""

    nodes: dict[int, Node] = field(default_factory=dict)
    is_stale: bool = True

    def primaries(self) -> list[Node]:
        """Return the nodes that have slots, in a fixed order."""
        return sorted(set(self.nodes.values()))


@dataclass(frozen=True, slots=True)
class Refresh:
    """Request to wait, and to read which node has which slot."""

    pause_s: float = 0.0


Sent = tuple[Node, list[Command]]
Plan = Generator[Refresh | list[Sent], Any, list[Any]]


def located(command: Command) -> tuple[int | None, Command]:
    """Return the slot of a command, None for one without a key, and the command with the keys' names in a cluster.

    >>> located(("ZADD", redis_keys.JOBS, 1, "a"))[1] == ("ZADD", redis_keys.in_cluster(redis_keys.JOBS), 1, "a")
    True
    """
    name = command[0]
    if name in KEYLESS:
        return None, command
    if name == "EVALSHA":
        first, last = 3, 3 + command[2]
    elif name == "XREAD":
        first = command.index("STREAMS") + 1
        last = first + 1
    elif name in {"UNLINK", "DEL", "EXISTS", "TOUCH"}:
        first, last = 1, len(command)
    else:
        first = 2 if name == "OBJECT" else 1
        last = first + 1
    keys = [redis_keys.in_cluster(key) for key in command[first:last]]
    slot = key_slot(_bytes(keys[0]))
    return slot, (*command[:first], *keys, *command[last:])


def _bytes(key: str | bytes) -> bytes:
    return key.encode() if isinstance(key, str) else key


@dataclass(slots=True)
class _Part:
    """A command of a round trip, its slot, where a node has sent it (ASK), and its answer."""

    slot: int
    command: Command
    is_promise: bool
    asked: Node | None = None
    answer: Any = None


def plan(
    commands: Sequence[Command],
    slots: Slots,
    is_promise: Callable[[Command], bool],
    load: Sequence[Command],
    replicas: Replicas | None,
) -> Plan:
    """Yield what is to be sent to which nodes, receive the answers, and return those of `commands` in order.

    An answer may be an error. `load` are the commands that give a node the scripts.
    """
    if slots.is_stale:
        yield Refresh()
    if commands and commands[0][0] == "SCAN":
        return [(yield from _scan(commands[0], slots))]
    parts: list[_Part] = []
    found = list(map(located, commands))
    slot = next((slot for slot, _ in found if slot is not None), GLOBAL_SLOT)
    for own, command in found:
        # One without a key goes where the one before it went.
        slot = slot if own is None else own
        parts.append(_Part(slot, command, is_promise(command)))
    stages = groupby(parts, key=lambda part: part.slot == GLOBAL_SLOT)
    only_reads = all(command[0] in READS for command in commands)
    for stage in [parts] if only_reads else [list(members) for _, members in stages]:
        yield from _send(stage, slots, load, replicas)
    return [part.answer for part in parts]


def _send(
    waiting: list[_Part], slots: Slots, load: Sequence[Command], replicas: Replicas | None
) -> Generator[Refresh | list[Sent], Any, None]:
    """Send commands until each has an answer that is no redirection."""
    without_scripts: set[Node] = set()
    pauses = iter(PAUSES_S)
    while True:
        groups: dict[Node, list[_Part]] = {}
        refused: list[_Part] = []
        for part in waiting:
            node = part.asked or slots.nodes.get(part.slot)
            if node is None:
                part.answer = ClusterDownError("no node has the slot", status_code="CLUSTERDOWN")
                refused.append(part)
            else:
                groups.setdefault(node, []).append(part)
        sent = [
            (node, [*(load if node in without_scripts else ()), *_wire(group, replicas)])
            for node, group in groups.items()
        ]
        answers: list[list[Any]] = (yield sent) if sent else []
        for (node, group), found in zip(groups.items(), answers, strict=True):
            offset = len(load) if node in without_scripts else 0
            if _receive(group, found[offset:], replicas):
                without_scripts.add(node)
                refused += group
            else:
                refused += [part for part in group if _is_refused(part, slots)]
        waiting = refused
        if not waiting:
            return
        pause_s = next(pauses, None)
        if pause_s is None:
            return
        if any(isinstance(part.answer, TryAgainError | ClusterDownError) for part in waiting):
            yield Refresh(pause_s)


def _is_refused(part: _Part, slots: Slots) -> bool:
    """Return whether a command was not executed and is to be sent again; note where it goes then."""
    part.asked = None
    if isinstance(part.answer, MovedError):
        slots.nodes[part.answer.slot_id] = (part.answer.host, part.answer.port)
        slots.is_stale = True
    elif isinstance(part.answer, AskError):
        part.asked = (part.answer.host, part.answer.port)
    return isinstance(part.answer, AskError | TryAgainError | ClusterDownError)


def _wire(group: list[_Part], replicas: Replicas | None) -> list[Command]:
    """Return what is sent to a node: the commands, and those that wait for replicas of the same connection."""
    wire: list[Command] = []
    for part in group:
        wire += [("ASKING",), part.command] if part.asked else [part.command]
    promise = _promise(group, replicas)
    if promise is not None and replicas is not None:
        waits = replicas.commands(redis_keys.replicated(promise.command[3]))
        wire += [("ASKING",), *waits] if promise.asked else waits
    return wire


def _promise(group: list[_Part], replicas: Replicas | None) -> _Part | None:
    return next((part for part in group if part.is_promise), None) if replicas is not None else None


def _receive(group: list[_Part], found: list[Any], replicas: Replicas | None) -> bool:
    """Assign the answers of a node; return whether it has to get the scripts first."""
    rest = iter(found)
    for part in group:
        if part.asked:
            next(rest)
        part.answer = next(rest)
    if any(isinstance(part.answer, NoScriptError) for part in group):
        return True
    done = [part for part in group if part.is_promise and not isinstance(part.answer, Exception)]
    if replicas is not None and done:
        waits = list(rest)[-len(replicas.commands("")) :]
        if any(isinstance(answer, Exception) for answer in waits):
            # The slot moves, or another node becomes the primary, at this moment: nothing proves that the replicas have
            # the promise, so it is made again.
            for part in done:
                part.answer = TryAgainError("the slot moves", status_code="TRYAGAIN")
        else:
            replicas.check(waits[-1])
    return False


def _scan(command: Command, slots: Slots) -> Generator[Refresh | list[Sent], Any, Any]:
    """Scan the nodes one after the other: the cursor is that of a node, times their number, and the node's place."""
    primaries = slots.primaries()
    if not primaries:
        return ClusterDownError("no node has slots", status_code="CLUSTERDOWN")
    cursor, place = divmod(int(command[1]), len(primaries))
    answer: Any
    ((answer,),) = yield [(primaries[place], [("SCAN", cursor, *command[2:])])]
    if isinstance(answer, ResponseError):
        return answer
    following, names = int(answer[0]), answer[1]
    following = following * len(primaries) + place if following else (place + 1) % len(primaries)
    return [str(following).encode(), names]
