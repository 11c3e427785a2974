"""The header field `traceparent` is read as W3C Trace Context says, and a wrong one is ignored."""

import pytest

from keepfit.observability.trace_context import trace_id_of

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


@pytest.mark.parametrize("field", [f"00-{TRACE}-{SPAN}-01", f"00-{TRACE}-{SPAN}-00", f"cc-{TRACE}-{SPAN}-01-later"])
def test_the_trace_id_is_read(field: str) -> None:
    """Sampled or not, and of a later version too, which may have more parts."""
    assert trace_id_of([field]) == TRACE


@pytest.mark.parametrize(
    "fields",
    [
        [],
        [""],
        [f"00-{TRACE}-{SPAN}-01"] * 2,
        [f"ff-{TRACE}-{SPAN}-01"],
        [f"00-{'0' * 32}-{SPAN}-01"],
        [f"00-{TRACE}-{'0' * 16}-01"],
        [f"00-{TRACE.upper()}-{SPAN}-01"],
        [f"00-{TRACE}-{SPAN}-01-more"],
        [f"01-{TRACE}-{SPAN}-01more"],
        [f"00-{TRACE}-{SPAN}-01\n"],
        [f"00-{TRACE}-{SPAN}"],
        [f"00-{TRACE[:-1]}x-{SPAN}-01"],
    ],
)
def test_a_wrong_field_is_ignored(fields: list[str]) -> None:
    """Missing, repeated, forged and broken fields name no trace."""
    assert trace_id_of(fields) is None
