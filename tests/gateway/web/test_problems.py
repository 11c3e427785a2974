"""The table from error classes to status codes."""

import ast
import re
from http import HTTPStatus
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiohttp import web

from keepfit.errors import Fault, InboxFullError, InvalidError, KeepfitError, UnavailableError, from_name
from keepfit.jobs import messages
from keepfit_gateway.web.problems import RETRY_AFTER_S, STATUS, problem_of, status_of

ROOT = Path(__file__).parents[3]
CLIENT_SIDE = [("keepfit", name) for name in ("cli", "client", "local", "transfer")]
# Numbers, and the hash of the model that the caller named.
HARMLESS = {
    "ANSWER_S", "PING_TIMEOUT_S", "WRITE_S_MAX", "PROBE_TIMEOUT_S", "corrupt", "len(retried.sequences)",
    "registered.hash", "live.hash", "model_hash", "error.strerror",
}  # fmt: skip


def tree(cls: type[KeepfitError]) -> list[type[KeepfitError]]:
    """Return a class and all its subclasses."""
    return [cls, *(found for sub in cls.__subclasses__() for found in tree(sub))]


@pytest.mark.parametrize("cls", tree(KeepfitError))
def test_every_error_class_has_a_status(cls: type[KeepfitError]) -> None:
    """Each class of the tree is in the table, and its problem document is named after it."""
    assert cls in STATUS
    error = cls("It went wrong.")
    answer = problem_of(error)
    assert answer.status == status_of(error) == STATUS[cls]
    assert isinstance(answer.body, bytes)
    document = msgspec.json.decode(answer.body)
    assert document["title"] == HTTPStatus(answer.status).phrase
    assert document["detail"] == "It went wrong."
    assert document["type"].removeprefix("urn:keepfit:problem:").replace("-", "") == (
        cls.__name__.removesuffix("Error").lower()
    )


def test_an_unlisted_subclass_has_the_status_of_its_base() -> None:
    """A class that is not in the table has the status of its base class."""

    class NarrowError(UnavailableError):
        pass

    assert status_of(NarrowError("")) == 503


def test_temporary_errors_have_retry_after() -> None:
    """Temporary errors have Retry-After: the value of the error, or one second."""
    assert problem_of(InboxFullError("", retry_after_s=7)).headers["Retry-After"] == "7"
    assert problem_of(UnavailableError("")).headers["Retry-After"] == str(RETRY_AFTER_S)
    assert "Retry-After" not in problem_of(InvalidError("")).headers


def test_an_address_is_for_administrators() -> None:
    """The address in an error's message is in the response only with the reason, also if a worker had the error."""
    error = UnavailableError("Redis is unavailable: 10.1.2.3:6379 refused.", "Redis is unavailable.")
    request = messages.WorkerRequest(1, "gateway", "0" * 64, "restore")
    reply = messages.decode_replies(messages.encode([messages.failed(request, error)]))[0]
    with pytest.raises(UnavailableError, match=re.escape("10.1.2.3:6379")) as from_worker:
        reply.raise_error()
    for each in (error, from_worker.value):
        assert detail(problem_of(each)) == "Redis is unavailable."
        assert detail(problem_of(each, with_reason=True)) == str(error)


def test_a_message_of_unknown_words_is_for_administrators() -> None:
    """An error that another process reported without words gives a general detail."""
    error = from_name("UnavailableError", "The folder /srv/secret does not exist.")
    assert "/srv" not in detail(problem_of(error))


def test_messages_with_values_have_words() -> None:
    """In code that runs behind a gateway, a message with a path or an address has words without it."""
    found = []
    for package in ("keepfit", "gateway", "workers", "snapshotter"):
        for path in sorted((ROOT / package).rglob("*.py")):
            if path.relative_to(ROOT).parts[:2] in CLIENT_SIDE:
                continue
            for call in ast.walk(ast.parse(path.read_text())):
                if isinstance(call, ast.Call) and getattr(call.func, "id", "") in (
                    "UnavailableError",
                    "CorruptLogError",
                ):
                    message = call.args[0]
                    values = {ast.unparse(v.value) for v in ast.walk(message) if isinstance(v, ast.FormattedValue)}
                    if values - HARMLESS and len(call.args) == 1:
                        found.append((path.name, call.lineno, values))
    assert found == []


def detail(answer: web.Response) -> Any:
    """Return the detail of a problem document."""
    assert isinstance(answer.body, bytes)
    return msgspec.json.decode(answer.body)["detail"]


def test_faults_are_listed_with_row_and_column() -> None:
    """A fault has its row and column if they are known, including row 0."""
    answer = problem_of(InvalidError("Wrong.", [Fault("bad", 0, "year"), Fault("worse")]))
    assert isinstance(answer.body, bytes)
    assert msgspec.json.decode(answer.body)["errors"] == [
        {"detail": "bad", "row": 0, "column": "year"},
        {"detail": "worse"},
    ]
