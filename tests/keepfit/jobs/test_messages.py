"""Messages between gateways and workers: requests and replies on the wire."""

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

ERROR_NAMES = sorted(
    name for name, cls in vars(errors).items() if isinstance(cls, type) and issubclass(cls, KeepfitError)
)
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
def test_a_request_survives_encoding(message: WorkerRequest) -> None:
    """Every field and every byte of the rows are the same after encoding and decoding."""
    assert messages.decode_request(messages.encode(message)) == message


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
def test_replies_survive_encoding(replies: list[WorkerReply]) -> None:
    """A batch of replies is the same after encoding and decoding, floats to the last bit."""
    assert messages.decode_replies(messages.encode(replies)) == replies


def test_rows_keep_their_bits() -> None:
    """Signed zeros, subnormal numbers and the largest allowed ones are the same after encoding and decoding."""
    sent = WorkerRequest(1, "g", "h", "predict", 2, ROWS)
    received = messages.decode_request(messages.encode(sent)).rows
    assert received is not None
    assert received.number_matrix().tobytes() == ROWS.number_matrix().tobytes()


@pytest.mark.parametrize("operation", ["fit", "", "os.system", 1, None])
def test_an_unknown_operation_is_refused(operation: Any) -> None:
    """A request with any other operation than the declared ones cannot be decoded."""
    data = msgspec.msgpack.encode([1, "gateway", "hash", operation, 0, None, ""])
    with pytest.raises(msgspec.ValidationError):
        messages.decode_request(data)


@pytest.mark.parametrize("name", ERROR_NAMES)
def test_errors_keep_their_class_on_the_wire(name: str) -> None:
    """The gateway raises every keepfit error as the class that the worker raised, with its message."""
    sent = WorkerRequest(7, "gateway", "hash", "predict")
    error = getattr(errors, name)("what was wrong")
    (reply,) = messages.decode_replies(messages.encode([messages.failed(sent, error)]))
    assert reply.id == 7
    with pytest.raises(KeepfitError, match=r"^what was wrong$") as caught:
        reply.raise_error()
    assert type(caught.value) is type(error)


def test_a_reply_without_error_raises_nothing() -> None:
    """raise_error() returns if the reply has a result."""
    WorkerReply(1, result=[1.0]).raise_error()


@pytest.mark.parametrize("name", ["SystemExit", "Fault", "Sequence", "dataclass", "__name__", "", "NoSuchError"])
def test_an_unknown_error_becomes_a_keepfit_error(name: str) -> None:
    """A name that is not a keepfit error, whatever else it names in Python, becomes a plain KeepfitError."""
    with pytest.raises(KeepfitError, match=r"^message$") as caught:
        WorkerReply(1, error=(name, "message")).raise_error()
    assert type(caught.value) is KeepfitError


def test_an_error_keeps_its_class_and_loses_its_faults() -> None:
    """The gateway finds faults before it sends the request; an error of a worker has a message only."""
    sent = WorkerRequest(1, "gateway", "hash", "score")
    reply = messages.failed(sent, InvalidError("wrong", [errors.Fault("x", 1)]))
    with pytest.raises(InvalidError) as caught:
        reply.raise_error()
    assert caught.value.faults == ()
    assert messages.failed(sent, NotFoundError("gone")).error == ("NotFoundError", "gone")
