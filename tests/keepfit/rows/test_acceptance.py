"""The element with which a payload ends: what reads the rows does not see it, and nothing else is taken for a time."""

from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st

from keepfit.observability.request_id import FORM
from keepfit.rows import acceptance, served
from keepfit.rows.rows import Rows
from keepfit.rows.served import Served, ServedRows
from keepfit.rows.train_score_predict import ToPredict, TrainScorePredict

# Bytes of a time, and any others.
doubles = st.binary(min_size=8, max_size=8) | st.sampled_from((b"\0\0\0\0\xcbA\xe0?", b"\xcb" * 8))
ids = st.just("") | st.from_regex(FORM, fullmatch=True)
times = st.just(0.0) | st.floats(1.0, 2.0**33)
QUESTION = ToPredict(False, Rows(1, bytes(8), []))


@given(y=doubles, weight=st.none() | doubles, sent=ids, seconds=times)
@example(y=b"\0\0\0\0\xcbA\xe0?", weight=None, sent="abc", seconds=0.0)
def test_an_element_is_read_as_it_was_written(y: bytes, weight: bytes | None, sent: str, seconds: float) -> None:
    """Payloads of each form, with and without time and id, have the time and the id that were appended, or none."""
    rows = Rows(1, y, [], y, weight)
    call = TrainScorePredict.of(rows, 1, QUESTION)
    kept = served.encode_row(rows, 0) + served.encode(y) + served.encode(weight) + 2 * served.encode(None)
    kept += served.encode([Served(3, 9, 0.5)])
    element = acceptance.encode(seconds, sent)
    found: list[tuple[bytes, Any]] = [
        (acceptance.append(rows.encode(), element), rows),
        (acceptance.append(call.encode(), element), call),
        (kept + element, ServedRows(1, y, [], y, weight, predictions=[Served(3, 9, 0.5)])),
    ]
    for payload, expected in found:
        assert (acceptance.accepted_s(payload), acceptance.request_id_of(payload)) == (seconds, sent)
        assert served.decode(payload) == expected
    assert [acceptance.accepted_s(each.encode()) for each in (rows, call)] == [0.0, 0.0]
