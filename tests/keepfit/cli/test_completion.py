"""The completion of the command in real shells, with the TAB key."""

import fcntl
import os
import pty
import re
import select
import shutil
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

# How each shell is started without the configuration of the user, and how it reads the script of keepfit.
SHELLS = {
    "bash": (("--norc", "--noprofile", "-i"), 'eval "$(_KEEPFIT_COMPLETE=source_bash keepfit)"'),
    "zsh": (("-f", "-i"), 'autoload -Uz compinit; compinit -u -D; eval "$(_KEEPFIT_COMPLETE=source_zsh keepfit)"'),
    "fish": (("--no-config", "-i"), "_KEEPFIT_COMPLETE=source_fish keepfit | source"),
}
DEADLINE_S = 60.0
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]|\x1b[()=>][AB0]?|\x1b\][^\x07]*\x07")


@contextmanager
def shell(name: str, home: Path) -> Iterator[int]:
    """Run a shell on a terminal; yield the other end of the terminal."""
    controller, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
    folder = str(Path(sys.executable).parent)
    environment = {"PATH": f"{folder}:{os.environ['PATH']}", "HOME": str(home), "TERM": "xterm", "PS1": "$ "}
    process = subprocess.Popen(
        [str(shutil.which(name)), *SHELLS[name][0]], stdin=terminal, stdout=terminal, stderr=terminal,
        env=environment, cwd=home, start_new_session=True,
    )  # fmt: skip
    os.close(terminal)
    try:
        yield controller
    finally:
        process.kill()
        process.wait()
        os.close(controller)


def typed(terminal: int, text: str, until: str) -> None:
    """Type a text, and read what the shell shows up to a text."""
    os.write(terminal, text.encode())
    shown, deadline = "", time.monotonic() + DEADLINE_S
    while until not in ESCAPES.sub("", shown):
        assert time.monotonic() < deadline, shown
        if select.select([terminal], [], [], 1.0)[0]:
            shown += os.read(terminal, 65536).decode(errors="replace")


@pytest.mark.parametrize("name", [name for name in SHELLS if shutil.which(name)])
def test_tab_completes_commands_options_and_values(name: str, tmp_path: Path) -> None:
    """In each shell that is installed, TAB completes the name of a command, an option and a value of it."""
    with shell(name, tmp_path) as terminal:
        # The answer is not in what is typed.
        typed(terminal, f"{SHELLS[name][1]}; echo rea''dy\n", "ready")
        typed(terminal, "keepfit mod\t", "models ")
        typed(terminal, "--ha\t", "--hash ")
        # Ctrl-U empties the line.
        typed(terminal, "\x15keepfit top --sort in\t", "inbox")
