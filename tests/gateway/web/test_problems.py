"""The table from our errors to status codes: complete, and the same for all of a kind."""

from http import HTTPStatus

import msgspec
import pytest

from keepfit.errors import Fault, InboxFullError, InvalidError, KeepfitError, UnavailableError
from keepfit_gateway.web.problems import RETRY_AFTER_S, STATUS, problem_of, status_of


def tree(cls: type[KeepfitError]) -> list[type[KeepfitError]]:
    """Return a class and all below it."""
    return [cls, *(found for sub in cls.__subclasses__() for found in tree(sub))]


@pytest.mark.parametrize("cls", tree(KeepfitError))
def test_every_error_has_its_answer(cls: type[KeepfitError]) -> None:
    """Each class of the tree stands in the table itself, and its answer is a problem named after it."""
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


def test_an_error_not_in_the_table_is_answered_like_its_nearest_kind() -> None:
    """A class made later is answered like the one that it derives from."""

    class NarrowError(UnavailableError):
        pass

    assert status_of(NarrowError("")) == 503


def test_where_it_helps_an_answer_says_when_to_come_back() -> None:
    """What passes by itself has Retry-After: the error's own, or a second."""
    assert problem_of(InboxFullError("", retry_after_s=7)).headers["Retry-After"] == "7"
    assert problem_of(UnavailableError("")).headers["Retry-After"] == str(RETRY_AFTER_S)
    assert "Retry-After" not in problem_of(InvalidError("")).headers


def test_faults_are_listed_with_what_is_known_of_them() -> None:
    """A fault's row and column are there where they are known, row 0 too."""
    answer = problem_of(InvalidError("Wrong.", [Fault("bad", 0, "year"), Fault("worse")]))
    assert isinstance(answer.body, bytes)
    assert msgspec.json.decode(answer.body)["errors"] == [
        {"detail": "bad", "row": 0, "column": "year"},
        {"detail": "worse"},
    ]
