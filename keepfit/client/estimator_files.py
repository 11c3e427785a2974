"""Trained estimators as files through a gateway: upload one as the first version of a model, download a model as one.

Owns the transfer, a piece at a time, and the digest; fetches files of other servers. Never opens what is in a file.
Invariant: a file that was downloaded appears when all of its bytes are there and have the digest that the gateway sent
(RFC 9530).
"""

import asyncio
import hashlib
import os
import sys
from base64 import b64encode
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urlencode

import aiohttp
import msgspec

from keepfit.backends.files import open_regular
from keepfit.client.gateway import STREAM_TIMEOUT, Gateway
from keepfit.client.output_file import OutputFile
from keepfit.errors import KeepfitError, NotFoundError, TooLargeError, UnavailableError, describe_error

OCTETS = {"Content-Type": "application/octet-stream"}
PIECE_BYTES = 1 << 20
# As many as a gateway accepts by default.
FETCHED_BYTES_MAX = 500 * 2**20
# Called with the bytes that are sent or received, and with all of them.
Report = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Downloaded:
    """A model as a file: its name, size and digest, and what it has learned."""

    file: str
    version: int
    rows_seen: int
    size_bytes: int
    sha256: str


async def upload(
    gateway: Gateway, metadata: Mapping[str, Any], file: BinaryIO, report: Report
) -> tuple[dict[str, Any], bool]:
    """Create a model from a file with a trained estimator; return its description, and whether it is new.

    It closes `file`.

    Raises
    ------
    KeepfitError
        As :meth:`~keepfit.client.gateway.Gateway.call`. The same file may be sent again after an error.
    """
    with file:
        size = file.seek(0, os.SEEK_END)

        async def pieces() -> AsyncIterator[bytes]:
            sent = file.seek(0)
            while piece := await asyncio.to_thread(file.read, PIECE_BYTES):
                yield piece
                sent += len(piece)
                report(sent, size)

        target = f"/v1/estimator?{urlencode({'metadata': msgspec.json.encode(metadata).decode()})}"
        status, model = await gateway.call("POST", target, pieces, {**OCTETS, "Content-Length": str(size)})
    return model, status == HTTPStatus.CREATED


def open_file(path: str) -> BinaryIO:
    """Open a file to read; what is no regular file has no size, and could not be sent again.

    Raises
    ------
    NotFoundError, KeepfitError
        If there is no such file, or it cannot be read.
    """
    try:
        return open_regular(Path(path))
    except FileNotFoundError:
        raise NotFoundError(f"There is no file {path}.") from None
    except OSError as error:
        raise KeepfitError(f"{path} cannot be read: {error.strerror}.") from None


async def fetch(url: str) -> bytes:
    """Return the body of an answer, of chantilly's `GET /api/model/NAME` for one; no API key of keepfit is sent.

    Raises
    ------
    NotFoundError, KeepfitError
        If the server has no such page, answers with an error, or more than :data:`FETCHED_BYTES_MAX` bytes.
    UnavailableError
        If it does not answer.
    """
    found = bytearray()
    try:
        async with aiohttp.ClientSession(timeout=STREAM_TIMEOUT) as session, session.get(url) as response:
            if response.status == HTTPStatus.NOT_FOUND:
                raise NotFoundError(f"{url} does not exist: its server answers 404.")
            if response.status != HTTPStatus.OK:
                raise KeepfitError(f"{url} has no model: its server answers {response.status} {response.reason}.")
            async for piece in response.content.iter_chunked(PIECE_BYTES):
                found += piece
                if len(found) > FETCHED_BYTES_MAX:
                    raise TooLargeError(f"{url} has more than {FETCHED_BYTES_MAX:,} bytes, which no gateway accepts.")
    except (aiohttp.ClientError, TimeoutError) as error:
        raise UnavailableError(f"{url} does not answer: {describe_error(error)}.") from None
    return bytes(found)


async def download(
    gateway: Gateway, model_hash: str, path: str | None, format_: str, part: str, report: Report
) -> Downloaded:
    """Write a model as a file of skops, or a signed pickle, to `path`, by default the name that the gateway gives it.

    "-" is standard output.

    Raises
    ------
    KeepfitError
        The error that the gateway reports, or if the bytes do not have the digest that it sent, or the file cannot be
        written.
    """
    target = f"/v1/models/{model_hash}/estimator?{urlencode({'format': format_, 'part': part})}"
    async with gateway.open("GET", target, {}) as response:
        head = response.headers
        version, rows_seen = int(head["Model-Version"]), int(head["Model-Rows-Seen"])
        # The gateway's own name may be any text: a file of this one lies in the working directory.
        name = path or f"{model_hash[:12]}-{version}.{format_}"
        size, received, digest = int(head["Content-Length"]), 0, hashlib.sha256()
        target_file = OutputFile(name)
        try:
            written = target_file.open() or sys.stdout.buffer
            async for piece in response.content.iter_chunked(PIECE_BYTES):
                await asyncio.to_thread(written.write, piece)
                digest.update(piece)
                received += len(piece)
                report(received, size)
            if head["Repr-Digest"] != f"sha-256=:{b64encode(digest.digest()).decode()}:":
                raise KeepfitError(f"{name}: the bytes that arrived are not those that the gateway sent: try again.")
            written.flush()
            target_file.finish()
        except OSError as error:
            raise KeepfitError(f"{name} cannot be written: {error.strerror or error}.") from None
        finally:
            target_file.discard()
    return Downloaded(name, version, rows_seen, received, digest.hexdigest())
