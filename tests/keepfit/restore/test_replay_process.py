"""The process that replays requests: its time limit, its deaths, and its end with its parent."""

import asyncio
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from keepfit.errors import UnavailableError, UnloadableError
from keepfit.history import RegistryEntry
from keepfit.history.registry.lineage import Position
from keepfit.model.serialization import unseal
from keepfit.recipe import uploads
from keepfit.recipe.recipe import Recipe, parse
from keepfit.restore import replay, replay_child
from keepfit.restore.replay import Replayed, Replayer
from keepfit.restore.replay_process import ReplayProcess
from keepfit.restore.replay_source import LoggedRequest
from keepfit.rows.shaping import shape
from keepfit.security.envelope import Keyring
from tests import servers
from tests.factories import dump_local

SIGNING_KEYS, UPLOAD_KEYS = f"k:{os.urandom(32).hex()}", f"u:{os.urandom(32).hex()}"
KEYRING = Keyring.from_text(SIGNING_KEYS)
HASH = "ab" * 32
# Longer than any test. Calls of PyDLL keep the interpreter's lock, as native code may.
NEVER = 100_000.0
ENDLESS = """import ctypes
class Endless:
    def partial_fit(self, X, y):
        ctypes.PyDLL(None).sleep(int(y[0]))
        self.sum = getattr(self, "sum", 0.0) + y[0]
    def predict(self, X):
        return [self.sum] * len(X)
"""
# Ends the process that loads it, or keeps it busy, once PLACE names a file.
UNLOADABLE = """import os, time
class Unloadable:
    def __init__(self): self.known = 1
    def partial_fit(self, X, y): pass
    def predict(self, X): return [0.0] * len(X)
    def __setstate__(self, state):
        self.__dict__.update(state)
        if os.path.exists(PLACE):
            open(PLACE, "a").write("loaded ")
            WHAT
"""


@pytest.fixture
def replayer() -> Iterator[Replayer]:
    """Return a replayer whose calls may take some seconds: enough for all others on a busy machine."""
    opened = Replayer(KEYRING, uploads.upload_keyring(UPLOAD_KEYS), 4.0)
    yield opened
    opened.close()


def recipe_of(source: str) -> Recipe:
    """Return the recipe of an object."""
    return parse({"object": dump_local(source, UPLOAD_KEYS)}, uploads.upload_keyring(UPLOAD_KEYS))


async def replay_rows(replayer: Replayer, recipe: Recipe, *targets: float) -> Replayed:
    """Learn one row per target on top of a new model."""
    registered = RegistryEntry(HASH, "{}", recipe.text(), 1, 1, {})
    requests = [
        LoggedRequest(1, 1, number, 0.0, shape(recipe, [[1.0]], [target], learning=True).encode())
        for number, target in enumerate(targets, start=1)
    ]
    return await replayer.learn(registered, None, Position(1, 1, 0), requests)


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that grows by one with each child that dies or is killed."""
    found: list[int] = []
    end = ReplayProcess._end

    def note(self: ReplayProcess) -> None:
        found.append(1)
        end(self)

    monkeypatch.setattr(ReplayProcess, "_end", note)
    return found


async def test_a_request_whose_call_never_returns_is_skipped(
    replayer: Replayer, ended: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is found with two calls over their time, whatever the number of requests; the others are learned in order."""
    monkeypatch.setattr(replay_child, "REPLY_AFTER_S", 0.5)
    recipe = recipe_of(ENDLESS)
    replayed = await replay_rows(replayer, recipe, 0.25, 0.5, NEVER, 0.75, *[0.0] * 20)
    assert [(skipped.request.sequence, skipped.reason) for skipped in replayed.skipped] == [(3, replay.OVERDUE)]
    assert "longer than a call may" in replay.OVERDUE
    assert len(ended) == 2
    assert replayed.bundle is not None
    bundle = unseal(replayed.bundle.data, KEYRING, recipe, HASH)[1]
    assert (bundle.rows_seen, bundle.predict(shape(recipe, [[1.0]], learning=False))) == (23, [1.5])


