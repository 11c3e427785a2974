"""When a call is repeated, and after which pause.

Pure. Never repeats what could act twice: a request that is not repeatable is sent again only if it was not processed.
Invariant: all attempts and pauses of a call end at its deadline. The pauses double, and half of each is random
(exponential backoff with jitter), so that many clients do not return at once; ``Retry-After`` lengthens them.
"""

import os
import time

from keepfit.client.calling import problems
from keepfit.client.transport.exchange import ExchangeError, Flow, LateError, NotConnectedError, Pause, Request, Send
from keepfit.client.transport.http1 import NOT_MODIFIED, REDIRECTED, Response
from keepfit.errors import DeadlineError, StaleModelError, UnavailableError, describe_error

PAUSE_S, PAUSE_S_MAX = 0.1, 5.0
REQUEST_TIMEOUT, TOO_MANY, BAD_GATEWAY, UNAVAILABLE, GATEWAY_TIMEOUT = 408, 429, 502, 503, 504
# After these the request was not processed.
UNPROCESSED = (REQUEST_TIMEOUT, TOO_MANY)
# What passes by itself. A 500 does not.
TRANSIENT = (*UNPROCESSED, BAD_GATEWAY, UNAVAILABLE, GATEWAY_TIMEOUT)


class Reachability:
    """What is known of a gateway at `url`: whether it has ever answered. A wrong URL is reported at once."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.is_reached = False


def exchange(
    gateway: Reachability, request: Request, deadline: float, outcome: Response | ExchangeError | None = None
) -> Flow[Response]:
    """Send a request until it has an answer that is no transient refusal; return the answer.

    `outcome` is that of the first attempt, if there was one.

    Raises
    ------
    KeepfitError
        The error that the gateway reports, of the class that it names.
    UnavailableError
        If no gateway answers.
    DeadlineError
        If a gateway was reached, and does not answer before the deadline.
    """
    pause_s = PAUSE_S
    while True:
        wait_s = jittered(pause_s)
        try:
            if isinstance(outcome, ExchangeError):
                raise outcome
            response: Response = (yield Send(request, deadline)) if outcome is None else outcome
        except ExchangeError as error:
            may_repeat = gateway.is_reached and (request.is_repeatable or error.is_unsent)
            if not may_repeat or time.monotonic() + wait_s >= deadline:
                raise silent(gateway, error) from None
        else:
            gateway.is_reached = True
            if response.status < REDIRECTED or response.status == NOT_MODIFIED:
                return response
            refusal = problems.error_of(gateway.url, response)
            is_passing = response.status in TRANSIENT or isinstance(refusal, StaleModelError)
            may_repeat = response.status in UNPROCESSED or (is_passing and request.is_repeatable)
            wait_s = max(wait_s, problems.retry_after_s(response) or 0)
            if not may_repeat or time.monotonic() + wait_s >= deadline:
                raise refusal
        outcome = None
        yield Pause(wait_s)
        pause_s = min(2 * pause_s, PAUSE_S_MAX)


def jittered(pause_s: float) -> float:
    """Return a pause of which up to a half is left out."""
    return pause_s * (0.5 + os.urandom(1)[0] / 512)


def reason_of(error: ExchangeError) -> str:
    """Return in some words why a request has no answer."""
    cause = error.__cause__
    # The numbers of errors of TLS are not those of the system.
    if isinstance(cause, OSError) and cause.errno and cause.errno > 0 and type(cause).__module__ != "ssl":
        return os.strerror(cause.errno)
    return str(error) if cause is None else describe_error(cause).removesuffix(": ")


def silent(gateway: Reachability, error: ExchangeError) -> DeadlineError | UnavailableError:
    """Return the error of keepfit for a request that has no answer."""
    reason = reason_of(error)
    if isinstance(error, LateError) and gateway.is_reached:
        return DeadlineError(f"{gateway.url} has not answered in time: give the call a longer timeout_s.")
    if isinstance(error, NotConnectedError) or not gateway.is_reached:
        return UnavailableError(
            f"No gateway answers at {gateway.url}: {reason}. Start `keepfit up`, or name another gateway with url=, "
            "--url or KEEPFIT_URL."
        )
    return UnavailableError(
        f"The connection to {gateway.url} ended before the answer: {reason}. The request may have been processed."
    )
