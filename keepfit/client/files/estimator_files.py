"""Trained estimators as files through a gateway: upload one as the first version of a model, download a model as one.

Owns the transfer, a piece at a time, and the digest; fetches files of other servers. Never opens what is in a file.
Invariant: a file that was downloaded appears when all of its bytes are there and have the digest that the gateway sent
(RFC 9530).
"""

import hashlib
import os
import sys
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from http import HTTPStatus
from http.client import HTTPException
from pathlib import Path
from typing import Any, BinaryIO, cast

from keepfit import identity
from keepfit.backends.files import open_regular
from keepfit.client.calling.calls import FILE_S_MAX
from keepfit.client.clients import Client
from keepfit.client.files.output_file import OutputFile
from keepfit.client.transport.address import target as target_of
from keepfit.client.transport.http1 import Response
from keepfit.errors import KeepfitError, NotFoundError, TooLargeError, UnavailableError, describe_error

OCTETS = {"Content-Type": "application/octet-stream"}
PIECE_BYTES = 1 << 20
# As many as a gateway accepts by default.
FETCHED_BYTES_MAX = 500 * 2**20
# The fields of a file that a gateway makes.
MODEL_FIELDS = {"model-version", "model-rows-seen", "repr-digest"}
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


class _Uploaded:
    """The body of an upload: a file, from its beginning each time."""

    def __init__(self, file: BinaryIO, report: Report) -> None:
        self._file, self._report = file, report
        self.size: int | None = file.seek(0, os.SEEK_END)

    def __iter__(self) -> Iterator[bytes]:
        sent = self._file.seek(0)
        while piece := self._file.read(PIECE_BYTES):
            yield piece
            sent += len(piece)
            self._report(sent, self.size or 0)


def upload(client: Client, metadata: Mapping[str, Any], file: BinaryIO, report: Report) -> tuple[dict[str, Any], bool]:
    """Create a model from a file with a trained estimator; return its description, and whether it is new.

    It closes `file`.

    Raises
    ------
    KeepfitError
        As the calls of a client. The same file may be sent again after an error.
    """
    with file:
        target = target_of("/v1/estimator", metadata=identity.canonical(dict(metadata)).decode())
        status, model = client.request(
            "POST", target, _Uploaded(file, report), OCTETS, is_repeatable=True, timeout_s=FILE_S_MAX
        )
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


def fetch(url: str) -> bytes:
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
        # The caller has checked the scheme, and redirects lead to HTTP alone.
        with urllib.request.urlopen(url, timeout=FILE_S_MAX) as response:  # noqa: S310  # nosec B310
            while piece := response.read(PIECE_BYTES):
                found += piece
                if len(found) > FETCHED_BYTES_MAX:
                    raise TooLargeError(f"{url} has more than {FETCHED_BYTES_MAX:,} bytes, which no gateway accepts.")
            # With a number of bytes to read, http.client takes the end of the connection for that of the body.
            if response.length:
                raise UnavailableError(f"{url}: the answer breaks off, {response.length:,} bytes before its end.")
    except urllib.error.HTTPError as error:
        if error.code == HTTPStatus.NOT_FOUND:
            raise NotFoundError(f"{url} does not exist: its server answers 404.") from None
        raise KeepfitError(f"{url} has no model: its server answers {error.code} {error.reason}.") from None
    except (OSError, HTTPException, ValueError) as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        said = describe_error(reason) if isinstance(reason, BaseException) else reason
        raise UnavailableError(f"{url} does not answer: {said}.") from None
    return bytes(found)


def download(client: Client, model_hash: str, path: str | None, format_: str, part: str, report: Report) -> Downloaded:
    """Write a model as a file of skops, or a signed pickle, to `path`, by default the name that the gateway gives it.

    "-" is standard output.

    Raises
    ------
    KeepfitError
        The error that the gateway reports, or if the bytes do not have the digest that it sent, or the file cannot be
        written.
    """
    target = target_of(f"/v1/models/{model_hash}/estimator", format=format_, part=part)
    parts = client._performer.read(target, client._calls.deadline(FILE_S_MAX))
    with closing(parts):
        head = cast("Response", next(parts)).headers
        if not head.keys() >= MODEL_FIELDS:
            raise UnavailableError(f"{client.url} does not answer as a gateway of keepfit: it has sent another file.")
        version, rows_seen = int(head["model-version"]), int(head["model-rows-seen"])
        # The gateway's own name may be any text: a file of this one lies in the working directory.
        name = path or f"{model_hash[:12]}-{version}.{format_}"
        # A proxy may send the file in chunks.
        size, received, digest = int(head.get("content-length", 0)), 0, hashlib.sha256()
        target_file = OutputFile(name)
        try:
            written = target_file.open() or sys.stdout.buffer
            for piece in cast("Iterator[bytes]", parts):
                written.write(piece)
                digest.update(piece)
                received += len(piece)
                report(received, size)
            if head["repr-digest"] != f"sha-256=:{b64encode(digest.digest()).decode()}:":
                raise KeepfitError(f"{name}: the bytes that arrived are not those that the gateway sent: try again.")
            written.flush()
            target_file.finish()
        except OSError as error:
            raise KeepfitError(f"{name} cannot be written: {error.strerror or error}.") from None
        finally:
            target_file.discard()
    return Downloaded(name, version, rows_seen, received, digest.hexdigest())
