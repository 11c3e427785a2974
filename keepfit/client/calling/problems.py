"""Answers that are errors: problem documents (RFC 9457) as the errors of keepfit that they name.

Pure. Invariant: every answer with a status of 400 or more becomes a KeepfitError, also one that no gateway sent.
"""

from collections.abc import Mapping
from typing import Any

import msgspec

from keepfit import errors
from keepfit.client.transport import http1
from keepfit.client.transport.http1 import ProtocolError, Response
from keepfit.errors import Fault, InvalidError, KeepfitError, OverloadedError, UnavailableError

PROBLEM = "urn:keepfit:problem:"
# Problems of HTTP, and the statuses of proxies, by the class whose meaning they have.
OF_HTTP = {
    "bad-request": "MalformedError",
    "method-not-allowed": "MalformedError",
    "unsupported-media-type": "MalformedError",
    "misdirected-request": "ForbiddenError",
    "request-timeout": "DeadlineError",
    "request-entity-too-large": "TooLargeError",
}
OF_STATUS = {
    400: "MalformedError",
    401: "UnauthorizedError",
    403: "ForbiddenError",
    404: "NotFoundError",
    408: "DeadlineError",
    413: "TooLargeError",
    429: "OverloadedError",
    502: "UnavailableError",
    503: "UnavailableError",
    504: "DeadlineError",
}
DETAIL_SHOWN_MAX = 500
# What a gateway says of itself.
STATES = ("ok", "degraded", "unavailable")


def decode(url: str, response: Response) -> Any:
    """Return the JSON of an answer, None without a body. Raise UnavailableError if it is something else."""
    try:
        raw = response.content() if response.is_coded else response.body
        return msgspec.json.decode(raw) if raw else None
    except (msgspec.DecodeError, ProtocolError):
        raise UnavailableError(
            f"{url} answers with {response.status} and something that is not JSON: this is not a gateway of keepfit, "
            "or a proxy answers for it."
        ) from None


def error_of(url: str, response: Response) -> KeepfitError:
    """Return the error that an answer reports, of the class that its ``type`` names.

    An unknown type becomes the class of its status, or a plain KeepfitError. A note has the id of the request, by which
    operators find it in the logs. A redirect is an error, too: neither rows nor an API key are sent elsewhere.
    """
    if http1.REDIRECTED <= response.status < http1.REFUSED:
        return _redirected(url, response)
    try:
        problem = decode(url, response)
    except UnavailableError as error:
        return error
    found = _named(response, problem) if isinstance(problem, Mapping) else _of_status(response, "")
    if isinstance(found, OverloadedError):
        found.retry_after_s = retry_after_s(response) or found.retry_after_s
    if "x-request-id" in response.headers:
        found.add_note(f"X-Request-ID: {response.headers['x-request-id'][:DETAIL_SHOWN_MAX]}")
    return found


def state_of(url: str, response: Response) -> dict[str, Any]:
    """Return the answer to ``/readyz``, also one of 503; raise the error that it reports instead of a state."""
    if http1.REDIRECTED <= response.status < http1.REFUSED:
        raise _redirected(url, response)
    state = decode(url, response)
    if isinstance(state, dict) and str(state.get("type", "")).startswith(PROBLEM):
        raise error_of(url, response)
    if not isinstance(state, dict) or state.get("status") not in STATES:
        raise UnavailableError(f"{url} is not a gateway of keepfit.")
    return state


def _redirected(url: str, response: Response) -> UnavailableError:
    place = response.headers.get("location", "another place")[:DETAIL_SHOWN_MAX]
    return UnavailableError(
        f"{url} answers with {response.status} and redirects to {place}, which keepfit does not follow: give the URL "
        "of the gateway itself."
    )


def retry_after_s(response: Response) -> int | None:
    """Return the seconds of ``Retry-After``; None without it, or if it is a date."""
    return http1.number(response.headers.get("retry-after", ""))


def _named(response: Response, problem: Mapping[str, Any]) -> KeepfitError:
    kind, detail = str(problem.get("type", "")), str(problem.get("detail") or problem.get("title") or "")
    name = kind.removeprefix(PROBLEM)
    if name == "invalid":
        return InvalidError(detail, [_fault(one) for one in problem.get("errors") or () if isinstance(one, Mapping)])
    if name in OF_HTTP:
        return errors.from_name(OF_HTTP[name], detail, detail)
    if name != kind:
        error = errors.from_name("".join(word.capitalize() for word in name.split("-")) + "Error", detail, detail)
        if type(error) is not KeepfitError or name == "keepfit":
            return error
    return _of_status(response, detail)


def _fault(described: Mapping[str, Any]) -> Fault:
    return Fault(str(described.get("detail", "")), described.get("row"), described.get("column"))


def _of_status(response: Response, detail: str) -> KeepfitError:
    said = detail or f"The gateway answers with {response.status}."
    return errors.from_name(OF_STATUS.get(response.status, ""), said, said)
