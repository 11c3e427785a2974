"""The seed of Python's string hashes: the same in every process that learns.

Python orders sets of text by their hashes, which differ from process to process unless PYTHONHASHSEED is set before
Python starts. A River model, or another object, that adds or draws in that order would then learn something else in
each worker, and `exact` would not be exact.

Owns the value of the seed (the user's PYTHONHASHSEED, or 0), and the restart of a process that has none or another one.
Never changes what a process has computed: it is called before anything starts. Entry points call it: the `keepfit`
command, the supervisor, and the process that replays logged requests at a restore.
"""

import multiprocessing
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from keepfit.errors import SettingsError

NAME = "PYTHONHASHSEED"
DEFAULT = "0"
# The largest number that Python accepts.
SEED_MAX = 2**32 - 1
# A value that Python accepts, and that several processes cannot share: it counts as not set.
RANDOM = "random"
# Set for the program that replaces this one, with the process id, which stays the same.
RESTARTED_PID = "_KEEPFIT_RESTARTED_PID"
PROBE = "keepfit"
VALUE_SHOWN_MAX = 40
# In a process that was forked later, `os.getpid` differs.
_STARTED_PID = os.getpid()


def chosen(env_file: Path | None = None) -> str:
    """Return the seed: the environment's, or else that of `env_file`, or else 0.

    Raises
    ------
    SettingsError
        If a value is neither a number that Python accepts nor `random`.
    """
    set_by_user = _checked(os.environ.get(NAME, ""), "the environment")
    if set_by_user:
        return set_by_user
    try:
        lines = [] if env_file is None else env_file.read_text().splitlines()
    except (OSError, UnicodeDecodeError):
        lines = []
    stored = next((line.removeprefix(f"{NAME}=") for line in lines if line.startswith(f"{NAME}=")), DEFAULT)
    return _checked(stored, str(env_file)) or DEFAULT


def _checked(value: str, where: str) -> str:
    """Return the number `value` without leading zeros; "" if there is none."""
    if value in ("", RANDOM):
        return ""
    if not (value.isascii() and value.isdecimal() and len(value) <= len(str(SEED_MAX)) and int(value) <= SEED_MAX):
        shown = value if len(value) <= VALUE_SHOWN_MAX else value[:VALUE_SHOWN_MAX] + "..."
        raise SettingsError(f"{NAME} in {where} must be a number from 0 to {SEED_MAX}, not {shown!r}.")
    return str(int(value))


def set_for_children(env_file: Path | None = None) -> None:
    """Set the seed for the processes that this one starts; raises what :func:`chosen` raises."""
    os.environ[NAME] = chosen(env_file)


def is_fixed(seed: str) -> bool:
    """Return whether this process has the hashes of `seed`."""
    if seed == DEFAULT:
        return not sys.flags.hash_randomization
    # A process cannot tell its seed, and the variable may have been set after it started.
    command = [sys.executable, "-S", "-c", f"print(hash({PROBE!r}))"]
    probed = subprocess.run(command, env={**os.environ, NAME: seed}, capture_output=True, check=True, text=True)
    return int(probed.stdout) == hash(PROBE)


def restart_unless_fixed(
    arguments: list[str], variables: Mapping[str, str] | None = None, env_file: Path | None = None
) -> None:
    """Replace this process by the same program with the chosen seed, unless it has that seed already.

    A program that cannot be run again (it is a fork, or was read from standard input) is replaced by `keepfit` with
    `arguments`, and with `variables` in its environment.

    Raises
    ------
    SettingsError
        If a value of the seed is invalid, or Python ignores it.
    """
    set_for_children(env_file)
    seed = os.environ[NAME]
    if is_fixed(seed):
        return
    if os.environ.get(RESTARTED_PID) == str(os.getpid()):
        raise SettingsError(f"{sys.executable} ignores {NAME}={seed}; start it without -E and -I.")
    environment = {**os.environ, RESTARTED_PID: str(os.getpid())}
    if _can_run_again():
        command = [sys.executable, *sys.orig_argv[1:]]
        if not sys.flags.safe_path:
            # Set for children by now: with it, `python -m` would not find a program in the working directory.
            environment.pop("PYTHONSAFEPATH", None)
    else:
        command = [sys.executable, "-P", "-m", "keepfit", *arguments]
        environment.update(variables or {})
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(sys.executable, command, environment)  # noqa: S606 - the same program, or keepfit # nosec B606


def _can_run_again() -> bool:
    """Return whether the program of this process is its own, and can be started a second time by its arguments."""
    is_main = multiprocessing.parent_process() is None and os.getpid() == _STARTED_PID
    has_source = hasattr(sys.modules["__main__"], "__file__") or "-c" in sys.orig_argv
    return is_main and has_source and not sys.flags.ignore_environment
