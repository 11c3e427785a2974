"""The table from error classes to status codes."""

from http import HTTPStatus

import msgspec
import pytest

from keepfit.errors import Fault, InboxFullError, InvalidError, KeepfitError, UnavailableError
from keepfit_gateway.web.problems import RETRY_AFTER_S, STATUS, problem_of, status_of


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


def test_faults_are_listed_with_row_and_column() -> None:
    """A fault has its row and column if they are known, including row 0."""
    answer = problem_of(InvalidError("Wrong.", [Fault("bad", 0, "year"), Fault("worse")]))
    assert isinstance(answer.body, bytes)
    assert msgspec.json.decode(answer.body)["errors"] == [
        {"detail": "bad", "row": 0, "column": "year"},
        {"detail": "worse"},
    ]
