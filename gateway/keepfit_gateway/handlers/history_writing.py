"""Handlers that write to the history: documents of users, and their deletion.

Owns the translation between HTTP and :mod:`keepfit.history.writing.incoming`, what a body may be, and which part of a
stream was stored when it fails. Never touches the document of a snapshot. Invariants: of a JSON body all documents are
stored or none; a stream is stored batch by batch, in bounded memory, and an error says how many of its documents are.
"""

import asyncio
import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any, NamedTuple

from aiohttp import web

from keepfit.conditions import describe, encode
from keepfit.errors import Fault, ForbiddenError, InvalidError, KeepfitError, MalformedError, UnavailableError
from keepfit.history import query
from keepfit.history.mongo import Document
from keepfit.history.queries.filters import DOCUMENT, Filter
from keepfit.history.upkeep import rollups
from keepfit.history.writing import checks
from keepfit.history.writing.checks import DOCUMENT_BYTES_MAX
from keepfit.history.writing.incoming import Incoming, new_name
from keepfit.identity import parse_json
from keepfit_gateway import bound_key
from keepfit_gateway.auth.guard import CALLER
from keepfit_gateway.handlers.inputs import begin_turn, idempotency_key
from keepfit_gateway.schemas.history import DeletedAnswer, StoredAnswer
from keepfit_gateway.service import SERVICE, SETTINGS
from keepfit_gateway.web import bodies
from keepfit_gateway.web.lines import read_lines
from keepfit_gateway.web.offload import compute
from keepfit_gateway.web.responses import json_response

NDJSON = ("application/x-ndjson", "application/jsonl", "application/x-jsonlines")
# Parsed documents take many times their text: more of them come as a stream.
BODY_BYTES_MAX = 4 << 20
FAULTS_MAX = 20
# Parameters that a deletion shares with a query.
FILTERS = ("type", "hash", "kind", "where", "timestamp", "after", "before", "tz")


class _Batch(NamedTuple):
    """The documents of some lines, before the first one that is wrong, and what is wrong with that."""

    documents: list[Document]
    size_bytes: int
    fault: KeepfitError | None


async def store_documents(request: web.Request) -> web.Response:
    """POST /v1/history: store a document, a list of them, or a stream with one on each line."""
    if unknown := request.query.keys() - {"keys"}:
        raise MalformedError(f"The only query parameter is keys, not {min(unknown)!r}.")
    keys = checks.check_keys(request.query.getall("keys", []))
    media_type = bodies.media_type_of(request)
    if media_type not in (bodies.JSON, *NDJSON):
        raise web.HTTPUnsupportedMediaType(
            text=f"Send documents as Content-Type: {bodies.JSON}, or a stream of them as {NDJSON[0]}.",
            headers={"Accept": f"{bodies.JSON}, {NDJSON[0]}"},
        )
    store = _store_stream if media_type in NDJSON else _store_body
    return json_response(StoredAnswer(stored=await store(request, keys)))


async def delete_documents(request: web.Request) -> web.Response:
    """DELETE /v1/history: delete documents of users that match, as many as a few seconds allow."""
    parameters = {name: request.query.getall(name) for name in request.query}
    if any(len(texts) > 1 for name, texts in parameters.items() if name not in query.REPEATABLE):
        raise MalformedError("A query parameter occurs more than once.")
    if wrong := (query.PARAMETERS - set(FILTERS)) & request.query.keys():
        raise MalformedError(f"{min(wrong)!r} is no parameter of a deletion: use type, after, before and filters.")
    if request.query.get("kind", DOCUMENT) != DOCUMENT:
        raise MalformedError("kind must be document: the documents of snapshots are deleted with their snapshots.")
    parse = partial(query.parse, {**parameters, "kind": DOCUMENT}, words=False)
    # A time zone is read from a file when it is first used.
    parsed = await asyncio.to_thread(parse) if "tz" in parameters else parse()
    if parsed.where == Filter(kind=DOCUMENT, at=parsed.where.at):
        raise InvalidError("Name the type of the documents to delete, or another filter beside the time.")
    where = replace(parsed.where, bound=bound_key.conditions())
    deleted = await request.app[SERVICE].history_writes.delete(where, parsed.start, parsed.stop)
    return json_response(DeletedAnswer(deleted=deleted.documents, complete=deleted.is_complete))


def incoming_of(request: web.Request, keys: Sequence[str] = (), at: float | None = None, name: str = "") -> Incoming:
    """Return how documents of a request are identified; `at` and `name` are those of an Idempotency-Key."""
    return Incoming(
        keys,
        time.time() if at is None else at,
        name or new_name(),
        encode(bound_key.conditions()),
        _types_of_rollups(request.app[SETTINGS].history_rollups),
    )


@lru_cache(maxsize=4)
def _types_of_rollups(text: str) -> frozenset[str]:
    return frozenset(rollup.target for rollup in rollups.parse(text))


def check_caller(document: Document) -> Document:
    """Return a document in its stored form; raise ForbiddenError if the caller's key could not read it again."""
    if bound_key.is_set() and not bound_key.may_use({label["k"]: label["v"] for label in document["labels"]}):
        where = describe(bound_key.conditions())
        raise ForbiddenError(f"The API key is for documents with {where}; this one does not have that.")
    return document


