"""Handlers of what clients of InfluxDB 2 call to write points: Telegraf, influxdb-client.

Owns the translation between their calls and :mod:`keepfit.history.writing.incoming`. Organization and bucket are
accepted and mean nothing here: a gateway has one history. Invariants: points are stored batch by batch, in bounded
memory; a line that is wrong is named, and those around it are stored, because these clients drop a batch that is
refused.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from aiohttp import web

import keepfit
from keepfit.errors import ForbiddenError, InvalidError, MalformedError, UnavailableError
from keepfit.history.mongo import Document
from keepfit.history.writing.incoming import Incoming
from keepfit.history.writing.line_protocol import PRECISIONS_NS, PointReader
from keepfit_gateway.auth.guard import CALLER
from keepfit_gateway.handlers.history_writing import check_caller, incoming_of
from keepfit_gateway.schemas.history import InfluxHealth
from keepfit_gateway.service import SERVICE, SETTINGS
from keepfit_gateway.web.lines import read_lines
from keepfit_gateway.web.offload import compute
from keepfit_gateway.web.responses import json_response

# What clients send, and where it is read; other parameters are refused, since they would mean something.
PARAMETERS = frozenset({"org", "orgID", "bucket", "precision", "consistency"})
FAULTS_SHOWN_MAX = 3
# The version of InfluxDB whose calls these are, as clients read it.
HEADERS = {"X-Influxdb-Version": "2.0.0", "X-Influxdb-Build": "keepfit"}


class _Batch(NamedTuple):
    """The points of some lines as documents, and what is wrong with the others."""

    documents: list[Document]
    size_bytes: int
    faults: list[str]


@dataclass(slots=True)
class _Points:
    """The points of one request: how they are read, how many are stored, and what is wrong with the others."""

    request: web.Request
    reader: PointReader
    incoming: Incoming
    stored: int = 0
    wrong: int = 0
    shown: list[str] = field(default_factory=list)

    async def store(self, lines: Sequence[bytes], *, is_last: bool = False) -> None:
        """Store the points of further lines."""
        batch = await compute(sum(map(len, lines)), _parse, self.reader, lines, self.incoming, is_last=is_last)
        writes, caller = self.request.app[SERVICE].history_writes, self.request[CALLER]
        await writes.write(caller, batch.documents, "merged", batch.size_bytes)
        self.stored += len(batch.documents)
        self.wrong += len(batch.faults)
        self.shown += batch.faults[: FAULTS_SHOWN_MAX - len(self.shown)]

    def check(self) -> None:
        """Raise MalformedError that names the lines which are wrong, if there are any."""
        if self.wrong:
            more = f" And {self.wrong - len(self.shown):,} more." if self.wrong > len(self.shown) else ""
            kind = "partial write" if self.stored else "nothing is written"
            raise MalformedError(
                f"{kind}: {' '.join(self.shown)}{more} (lines that are wrong: {self.wrong:,}; points that are stored: "
                f"{self.stored:,})"
            )


async def write_points(request: web.Request) -> web.Response:
    """POST /api/v2/write: store points in line protocol."""
    if unknown := request.query.keys() - PARAMETERS:
        raise MalformedError(f"{min(unknown)!r} is no parameter of a write: use org, bucket and precision.")
    precision = request.query.get("precision", "ns")
    if precision not in PRECISIONS_NS:
        raise MalformedError(f"precision must be one of {', '.join(PRECISIONS_NS)}.")
    points = _Points(request, PointReader(precision), incoming_of(request))
    is_empty = True
    async for lines in read_lines(request, request.app[SETTINGS]):
        is_empty = False
        await points.store(lines)
    if is_empty:
        raise MalformedError("The body is empty: it has a line for each point.")
    await points.store((), is_last=True)
    points.check()
    return web.Response(status=204)


async def ping(request: web.Request) -> web.Response:
    """GET /ping: the gateway answers."""
    return web.Response(status=204, headers=HEADERS)


async def influx_health(request: web.Request) -> web.Response:
    """GET /health: whether points can be written."""
    status, message = "pass", "ready for writes"
    try:
        await request.app[SERVICE].history.ping()
    except UnavailableError:
        status, message = "fail", "MongoDB is unavailable"
    answer = InfluxHealth(name="keepfit", message=message, status=status, version=keepfit.__version__)
    return json_response(answer, 200 if status == "pass" else 503)


def _parse(reader: PointReader, lines: Sequence[bytes], incoming: Incoming, *, is_last: bool) -> _Batch:
    documents, faults = list[Document](), list[str]()
    for number, found in reader.read(lines, time.time_ns(), is_last=is_last):
        try:
            if isinstance(found, MalformedError | InvalidError):
                raise found
            documents.append(check_caller(incoming.prepare_point(found)))
        except (MalformedError, InvalidError, ForbiddenError) as error:
            faults.append(f"line {number}: {error}")
    return _Batch(documents, sum(map(len, lines)), faults)
