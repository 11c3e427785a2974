"""Log setup of the command line: JSON for services, plain text for people.

Owns structlog's configuration, and the way of records of the standard library's logging, and of Python's warnings, into
it: RQ and other libraries write them. Of these the log has the template without its arguments, which may be those of a
job. Invariant: a log holds no key, no password and no value of a row;
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
from keepfit.observability.printable import printable

log = structlog.get_logger(__name__)

# By method of a log.
LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40, "exception": 40, "critical": 50}
# Logged at any level: `keepfit up`, and other supervisors, wait for them.
READY_EVENTS = frozenset({"gateway_listening", "snapshotter_started", "worker_started"})


class LibraryHandler(logging.Handler):
    """Logs the records of libraries as events."""

    def emit(self, record: logging.LogRecord) -> None:
        """Log the first line of the template of a record, and its exception."""
        text = str(record.msg).partition("\n")[0]
        if record.name == "py.warnings":
            # Python formats a warning as "file:line: class: message".
            text = ": ".join(text.split(": ")[:2])
        log.warning(
            "library_logged", logger=record.name, severity=record.levelname, text=text, exc_info=record.exc_info
        )


class LevelFilter:
    """A processor that drops events below a level, except for :data:`READY_EVENTS`."""

    def __init__(self, level: str) -> None:
        self._least = LEVELS[level]

    def __call__(self, logger: Any, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        """Return an event that is to be logged."""
        if LEVELS[method] < self._least and event["event"] not in READY_EVENTS:
            raise structlog.DropEvent
        return event


def configure_json(level: str = "info") -> None:
    """Log one JSON document per line to standard error, from a level on (``info``, ``warning``, ``error``)."""
    structlog.configure(
        processors=[
            LevelFilter(level),
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
    if not any(isinstance(handler, LibraryHandler) for handler in logging.root.handlers):
        logging.root.addHandler(LibraryHandler())
    logging.captureWarnings(capture=True)


def configure_plain() -> None:
    """Log warnings and errors as plain text to standard error. For commands that a person runs."""
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            _escape_control_characters,
            structlog.dev.ConsoleRenderer(colors=False),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )


def _escape_control_characters(logger: Any, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Escape what a terminal obeys, in texts that users wrote or that quote them; JSON escapes it on its own."""
    return {name: printable(value) if isinstance(value, str) else value for name, value in event.items()}


def _hide_values(logger: Any, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Replace the messages of errors in a traceback, except keepfit's and the system's: they may quote a row."""
    found = event.get("exception")
    for raised in found if isinstance(found, list) else ():
        cls = getattr(builtins, raised["exc_type"], None) or getattr(errors, raised["exc_type"], None)
        if not (isinstance(cls, type) and issubclass(cls, OSError | KeepfitError)):
            raised["exc_value"] = "(not shown)"
    return event
