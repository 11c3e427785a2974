"""Progress of an operation over many models, reported to a callback.

Owns the type of the callback. Never prints.
"""

from collections.abc import Callable

# Called with (done, total) after each step.
Progress = Callable[[int, int], None]


def no_progress(done: int, total: int) -> None:
    """Show nothing."""
