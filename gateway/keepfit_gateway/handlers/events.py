"""Handler of events: server-sent events about models and workers.

Owns the query parameters and the header field of this call. Never reads the stream itself. Invariant: an error is
reported before the head of the answer is sent; after that the stream just ends, and the client continues with another.
"""

import re
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple

import structlog
from aiohttp import hdrs, web

from keepfit.errors import MalformedError
from keepfit.history.metadata_labels import filters_of
from keepfit.security.api_keys import Key
from keepfit.store.events import KINDS, NUMBER_MAX, Event, EventId
from keepfit_gateway.auth.guard import CALLER, add_headers, still_permits
from keepfit_gateway.events.response import HEADERS, MEDIA_TYPE, EventResponse
from keepfit_gateway.events.selection import Selection
from keepfit_gateway.handlers.inputs import check_hash, timeout_parameter
from keepfit_gateway.service import SERVICE
from keepfit_gateway.web import codings, fields

log = structlog.get_logger(__name__)

LAST_EVENT_ID, LAST_EVENT_ID_PARAMETER = "Last-Event-ID", "last_event_id"
EVENT_ID = re.compile(r"([0-9]{1,15})-([0-9]{1,20})")
HASHES_MAX = 100


class Asked(NamedTuple):
    """What a client asks for: events after `position` (None: the next ones), for `timeout_s` seconds (None: always)."""

    position: EventId | None
    selection: Selection
    timeout_s: float | None


async def stream_events(request: web.Request) -> web.StreamResponse:
    """GET /v1/events: send events as they happen."""
    service, asked = request.app[SERVICE], await _asked(request)
    if codings.negotiate(request.headers, small=True) != "identity":
        raise web.HTTPNotAcceptable(text="Events are not compressed: accept identity in Accept-Encoding.")
    if request.method == hdrs.METH_HEAD:
        return web.Response(headers={**HEADERS, hdrs.CONTENT_TYPE: MEDIA_TYPE})
    with service.event_feed.open(_visible_to(request[CALLER], asked.selection)) as stream:
        await stream.begin(asked.position)
        response = EventResponse(service.settings.answer_timeout_s)
        add_headers(request, response)

        def goes_on() -> bool:
            # Only a write tells a client that is gone from one that has sent all; a stream needs no such client.
            connection = request.protocol
            is_there = connection.transport is not None and not getattr(connection, "has_ended", False)
            return is_there and still_permits(request)

        # What these errors report is that the client is gone, or does not read.
        with suppress(ConnectionError, TimeoutError):
            await response.prepare(request)
            async with response:
                try:
                    await response.send_from(stream, asked.timeout_s, goes_on)
                except (ConnectionError, TimeoutError):
                    raise
                except Exception:
                    log.exception("event_stream_failed")
    return response


def _visible_to(caller: Key, selection: Selection) -> Callable[[Event], bool]:
    """Return which events are sent to a caller: to a bound key those of its models, and none of workers."""
    if not caller.where:
        return selection.selects

    def selects(event: Event) -> bool:
        return event.metadata is not None and caller.may_use(event.metadata) and selection.selects(event)

    return selects


async def _asked(request: web.Request) -> Asked:
    """Return what the query and the header field `Last-Event-ID` ask for; raises MalformedError."""
    if len(request.query) != len(set(request.query)):
        raise MalformedError("A query parameter occurs more than once.")
    others = dict(request.query)
    timeout_s, named = timeout_parameter(request), others.pop(LAST_EVENT_ID_PARAMETER, "")
    others.pop("timeout", None)
    kinds = frozenset(filter(None, others.pop("kind", "").split(",")))
    unknown = sorted(kinds.difference(KINDS))
    if unknown:
        raise MalformedError(f"There is no kind {unknown[0]!r} of events: the kinds are {', '.join(KINDS)}.")
    hashes = list(filter(None, others.pop("hash", "").split(",")))
    if len(hashes) > HASHES_MAX:
        raise MalformedError(f"hash names {len(hashes)} models; at most {HASHES_MAX} are possible.")
    checked = frozenset([await check_hash(request, each) for each in hashes])
    # A browser that connects again sends the field, and the address with the parameter as before.
    last = fields.single(request.headers, LAST_EVENT_ID) or named
    where = tuple((key, (text,)) for key, text in filters_of(others).items())
    return Asked(_position(last) if last else None, Selection(kinds, checked, where), timeout_s)


def _position(text: str) -> EventId:
    found = EVENT_ID.fullmatch(text)
    if found is None or int(found[2]) > NUMBER_MAX:
        raise MalformedError(f"{LAST_EVENT_ID} must be the id of an event, as in 1700000000000-0, or 0-0 for all.")
    return EventId(int(found[1]), int(found[2]))
