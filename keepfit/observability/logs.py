"""Log setup of the command line: JSON for services, plain text for people.

Owns structlog's configuration. Never logs itself. Invariant: a log holds no key, no password and no value of a row;
tracebacks come without local variables, and the message of an unforeseen error is left out because it may quote a row.
Log events come from every package and go to standard error.
"""

import builtins
import logging
import sys
from collections.abc import MutableMapping
from typing import Any

import structlog

from keepfit import errors
from keepfit.errors import KeepfitError


def configure_json() -> None:
    """Log one JSON document per line to standard error, from level INFO. For services."""
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            # structlog shows local variables by default. Keys and URLs with passwords are among them.
            structlog.processors.ExceptionRenderer(structlog.tracebacks.ExceptionDictTransformer(show_locals=False)),
            _hide_values,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )


def configure_plain() -> None:
    """Log warnings and errors as plain text to standard error. For commands that a person runs."""
    structlog.configure(
        processors=[structlog.processors.add_log_level, structlog.dev.ConsoleRenderer(colors=False)],
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )


def _hide_values(logger: Any, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Replace the messages of errors in a traceback, except keepfit's and the system's: they may quote a row."""
    found = event.get("exception")
    for raised in found if isinstance(found, list) else ():
        cls = getattr(builtins, raised["exc_type"], None) or getattr(errors, raised["exc_type"], None)
        if not (isinstance(cls, type) and issubclass(cls, OSError | KeepfitError)):
            raised["exc_value"] = "(not shown)"
    return event
