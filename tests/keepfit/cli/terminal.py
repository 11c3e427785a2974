"""Run the command on a terminal of a given width, and split what it prints."""

import fcntl
import os
import pty
import re
import struct
import termios
from collections.abc import Mapping
from pathlib import Path

from tests import fork_server

# Titles of columns are bold. NO_COLOR removes colours, so that all other escape sequences are those of a user.
TITLE_STYLE = re.compile(r"\x1b\[[01]m")


def rows_of(printed: str) -> list[list[str]]:
    """Return the cells of the rows of a table that was printed to a pipe, without its titles."""
    return [line.split("\t") for line in printed.splitlines()[1:]]


def on_terminal(
    *words: str, cwd: Path, variables: Mapping[str, str] | None = None, columns: int = 80, notes: bool = False
) -> str:
    """Run `keepfit` with its output on a terminal of this many columns; return its results, without styles.

    With `notes` also what it prints on standard error.
    """
    controller, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    inherited = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "FORCE_COLOR")}
    environment = {**inherited, "TERM": "xterm", "NO_COLOR": "1", **(variables or {})}
    with open(os.devnull, "wb") as nothing:
        files = (terminal, terminal, terminal if notes else nothing.fileno())
        process = fork_server.start(words, cwd, environment, files)
    os.close(terminal)
    printed = b""
    while True:
        try:
            piece = os.read(controller, 65536)
        except OSError:  # the process has closed the terminal
            break
        if not piece:
            break
        printed += piece
    os.close(controller)
    process.wait(60)
    return TITLE_STYLE.sub("", printed.decode().replace("\r\n", "\n"))
