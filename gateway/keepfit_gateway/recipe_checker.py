"""Recipes, checked in a process of its own: building an estimator takes scikit-learn, and that takes 130 MB.

Owns that process: it starts when a recipe is to be checked, serves all of this gateway, and ends when none came for a
while or the gateway is gone. Never builds what learns. Invariant: what :func:`check` lets through is what
:func:`keepfit.model.recipe_check.check` lets through, in its words; so with :func:`check_change` and
:func:`keepfit.model.parameters.check`. One line goes each way for each recipe: its JSON, or a word and what a change is
judged by.
"""

import asyncio
import atexit
import json
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import lru_cache
from io import BufferedRWPair
from typing import Any

import msgspec

from keepfit import errors
from keepfit.errors import MalformedError, UnavailableError
from keepfit.recipe.patch import CHANGE
from keepfit.recipe.recipe import Recipe, parse
from keepfit.security.envelope import Keyring

# Named by text only: the gateway never imports what builds estimators.
CHECKER_MODULE = "keepfit.model.recipe_check"
# Long enough for somebody who tries out recipes by hand; a start takes a second or two.
IDLE_S = 120.0
ANSWER_S_MAX = 30.0
# Services make many models with one recipe; a posted one is a few kilobytes at most.
KEPT_MAX = 256
KEPT_LENGTH_MAX = 16_384


class Checker:
    """The process that checks; its calls may come from any thread."""

    def __init__(self, idle_s: float = IDLE_S) -> None:
        self._idle_s = idle_s
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._pipe: BufferedRWPair | None = None
        self._timer: threading.Timer | None = None

    @property
    def pid(self) -> int | None:
        """The process' id, while there is one."""
        return None if self._process is None else self._process.pid

    def ask(self, line: bytes) -> str:
        """Have one recipe checked, given and answered as a line of JSON.

        Raises
        ------
        UnavailableError
            If the process died of it, or did not answer in 30 s.
        """
        with self._lock:
            self._rest()
            answer = self._exchange(line)
            if not answer:
                # It may have been killed long ago, by whoever looks after memory; a check can be made twice.
                self._end()
                answer = self._exchange(line)
            if not answer:
                self._end()
                raise UnavailableError("The recipe could not be checked just now; try again.")
            self._timer = threading.Timer(self._idle_s, self.close)
            self._timer.daemon = True
            self._timer.start()
            return answer.decode()

    def close(self) -> None:
        """End the process; the next recipe starts another."""
        with self._lock:
            self._rest()
            self._end()

    def _exchange(self, line: bytes) -> bytes:
        """Send a line and return the one that came back; nothing where the process is dead or does not answer."""
        pipe = self._pipe or self._start()
        try:
            pipe.write(line + b"\n")
            pipe.flush()
            return pipe.readline()
        except OSError:
            return b""

    def _start(self) -> BufferedRWPair:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            ours.settimeout(ANSWER_S_MAX)
            # -P: no module of the folder that the gateway was started in is taken for one of ours.
            command = [sys.executable, "-P", "-m", CHECKER_MODULE]
            self._process = subprocess.Popen(command, stdin=theirs.fileno(), stdout=theirs.fileno())
            pipe = self._pipe = ours.makefile("rwb")
            return pipe

    def _rest(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _end(self) -> None:
        # What it does can be lost at any moment, so it is not asked.
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        if self._pipe is not None:
            with suppress(OSError):
                self._pipe.close()
        self._process = self._pipe = None


CHECKER = Checker()
# One recipe at a time, and never a thread that bodies are read in: the check of a strange recipe may take long.
THREAD = ThreadPoolExecutor(1, "checking")
atexit.register(CHECKER.close)


async def check(document: Any, keyring: Keyring | None = None) -> Recipe:
    """Check a posted recipe and return it; takes a second or two where the process is to be started.

    `keyring` has the upload keys, None where no objects are taken.

    Raises
    ------
    InvalidError, MalformedError
        With what is wrong and what would be right.
    UnavailableError
        If it could not be checked.
    """
    return await asyncio.get_running_loop().run_in_executor(THREAD, checked, document, keyring)


def checked(document: Any, keyring: Keyring | None = None) -> Recipe:
    """Check a posted recipe and return it, as :func:`check` does in a thread."""
    if isinstance(document, dict) and document.get("object") is not None:
        # Nothing of it is built, so that nothing is unpickled here; and the keys stay in this process.
        return parse(document, keyring)
    _answered("", document)
    return msgspec.convert(document, Recipe)


def _answered(word: str, document: Any) -> Any:
    """Have the process answer a document, and raise what it says is wrong."""
    try:
        line = word + json.dumps(document)
    except RecursionError:
        raise MalformedError("The recipe is nested too deeply.") from None
    said = json.loads(_kept(line) if len(line) <= KEPT_LENGTH_MAX else CHECKER.ask(line.encode()))
    if said is not None and "error" in said:
        raise errors.from_name(said["error"], said["detail"])
    return said


async def check_change(recipe: Recipe, changed: Mapping[str, Any], params: Mapping[str, Any]) -> dict[str, Any]:
    """Check a change of parameters and return it as it is kept; errors as in :func:`check`."""
    document = [json.loads(recipe.text()), changed, params]
    answer = await asyncio.get_running_loop().run_in_executor(THREAD, _answered, CHANGE, document)
    kept: dict[str, Any] = answer["kept"]
    return kept


@lru_cache(KEPT_MAX)
def _kept(line: str) -> str:
    return CHECKER.ask(line.encode())
