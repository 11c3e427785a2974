"""The error tree: its drawing is complete, and the gateway maps every class."""

import copy
import inspect
import pickle
import re

import pytest

from keepfit import errors
from keepfit.errors import Fault, InboxFullError, InvalidError, KeepfitError, UnknownKeyError
from keepfit_gateway.web.problems import STATUS, status_of

CLASSES = {name: cls for name, cls in vars(errors).items() if inspect.isclass(cls) and issubclass(cls, BaseException)}
# "    ├── NotFoundError            no such model"
BRANCH = re.compile(r"^ {4}([│ ├└─]*)(\w+Error)(?: +(\S.*))?$", re.MULTILINE)


def drawn() -> dict[str, tuple[int, str]]:
    """Return depth and description of every class in the tree of the docstring."""
    found = BRANCH.findall(errors.__doc__ or "")
    return {name: (len(indent) // 4, text) for indent, name, text in found}


def test_the_tree_lists_every_class_and_no_other() -> None:
    """The tree in the docstring of the module lists exactly the classes of the module."""
    assert drawn().keys() == CLASSES.keys()


def test_the_tree_shows_the_inheritance() -> None:
    """Each class is drawn below its base class."""
    above: list[str] = []
    for name, (depth, text) in drawn().items():
        del above[depth:]
        base = CLASSES[name].__base__
        assert base is not None
        assert base.__name__ == (above[-1] if above else "Exception")
        assert text or name == "KeepfitError"
        above.append(name)


@pytest.mark.parametrize("name", sorted(CLASSES))
def test_every_class_has_a_status(name: str) -> None:
    """The gateway maps each class itself, not only its base, to an error status."""
    cls = CLASSES[name]
    assert issubclass(cls, KeepfitError)
    assert STATUS[cls] in {400, 401, 403, 404, 409, 413, 422, 429, 500, 503, 504}
    assert status_of(cls("x")) == STATUS[cls]


def test_the_status_table_has_no_other_class() -> None:
    """The status table of the gateway holds only classes of the tree."""
    assert set(STATUS) == set(CLASSES.values())


def test_status_codes_are_the_documented_ones() -> None:
    """Each class has the status code that clients rely on."""
    assert {cls.__name__: status for cls, status in STATUS.items() if status != 500} == {
        "MalformedError": 400,
        "UnauthorizedError": 401,
        "ForbiddenError": 403,
        "ForeignOriginError": 403,
        "NotFoundError": 404,
        "ConflictError": 409,
        "NotConfirmedError": 409,
        "StaleModelError": 409,
        "TooLargeError": 413,
        "InvalidError": 422,
        "IdempotencyError": 422,
        "LearningError": 422,
        "UnstorableError": 422,
        "OverloadedError": 429,
        "InboxFullError": 429,
        "OpenRowsFullError": 429,
        "QueueFullError": 429,
        "QuotaError": 429,
        "RateLimitError": 429,
        "UnavailableError": 503,
        "CorruptBundleError": 503,
        "CorruptLogError": 503,
        "RuntimeMismatchError": 503,
        "DeadlineError": 504,
    }


def test_an_unmapped_subclass_has_the_status_of_its_base() -> None:
    """A new subclass has the status of its base class until it is mapped."""

    class NarrowError(errors.NotFoundError):
        """Below NotFoundError."""

    assert status_of(NarrowError("x")) == 404
    assert status_of(UnknownKeyError("x")) == 500


def test_errors_carry_no_status_code() -> None:
    """The error module and its classes contain no status code."""
    text = inspect.getsource(errors)
    assert not re.search(r"\b[45]\d\d\b", text)
    assert not [name for cls in CLASSES.values() for name in vars(cls) if "status" in name.lower()]


def test_faults_have_row_and_column() -> None:
    """InvalidError stores its faults, with row and column, as an immutable tuple."""
    faults = [Fault("x is not a number", 3, "year"), Fault("y")]
    error = InvalidError("message", faults)
    faults.clear()
    assert str(error) == "message"
    assert error.faults == (Fault("x is not a number", row=3, column="year"), Fault("y", row=None, column=None))
    assert InvalidError("message").faults == ()
    with pytest.raises(AttributeError):
        error.faults[0].row = 4  # type: ignore[misc]


def test_an_overload_error_has_a_retry_time() -> None:
    """InboxFullError carries a retry time of at least one second."""
    assert InboxFullError("full").retry_after_s == 1
    assert InboxFullError("full", retry_after_s=7).retry_after_s == 7


@pytest.mark.parametrize("name", sorted(CLASSES))
def test_errors_can_be_copied_and_pickled(name: str) -> None:
    """Every error keeps its class and message when it is copied or pickled, as multiprocessing and loggers do."""
    error = CLASSES[name]("the cause")
    for again in (copy.copy(error), pickle.loads(pickle.dumps(error))):
        assert type(again) is type(error)
        assert str(again) == "the cause"


@pytest.mark.parametrize("name", sorted(CLASSES))
def test_an_error_is_made_from_its_name(name: str) -> None:
    """Every class can be raised again from its name and message, as they come from another process."""
    error = errors.from_name(name, "the cause")
    assert (type(error), str(error)) == (CLASSES[name], "the cause")


@pytest.mark.parametrize("name", ["ValueError", "NoSuchError", "Fault", "from_name", ""])
def test_an_unknown_name_becomes_a_plain_error(name: str) -> None:
    """A name that is not a class of the tree gives a KeepfitError with the message."""
    error = errors.from_name(name, "the cause")
    assert (type(error), str(error)) == (KeepfitError, "the cause")
