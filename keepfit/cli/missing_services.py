"""Commands where the packages of the services are not installed: one sentence says what to install.

Owns that sentence and its exit code. A command imports what it needs when it runs, before it changes anything, so the
first import that fails ends it. Invariant: a module that is missing although all packages of the services are installed
is a bug, and is reported as one.
"""

import functools
from collections.abc import Callable
from typing import Any

from keepfit import extras
from keepfit.cli.output import print_error

# As for wrong usage: repeated, the command fails again.
NOT_INSTALLED = 2


def explained(command: Callable[..., Any], name: str, install: tuple[str, ...]) -> Callable[..., Any]:
    """Return `command`, called `name`, which ends with one sentence where the services are not installed.

    `install` are the extras that it needs.
    """

    @functools.wraps(command)
    def run(*words: Any, **options: Any) -> Any:
        try:
            return command(*words, **options)
        except ModuleNotFoundError as error:
            if extras.has_services():
                raise
            print_error(
                f"`keepfit {name}` needs packages that are not installed here, {error.name} for one: "
                f"{extras.install(*install)}."
            )
            raise SystemExit(NOT_INSTALLED) from None

    return run
