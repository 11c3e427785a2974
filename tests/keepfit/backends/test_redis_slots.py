"""Which commands go to which nodes of a cluster, and what a redirection does: without servers."""

from typing import Any

import pytest
from redis.crc import key_slot
from redis.exceptions import AskError, ClusterDownError, MovedError, NoScriptError, ResponseError, TryAgainError

from keepfit.backends import redis_keys, redis_scripts
from keepfit.backends.redis_scripts import Replicas
from keepfit.backends.redis_slots import GLOBAL_SLOT, PAUSES_S, Command, Node, Refresh, Slots, plan
from keepfit.errors import UnavailableError

ONE, TWO, THREE = ("one", 1), ("two", 2), ("three", 3)
A, B = redis_keys.state("aa"), redis_keys.state("bb")
SLOT_A, SLOT_B = key_slot(b"aa"), key_slot(b"bb")
PROMISE = redis_scripts.call("discard", [A, redis_keys.dead("aa")], ["1-1"])
LOAD: tuple[Command, ...] = (("SCRIPT", "LOAD", "text"),)
WRITE_A, WRITE_B = ("HSET", A, "f", 1), ("HSET", B, "f", 1)
MARK = ("SET", redis_keys.replicated(A), 1, "EX", 60)
WAIT = Replicas(1, on_disk=False).commands()[1]


def slots(**nodes: Node) -> Slots:
    """Return slots that are known: those of models A and B, and of no model."""
    found = {SLOT_A: ONE, SLOT_B: TWO, GLOBAL_SLOT: THREE}
    return Slots({**found, **{globals()[name]: node for name, node in nodes.items()}}, is_stale=False)


def executed(known: Slots, commands: list[Command], *answers: Any, replicas: int = 0) -> tuple[list[Any], list[Any]]:
    """Give the answers to a plan, step by step; return what it sent or asked for, and its result."""
    waits = Replicas(replicas, on_disk=False) if replicas else None
    running = plan(commands, known, lambda command: command == PROMISE, LOAD, waits)
    steps: list[Any] = []
    rest, answer = iter(answers), None
    while True:
        try:
            step = running.send(answer)
        except StopIteration as end:
            assert next(rest, None) is None
            return steps, end.value
        steps.append(step)
        answer = None if isinstance(step, Refresh) else next(rest)


def test_reads_go_to_all_nodes_at_once() -> None:
    """Reads of models and of none are one round trip to each node; the answers come in the order of the commands."""
    reads = [("HGET", A, "f"), ("ZCARD", redis_keys.CHANGED), ("HGET", B, "f"), ("HGET", A, "g")]
    reads[1] = ("ZRANGE", redis_keys.CHANGED, 0, -1)
    steps, result = executed(slots(), reads, [["a", "c"], ["z"], ["b"]])
    of_none = ("ZRANGE", redis_keys.in_cluster(redis_keys.CHANGED), 0, -1)
    assert steps == [[(ONE, [reads[0], reads[3]]), (THREE, [of_none]), (TWO, [reads[2]])]]
    assert result == ["a", "z", "b", "c"]


def test_writes_of_models_come_after_those_of_no_model_that_stand_before_them() -> None:
    """A mark is on its node before the commit is sent; TIME goes where the command before it went."""
    mark = ("ZADD", redis_keys.CHANGED, "GT", 1, "aa")
    steps, result = executed(slots(), [mark, WRITE_A, WRITE_B, ("TIME",)], [[1]], [[2], [3, "now"]])
    assert steps[0] == [(THREE, [("ZADD", redis_keys.in_cluster(redis_keys.CHANGED), "GT", 1, "aa")])]
    assert steps[1] == [(ONE, [WRITE_A]), (TWO, [WRITE_B, ("TIME",)])]
    assert result == [1, 2, 3, "now"]


def test_unknown_slots_are_read_first() -> None:
    """The first command, and the one after a broken connection, begins with reading the slots."""
    known = slots()
    known.is_stale = True
    steps, _ = executed(known, [WRITE_A], [[1]])
    assert steps == [Refresh(), [(ONE, [WRITE_A])]]


def test_a_moved_slot_is_followed_and_remembered() -> None:
    """Only the command that was refused is sent again, to the node that the error names."""
    known = slots(SLOT_B=ONE)
    moved = MovedError(f"{SLOT_A} two:2")
    steps, result = executed(known, [WRITE_A, WRITE_B], [[moved, 2]], [[1]])
    assert steps == [[(ONE, [WRITE_A, WRITE_B])], [(TWO, [WRITE_A])]]
    assert (result, known.nodes[SLOT_A], known.is_stale) == ([1, 2], TWO, True)


