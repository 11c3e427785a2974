"""The tree of errors: drawn as it is, and known to the gateway."""

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
    """Depth and description of every class in the docstring's tree."""
    found = BRANCH.findall(errors.__doc__ or "")
    return {name: (len(indent) // 4, text) for indent, name, text in found}


def test_the_tree_names_every_class_and_no_other() -> None:
    """The tree in the module's docstring holds exactly the classes that the module has."""
    assert drawn().keys() == CLASSES.keys()


def test_the_tree_has_its_true_branches() -> None:
    """Each class stands below its real base class."""
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
    """The gateway maps each class itself, not only its base, to a status of an error."""
    cls = CLASSES[name]
    assert issubclass(cls, KeepfitError)
    assert STATUS[cls] in {400, 401, 403, 404, 409, 422, 429, 500, 503, 504}
    assert status_of(cls("x")) == STATUS[cls]


def test_the_table_has_no_other_class() -> None:
    """The gateway's table holds nothing that is not in the tree."""
    assert set(STATUS) == set(CLASSES.values())


def test_statuses_are_the_contract() -> None:
    """The status codes that clients rely on, by class."""
    assert {cls.__name__: status for cls, status in STATUS.items() if status != 500} == {
        "MalformedError": 400,
        "UnauthorizedError": 401,
        "ForbiddenError": 403,
        "NotFoundError": 404,
        "ConflictError": 409,
        "NotConfirmedError": 409,
        "StaleModelError": 409,
        "InvalidError": 422,
        "IdempotencyError": 422,
        "LearningError": 422,
        "UnstorableError": 422,
        "OverloadedError": 429,
        "InboxFullError": 429,
        "QueueFullError": 429,
        "RateLimitError": 429,
        "UnavailableError": 503,
        "CorruptBundleError": 503,
        "CorruptLogError": 503,
        "RuntimeMismatchError": 503,
        "DeadlineError": 504,
    }


def test_a_subclass_is_answered_as_its_base() -> None:
    """A class that somebody adds below another has that one's status until it has its own."""

    class NarrowError(errors.NotFoundError):
        """Below NotFoundError."""

    assert status_of(NarrowError("x")) == 404
    assert status_of(UnknownKeyError("x")) == 500


def test_the_library_knows_nothing_of_http() -> None:
    """No error carries a status code."""
    text = inspect.getsource(errors)
    assert not re.search(r"\b[45]\d\d\b", text)
    assert not [name for cls in CLASSES.values() for name in vars(cls) if "status" in name.lower()]


def test_faults_say_where() -> None:
    """InvalidError keeps its faults, with row and column, as an immutable tuple."""
    faults = [Fault("x is not a number", 3, "year"), Fault("y")]
    error = InvalidError("message", faults)
    faults.clear()
    assert str(error) == "message"
    assert error.faults == (Fault("x is not a number", row=3, column="year"), Fault("y", row=None, column=None))
    assert InvalidError("message").faults == ()
    with pytest.raises(AttributeError):
        error.faults[0].row = 4  # type: ignore[misc]


def test_a_full_inbox_says_when_to_try_again() -> None:
    """InboxFullError carries a wait of at least a second."""
    assert InboxFullError("full").retry_after_s == 1
    assert InboxFullError("full", retry_after_s=7).retry_after_s == 7


@pytest.mark.parametrize("name", sorted(CLASSES))
def test_errors_survive_a_copy(name: str) -> None:
    """Every error can be copied and pickled, as multiprocessing and loggers do it, and keeps its message."""
    error = CLASSES[name]("what was wrong")
    for again in (copy.copy(error), pickle.loads(pickle.dumps(error))):
        assert type(again) is type(error)
        assert str(again) == "what was wrong"