def check_size(line: bytes) -> None:
    """Raise InvalidError if a line is longer than a document may be."""
    if len(line) > DOCUMENT_BYTES_MAX:
        raise InvalidError(f"the line is longer than {DOCUMENT_BYTES_MAX} bytes.")


async def _store_body(request: web.Request, keys: Sequence[str]) -> int:
    """Store the documents of a JSON body, all or none; return their number."""
    body = await bodies.read(request, request.app[SETTINGS], bytes_max=BODY_BYTES_MAX)
    await begin_turn(request, len(body), None)
    writes, key, at = request.app[SERVICE].history_writes, idempotency_key(request), None
    if key is not None:
        digest = hashlib.sha256(b"\0".join([*(name.encode() for name in keys), body])).hexdigest()
        sent = await writes.begin(key, digest)
        if sent.stored is not None:
            return sent.stored
        at = sent.at
    incoming = incoming_of(request, keys, at, key or "")
    documents = await compute(len(body), _parse_body, body, incoming)
    await writes.write(request[CALLER], documents, incoming.existing, len(body))
    if key is not None:
        await writes.finish(key, len(documents))
    return len(documents)


def _parse_body(body: bytes | bytearray, incoming: Incoming) -> list[Document]:
    """Return the documents of a body in their stored form; raise InvalidError that names each that is wrong."""
    parsed = parse_json(body)
    if not isinstance(parsed, list):
        return [_prepare(incoming, parsed, 0, len(body))]
    documents, faults = list[Document](), list[Fault]()
    for position, one in enumerate(parsed):
        try:
            documents.append(_prepare(incoming, one, position, len(body)))
        except (InvalidError, MalformedError) as error:
            faults.append(Fault(str(error), row=position))
    if faults:
        shown, count = faults[:FAULTS_MAX], len(faults)
        raise InvalidError(
            f"documents[{faults[0].row}]: {faults[0].detail} None of the {len(parsed):,} documents is stored, because "
            f"of {count:,} that {'is' if count == 1 else 'are'} wrong.",
            shown,
        )
    if not documents:
        raise InvalidError("The list has no documents.")
    return documents


def _prepare(incoming: Incoming, document: Any, position: int, size_max: int) -> Document:
    """Return a document of a body in its stored form; it has `size_max` bytes at most, those of the body."""
    if size_max > DOCUMENT_BYTES_MAX and len(json.dumps(document, ensure_ascii=False).encode()) > DOCUMENT_BYTES_MAX:
        raise InvalidError(f"the document is larger than {DOCUMENT_BYTES_MAX} bytes.")
    return check_caller(incoming.prepare(document, position))


async def _store_stream(request: web.Request, keys: Sequence[str]) -> int:
    """Store the documents of a stream as they arrive; return their number."""
    writes, key, at = request.app[SERVICE].history_writes, idempotency_key(request), None
    content = hashlib.sha256(b"".join(name.encode() + b"\0" for name in keys))
    if key is not None:
        sent = await writes.begin(key, "")
        if sent.stored is not None:
            async for lines in read_lines(request, request.app[SETTINGS]):
                await compute(sum(map(len, lines)), _add_lines, content, lines)
            sent.check(content.hexdigest())
            return sent.stored
        at = sent.at
    incoming, stored, number = incoming_of(request, keys, at, key or ""), 0, 0
    try:
        async for lines in read_lines(request, request.app[SETTINGS]):
            size = sum(map(len, lines))
            batch = await compute(size, _parse_lines, lines, number, incoming, content)
            await writes.write(request[CALLER], batch.documents, incoming.existing, batch.size_bytes)
            stored += len(batch.documents)
            number += len(lines)
            if batch.fault is not None:
                raise batch.fault
    except KeepfitError as error:
        raise _with_count(error, stored) from None
    except web.HTTPException as error:
        error.text = f"{error.text} {_stored_text(stored)}"
        raise
    if key is not None:
        await writes.finish(key, stored, content.hexdigest())
    return stored


def _add_lines(content: Any, lines: Sequence[bytes]) -> None:
    """Add lines to the digest of a stream, which is the same however the lines arrive."""
    for line in lines:
        content.update(line)
        content.update(b"\n")


def _parse_lines(lines: Sequence[bytes], number: int, incoming: Incoming, content: Any) -> _Batch:
    """Return the documents of lines of a stream, of which `number` were read before; add them to its digest."""
    documents, size = list[Document](), 0
    _add_lines(content, lines)
    for position, line in enumerate(lines, number):
        text = line.strip()
        if not text:
            continue
        try:
            check_size(line)
            documents.append(check_caller(incoming.prepare(parse_json(text, "it"), position)))
        except (InvalidError, MalformedError, ForbiddenError) as error:
            detail = f"line {position + 1}: {error}"
            if isinstance(error, InvalidError):
                return _Batch(documents, size, InvalidError(detail, [Fault(str(error), row=position)]))
            return _Batch(documents, size, type(error)(detail))
        size += len(line)
    return _Batch(documents, size, None)


def _with_count(error: KeepfitError, stored: int) -> KeepfitError:
    message = f"{str(error).rstrip('.')}. {_stored_text(stored)}"
    error.args = (message,)
    if isinstance(error, UnavailableError):
        error.public_message = f"{error.public_message.rstrip('.')}. {_stored_text(stored)}"
    return error


def _stored_text(stored: int) -> str:
    return f"The first {stored:,} documents of the stream are stored." if stored else "Nothing of the stream is stored."
