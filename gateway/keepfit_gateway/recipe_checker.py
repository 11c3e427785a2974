"""Client of the process that checks recipes: building an estimator needs scikit-learn, which takes 130 MB.

Owns that process. It starts with the first check, serves one gateway, and ends after an idle time or with the gateway.
Never builds an estimator itself. Invariants: :func:`check` accepts and refuses what
:func:`keepfit.model.recipe_check.check` does, with the same messages, and :func:`check_change` what
:func:`keepfit.model.parameters.check` does. For each check one line goes to the process, the JSON of a recipe or a word
and the JSON of a change, and one line with the verdict comes back.
"""

import asyncio
import atexit
import json
import os
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

from keepfit import child_environment, errors
from keepfit.errors import MalformedError, UnavailableError
from keepfit.recipe.patch import CHANGE
from keepfit.recipe.recipe import Recipe, parse
from keepfit.security.envelope import Keyring

# Named by text only: the gateway never imports code that builds estimators.
CHECKER_MODULE = "keepfit.model.recipe_check"
# Long enough for a person who tries recipes by hand. Starting the process takes one or two seconds.
IDLE_S = 120.0
ANSWER_S_MAX = 30.0
# Services create many models from one recipe, so verdicts are cached. A typical recipe has a few kilobytes.
CACHED_MAX = 256
CACHED_LENGTH_MAX = 16_384


class CheckerProcess:
    """The checker process. Its methods may be called from any thread."""

    def __init__(self, idle_s: float = IDLE_S) -> None:
        self._idle_s = idle_s
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._pipe: BufferedRWPair | None = None
        self._timer: threading.Timer | None = None

    @property
    def pid(self) -> int | None:
        """Process id; None if the process is not running."""
        return None if self._process is None else self._process.pid

    def ask(self, line: bytes) -> str:
        """Send one line of JSON. Return the line of the answer.

        Raises
        ------
        UnavailableError
            If the process died twice, or did not answer within 30 s.
        """
        with self._lock:
            self._cancel_timer()
            answer = self._exchange(line)
            if not answer:
                # The kernel may have killed the idle process long ago to free memory. A check can be repeated.
                self._kill()
                answer = self._exchange(line)
            if not answer:
                self._kill()
                raise UnavailableError("The recipe could not be checked just now; try again.")
            self._timer = threading.Timer(self._idle_s, self.close)
            self._timer.daemon = True
            self._timer.start()
            return answer.decode()

    def close(self) -> None:
        """End the process. The next check starts a new one."""
        with self._lock:
            self._cancel_timer()
            self._kill()

    def _exchange(self, line: bytes) -> bytes:
        """Send a line and return the answer; empty if the process is dead or does not answer in time."""
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
            # -P: a module in the working directory of the gateway must not shadow an installed one.
            command = [sys.executable, "-P", "-m", CHECKER_MODULE]
            # It builds what clients describe, so it has none of the gateway's secrets.
            variables = child_environment.basic(os.environ)
            self._process = subprocess.Popen(command, stdin=theirs.fileno(), stdout=theirs.fileno(), env=variables)
            pipe = self._pipe = ours.makefile("rwb")
            return pipe

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _kill(self) -> None:
        # The process has no state worth saving, so it needs no graceful shutdown.
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        if self._pipe is not None:
            with suppress(OSError):
                self._pipe.close()
        self._process = self._pipe = None


CHECKER = CheckerProcess()
# One recipe at a time, and in no thread that parses bodies: checking an unusual recipe may take long.
THREAD = ThreadPoolExecutor(1, "checking")
atexit.register(CHECKER.close)


async def check(document: Any, keyring: Keyring | None = None) -> Recipe:
    """Check a posted recipe and return it. Takes one or two seconds if the process has to be started.

    `keyring` has the upload keys, None if no objects are accepted.

    Raises
    ------
    InvalidError, MalformedError
        With what is wrong and what would be right.
    UnavailableError
        If it could not be checked.
    """
    return await asyncio.get_running_loop().run_in_executor(THREAD, check_blocking, document, keyring)


def check_blocking(document: Any, keyring: Keyring | None = None) -> Recipe:
    """Check a posted recipe and return it. Blocks; :func:`check` calls it in a thread."""
    if isinstance(document, dict) and document.get("object") is not None:
        # An object is verified, not built: nothing is unpickled here, and the upload keys stay in this process.
        return parse(document, keyring)
    verdict = _ask("", document)
    return msgspec.convert({**document, **verdict}, Recipe)


def _ask(word: str, document: Any) -> Any:
    """Return the verdict of the process about a document, and raise the error that it reports."""
    try:
        line = word + json.dumps(document)
    except RecursionError:
        raise MalformedError("The recipe is nested too deeply.") from None
    verdict = json.loads(_ask_cached(line) if len(line) <= CACHED_LENGTH_MAX else CHECKER.ask(line.encode()))
    if "error" in verdict:
        raise errors.from_name(verdict["error"], verdict["detail"])
    return verdict


async def check_change(recipe: Recipe, changed: Mapping[str, Any], params: Mapping[str, Any]) -> dict[str, Any]:
    """Check a change of parameters. Return the parameters in the form to store; raise as :func:`check` does."""
    document = [json.loads(recipe.text()), changed, params]
    verdict = await asyncio.get_running_loop().run_in_executor(THREAD, _ask, CHANGE, document)
    checked: dict[str, Any] = verdict["params"]
    return checked


@lru_cache(CACHED_MAX)
def _ask_cached(line: str) -> str:
    return CHECKER.ask(line.encode())
