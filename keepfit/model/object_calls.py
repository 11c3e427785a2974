"""Calls of an uploaded object's methods: what they raise, and which arguments they accept.

Never calls a method itself. Invariant: whatever an object raises is an error of the request, and ends no worker.
"""

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from keepfit.errors import LearningError, describe_error


@contextmanager
def only_exceptions() -> Iterator[None]:
    """Convert SystemExit, KeyboardInterrupt and the like to LearningError; signals of the worker raise none of them."""
    try:
        yield
    except Exception:
        raise
    except BaseException as error:  # noqa: BLE001 - an object may raise any exception
        raise LearningError(f"it raised {describe_error(error)}") from None


def parameters_of(method: Any) -> Sequence[str]:
    """Return the names of the parameters of `method`; none if they are unknown."""
    try:
        return list(inspect.signature(method).parameters)
    except (TypeError, ValueError):
        return []
