"""Questions and answers on the wire between gateways and workers."""

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keepfit import errors
from keepfit.errors import InvalidError, KeepfitError, NotFoundError
from keepfit.jobs import messages
from keepfit.jobs.messages import WorkerReply, WorkerRequest
from keepfit.recipe.recipe import parse
from keepfit.rows.rows import Rows
from keepfit.rows.shaping import shape

OURS = sorted(name for name, cls in vars(errors).items() if isinstance(cls, type) and issubclass(cls, KeepfitError))
ROWS = shape(parse({"estimator": "SGDRegressor"}), [[1.0, -0.0], [5e-324, 1e38]], learning=False)

texts = st.text(max_size=10)
counts = st.integers(0, 2**62)
rows = st.builds(
    Rows,
    n=counts,
    numbers=st.binary(max_size=20),
    categories=st.lists(st.lists(texts | st.integers(-(2**53), 2**53), max_size=3), max_size=3),
    y=st.none() | st.binary(max_size=20) | st.lists(texts, max_size=3),
    sample_weight=st.none() | st.binary(max_size=20),
)
results = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None)
@given(
    st.builds(
        WorkerRequest,
        id=counts,
        gateway=texts,
        hash=texts,
        operation=st.sampled_from(["predict", "proba", "score", "restore"]),
        generation=counts,
        rows=st.none() | rows,
        rows_key=texts,
    )
)
def test_a_question_arrives_as_it_was_asked(question: WorkerRequest) -> None:
    """Every field, and every byte of the rows, survives the wire."""
    assert messages.decode_request(messages.encode(question)) == question


@settings(deadline=None)
@given(
    st.lists(
        st.builds(
            WorkerReply,
            id=counts,
            generation=counts,
            version=counts,
            rows_seen=counts,
            result=results,
            error=st.none() | st.tuples(texts, texts),
        ),
        max_size=4,
    )
)
def test_answers_arrive_as_they_were_given(answers: list[WorkerReply]) -> None:
    """A batch of answers survives the wire, floats to the last bit."""
    assert messages.decode_replies(messages.encode(answers)) == answers


def test_rows_keep_their_bits() -> None:
    """Signed zeros, subnormal numbers and the largest allowed ones come out as they went in."""
    question = WorkerRequest(1, "g", "h", "predict", 2, ROWS)
    arrived = messages.decode_request(messages.encode(question)).rows
    assert arrived is not None
    assert arrived.number_matrix().tobytes() == ROWS.number_matrix().tobytes()


@pytest.mark.parametrize("operation", ["fit", "", "os.system", 1, None])
def test_no_other_operation_is_understood(operation: Any) -> None:
    """A question for anything else than the four operations cannot be decoded."""
    data = msgspec.msgpack.encode([1, "gateway", "hash", operation, 0, None, ""])
    with pytest.raises(msgspec.ValidationError):
        messages.decode_request(data)


@pytest.mark.parametrize("name", OURS)
def test_errors_cross_as_what_they_are(name: str) -> None:
    """An error of our tree is raised in the gateway as the class that the worker met, with its message."""
    question = WorkerRequest(7, "gateway", "hash", "predict")
    error = getattr(errors, name)("what was wrong")
    (answer,) = messages.decode_replies(messages.encode([messages.failed(question, error)]))
    assert answer.id == 7
    with pytest.raises(KeepfitError, match=r"^what was wrong$") as caught:
        answer.raise_error()
    assert type(caught.value) is type(error)


def test_an_answer_without_error_raises_nothing() -> None:
    """raise_error() is silent where there is a result."""
    WorkerReply(1, result=[1.0]).raise_error()


@pytest.mark.parametrize("name", ["SystemExit", "Fault", "Sequence", "dataclass", "__name__", "", "NoSuchError"])
def test_an_unknown_error_is_one_of_ours(name: str) -> None:
    """A name that is no class of our tree, whatever else it may name, becomes a plain KeepfitError."""
    with pytest.raises(KeepfitError, match=r"^message$") as caught:
        WorkerReply(1, error=(name, "message")).raise_error()
    assert type(caught.value) is KeepfitError


def test_an_error_keeps_its_class_and_loses_its_faults() -> None:
    """Faults are found by the gateway before it asks; what a worker finds has a message only."""
    question = WorkerRequest(1, "gateway", "hash", "score")
    answer = messages.failed(question, InvalidError("wrong", [errors.Fault("x", 1)]))
    with pytest.raises(InvalidError) as caught:
        answer.raise_error()
    assert caught.value.faults == ()
    assert messages.failed(question, NotFoundError("gone")).error == ("NotFoundError", "gone")