def test_an_asked_node_is_asked_once() -> None:
    """While a slot moves, a key that has moved is asked of its new node, which is not remembered."""
    known = slots()
    steps, result = executed(known, [WRITE_A], [[AskError(f"{SLOT_A} two:2")]], [["OK", 1]])
    assert steps[1] == [(TWO, [("ASKING",), WRITE_A])]
    assert (result, known.nodes[SLOT_A]) == ([1], ONE)


@pytest.mark.parametrize("error", [TryAgainError("TRYAGAIN"), ClusterDownError("CLUSTERDOWN")])
def test_a_refusal_is_repeated_for_less_than_a_second(error: Exception) -> None:
    """After pauses the command is sent again, by the slots as they are then; the last error is the answer."""
    steps, result = executed(slots(), [WRITE_A], [[error]], [[1]])
    assert (steps[1], result) == (Refresh(PAUSES_S[0]), [1])
    steps, result = executed(slots(), [WRITE_A], *[[[error]]] * (len(PAUSES_S) + 1))
    assert result == [error]
    assert sum(PAUSES_S) < 1


def test_a_slot_without_a_node_is_an_error() -> None:
    """After the pauses, a command of a slot that no node has is answered with CLUSTERDOWN."""
    known = slots()
    del known.nodes[SLOT_A]
    steps, result = executed(known, [WRITE_A])
    assert steps == [Refresh(pause_s) for pause_s in PAUSES_S]
    assert isinstance(result[0], ClusterDownError)


def test_a_node_without_scripts_gets_them() -> None:
    """All commands of that node are sent again after the scripts; those of other nodes are not."""
    commands = [PROMISE, WRITE_A, WRITE_B]
    steps, result = executed(slots(), commands, [[NoScriptError(), 2], [3]], [["sha", 1, 2]])
    assert steps[1] == [(ONE, [*LOAD, PROMISE, WRITE_A])]
    assert result == [1, 2, 3]


def test_a_promise_waits_on_its_node() -> None:
    """The wait follows the promise on its connection, after a write in the slot; other nodes wait for nothing."""
    steps, result = executed(slots(), [PROMISE, WRITE_B], [[[], "OK", 1], [2]], replicas=1)
    assert steps == [[(ONE, [PROMISE, MARK, WAIT]), (TWO, [WRITE_B])]]
    assert result == [[], 2]


def test_too_few_replicas_are_an_error() -> None:
    """What fewer replicas have is not promised."""
    with pytest.raises(UnavailableError, match="Only 0 of 1"):
        executed(slots(), [PROMISE], [[[], "OK", 0]], replicas=1)


def test_a_redirected_promise_waits_where_it_is_executed() -> None:
    """The wait of the node that refused proves nothing."""
    asked = [[AskError(f"{SLOT_A} two:2"), AskError(f"{SLOT_A} two:2"), 0]]
    steps, result = executed(slots(), [PROMISE], asked, [["OK", [], "OK", "OK", 1]], replicas=1)
    assert steps[1] == [(TWO, [("ASKING",), PROMISE, ("ASKING",), MARK, WAIT])]
    assert result == [[]]


@pytest.mark.parametrize(
    "waits",
    [
        [MovedError(f"{SLOT_A} two:2"), 1],
        ["OK", ResponseError("UNBLOCKED force unblock from blocking operation, instance state changed")],
    ],
)
def test_a_promise_whose_wait_proves_nothing_is_made_again(waits: list[Any]) -> None:
    """If the write before the wait was refused, or the wait itself, it may not cover the promise."""
    steps, result = executed(slots(), [PROMISE], [[[], *waits]], [[[], "OK", 1]], replicas=1)
    assert [step for step in steps if not isinstance(step, Refresh)] == [[(ONE, [PROMISE, MARK, WAIT])]] * 2
    assert result == [[]]


def test_a_scan_visits_all_nodes() -> None:
    """The cursor leads through each node's keys, then to the next node, and is 0 after the last one."""
    known, cursor, seen = slots(), b"0", []
    for node, own, answer in ((ONE, 0, b"7"), (ONE, 7, b"0"), (THREE, 0, b"0"), (TWO, 0, b"0")):
        steps, [[cursor, names]] = executed(known, [("SCAN", cursor, "COUNT", 5)], [[[answer, [node[0]]]]])
        assert steps == [[(node, [("SCAN", own, "COUNT", 5)])]]
        seen += names
    assert (cursor, seen) == (b"0", ["one", "one", "three", "two"])
