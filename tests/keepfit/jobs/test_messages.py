"""Messages between gateways and workers: requests and replies on the wire."""

import itertools
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


@given(results)
def test_a_result_as_json_is_its_json_text(result: Any) -> None:
    """A reply to a request for JSON has the text of its result; one with an error is not changed."""
    (reply,) = messages.decode_replies(b"\x91" + messages.encode_reply(WorkerReply(3, result=result), as_json=True))
    assert reply.result == msgspec.json.encode(result)
    failure = messages.failed(WorkerRequest(3, "g", "h", "predict"), errors.InvalidError("what was wrong"))
    assert messages.encode_reply(failure, as_json=True) == messages.encode(failure)


SURROGATE = "\ud800"


def nested(depth: int) -> Any:
    """Return a list of lists."""
    found: Any = 1.0
    for _ in range(depth):
        found = [found]
    return found


@pytest.mark.parametrize(
    "result",
    [[SURROGATE], {"predictions": ["a"], "classes": [SURROGATE]}, [{None: 2**70}], [object()], {"scores": [object]}],
    ids=["surrogate", "surrogate in classes", "key and integer", "object", "class"],
)
@pytest.mark.parametrize("as_json", [False, True])
def test_a_reply_that_has_no_encoding_is_an_error_of_its_request(result: Any, as_json: bool) -> None:
    """What msgpack or JSON cannot hold becomes an error with the same id, which any gateway can read."""
    (reply,) = messages.decode_replies(b"\x91" + messages.encode_reply(WorkerReply(3, result=result), as_json=as_json))
    assert reply.id == 3
    with pytest.raises(errors.InvalidError, match="The model answers what cannot be sent"):
        reply.raise_error()


def test_an_error_whose_message_has_no_encoding_is_sent() -> None:
    """The message of an object's exception may have half a character; it is sent with an escape."""
    request = WorkerRequest(3, "g", "h", "predict")
    data = messages.encode_reply(messages.failed(request, errors.InvalidError(f"what {SURROGATE} is")))
    (reply,) = messages.decode_replies(b"\x91" + data)
    with pytest.raises(errors.InvalidError, match=r"^what \\ud800 is$"):
        reply.raise_error()


def test_an_answer_that_the_gateway_could_not_read_is_not_sent() -> None:
    """Whatever depth of lists a worker can encode, the gateway can decode; deeper ones are an error of the request."""
    for depth in (10, 500, 5_000, 200_000):
        data = messages.encode_reply(WorkerReply(3, result=[nested(depth)]))
        (reply,) = messages.decode_replies(b"\x91" + data)
        assert msgspec.json.encode(reply.result) if reply.error is None else reply.error[0] == "InvalidError"


def test_an_answer_above_the_limit_of_bytes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A long list is measured before it is encoded: a million rows may share one long label."""
    monkeypatch.setattr(messages, "ANSWER_BYTES_MAX", 1 << 16)
    largest: list[int] = []
    encode = messages.encode
    monkeypatch.setattr(messages, "encode", lambda value: largest.append(len(found := encode(value))) or found)
    too_large = (["x" * 1000] * 100_000, {"predictions": [1], "scores": [1.5] * 20_000}, ["x" * 70_000])
    for result, as_json in itertools.product(too_large, (False, True)):
        data = messages.encode_reply(WorkerReply(3, result=result), as_json=as_json)
        (reply,) = messages.decode_replies(b"\x91" + data)
        with pytest.raises(errors.TooLargeError, match="send fewer rows at once"):
            reply.raise_error()
    assert max(largest) < 5_000_000


@pytest.mark.parametrize("count", [4_096, 4_097, 8_192, 10_000])
def test_a_long_list_is_encoded_once(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its JSON text is made of pieces, and equals that of the whole list."""
    values = [number / 7 for number in range(count)]
    result = {"predictions": values, "classes": ["a", "b"], "scores": [[value] for value in values]}
    encoded: list[int] = []
    encode_json = messages.encode_json
    monkeypatch.setattr(messages, "encode_json", lambda value: encoded.append(len(value)) or encode_json(value))
    data = messages.encode_reply(WorkerReply(3, result=result), as_json=True)
    assert data == messages.encode(WorkerReply(3, result=msgspec.json.encode(result)))
    assert sum(encoded) == 2 * count + len(result["classes"]) + len(result)
    largest = messages.encode_reply(WorkerReply(3, result=values), as_json=True)
    assert largest == messages.encode(WorkerReply(3, result=msgspec.json.encode(values)))


def test_large_replies_are_elements_of_their_own() -> None:
    """Small replies share an element of the gateway's list; elements stay near 1 MiB unless one reply is larger."""
    sizes = [10, 400_000, 400_000, 400_000, 3_000_000, 10, 10]
    encoded = [messages.encode_reply(WorkerReply(i, result="x" * size)) for i, size in enumerate(sizes)]
    (push, key, *elements), _ = messages.send_replies("g", encoded)
    assert (push, key) == ("RPUSH", "kf:replies:g")
    assert [[reply.id for reply in messages.decode_replies(one)] for one in elements] == [[0, 1, 2], [3], [4], [5, 6]]


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