async def test_many_requests_are_not_one_call(replayer: Replayer, ended: list[int]) -> None:
    """A batch whose calls together take longer than one may is learned, because the child replies in between."""
    recipe = recipe_of(ENDLESS)
    replayed = await replay_rows(replayer, recipe, *[1.0] * 12)
    assert (replayed.skipped, ended) == ([], [])
    assert replayed.bundle is not None
    assert replayed.bundle.header.rows_seen == 12


@pytest.mark.parametrize(("what", "loads"), [("os._exit(1)", replay.DEATHS_MAX), ("time.sleep(1e5)", 1)])
async def test_a_model_that_cannot_be_loaded_is_no_fault_of_its_requests(
    replayer: Replayer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, what: str, loads: int
) -> None:
    """A child that dies, or hangs, while it loads the bundle ends the replay; no request is skipped for it."""
    monkeypatch.setattr(replay_child, "REPLY_AFTER_S", 0.0)
    mark = tmp_path / "mark"
    recipe = recipe_of(UNLOADABLE.replace("PLACE", repr(str(mark))).replace("WHAT", what))
    mark.touch()
    with pytest.raises(UnloadableError, match=f"while it loaded the model {HASH}"):
        await replay_rows(replayer, recipe, 1.0, 2.0)
    assert mark.read_text().split() == ["loaded"] * loads
    mark.unlink()
    assert (await replay_rows(replayer, recipe, 1.0, 2.0)).rows == 2


async def test_a_closed_replayer_ends_its_replay(replayer: Replayer, tmp_path: Path) -> None:
    """Closing it ends a call that never returns at once, and starts no other child."""
    mark = tmp_path / "called"
    source = ENDLESS.replace("        ctypes", f"        open({str(mark)!r}, 'w').close()\n        ctypes", 1)
    replaying = asyncio.create_task(replay_rows(replayer, recipe_of(source), NEVER))
    await asyncio.to_thread(servers.wait_until, mark.exists, "the call of the child")
    await asyncio.to_thread(replayer.close)
    with pytest.raises(UnavailableError, match="was ended"):
        await replaying


SCRIPT = f"""
import sys
from pathlib import Path
from keepfit.recipe import uploads
from keepfit.recipe.recipe import from_text
from keepfit.restore.replay_process import ReplayProcess
from keepfit.restore.replay_wire import ReplayTask
from keepfit.rows.shaping import shape
from keepfit.security import envelope
from keepfit.security.envelope import Header, Keyring

if __name__ == "__main__":
    recipe, keyring = from_text(sys.stdin.read()), Keyring.from_text({SIGNING_KEYS!r})
    process = ReplayProcess(keyring, uploads.upload_keyring({UPLOAD_KEYS!r}))
    header = Header(envelope.BUNDLE, {HASH!r}, 1, 1, 1, 0, "", envelope.runtime())
    rows = shape(recipe, [[1.0]], [{NEVER!r}], learning=True).encode()
    process.learn(ReplayTask(recipe.text(), header, b"", [rows]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the signal of a pipe is Linux's")
def test_the_child_ends_with_its_parent(tmp_path: Path) -> None:
    """A child in native code, which cannot notice anything, is killed when its parent is; so is the fork server."""
    mark, script = tmp_path / uuid.uuid4().hex, tmp_path / "replay.py"
    script.write_text(SCRIPT)
    source = ENDLESS.replace(
        "        ctypes",
        f"        import os; open({str(mark)!r}, 'w').write(f'{{os.getpid()}} {{os.getppid()}}')\n        ctypes",
        1,
    )
    parent = subprocess.Popen([sys.executable, str(script)], stdin=subprocess.PIPE)
    assert parent.stdin is not None
    parent.stdin.write(recipe_of(source).text().encode())
    parent.stdin.close()
    try:
        servers.wait_until(lambda: mark.exists() and " " in mark.read_text(), "the call of the child")
    finally:
        parent.kill()
        parent.wait()
    for pid in mark.read_text().split():
        servers.wait_until(lambda pid=pid: not is_running(pid), "the end of the child and the fork server")


def is_running(pid: str) -> bool:
    """Return whether a process exists and has not ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
