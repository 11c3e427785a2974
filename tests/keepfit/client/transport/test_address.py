"""The URL of a gateway, as programs and commands give it."""

import pytest

from keepfit.client.transport.address import Address
from keepfit.errors import MalformedError


@pytest.mark.parametrize(
    "url",
    ["", "localhost", "ftp://a", "http://", "http://[", "http://a:b", "http://a:65536", "http://a:0", "http://a?b"],
)
def test_what_is_no_url_of_a_gateway_is_an_error(url: str) -> None:
    """The error shows what was given, and what would be right."""
    with pytest.raises(MalformedError) as caught:
        Address(url)
    assert str(caught.value) == f"{url!r} is not the URL of a gateway: http://127.0.0.1:8000."


@pytest.mark.parametrize(
    "url",
    [
        "http://me:secret@127.0.0.1", "http://me:secret@a:b", "ftp://me:secret@[", "http://me:se/secret@host:80",
        "http:me:secret@host", "http://me:12/secret@host",
    ],
)  # fmt: skip
def test_a_url_has_no_password(url: str) -> None:
    """It would stand in errors and logs that name the gateway; this one does not show it."""
    with pytest.raises(MalformedError, match="has no user name or password") as caught:
        Address(url)
    assert "secret" not in str(caught.value)
