"""Content codings of bodies (RFC 9110, 8.4): gzip (RFC 1952), zstd (RFC 8878) and deflate (RFC 1950).

Owns which codings are supported, how a body is inflated in small steps, and which coding a response gets. Never reads
a request's body and holds none. Invariant: no step returns more than :data:`STEP_BYTES`, and an inflater uses no more
than its `memory_bytes_max` besides, whatever it is given.
"""

import re
import sys
import zlib
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, ClassVar

from aiohttp import hdrs, web

from keepfit.errors import MalformedError
from keepfit_gateway.web import fields

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

STEP_BYTES = 1 << 20
# More frames than a body of this size has (pzstd writes one per megabyte); each costs some microseconds to begin.
FRAMES_MAX = 10_000
# RFC 9659: a zstd frame in HTTP needs a window of at most 8 MiB.
ZSTD_WINDOW_LOG_MAX = 23
# How a frame begins, or a skippable one.
FRAME = re.compile(rb"[\x28\x50-\x5f]")
# Faster than gzip and smaller.
ZSTD_LEVEL = 3
GZIP_LEVEL = 6
SUPPORTED = "gzip, zstd, deflate"
_ALIASES = {"x-gzip": "gzip"}
# Of codings with equal weights the highest counts: first where a client names it, second where it accepts any.
PREFERENCES = {"gzip": (0, 0), "zstd": (1, -1), "deflate": (-1, -2)}
LEAST = -3
OFFERED = (*PREFERENCES,)


class Inflater:
    """Inflates one body: :meth:`feed` bytes, then :meth:`step` while :attr:`pending`, at the end :meth:`finish`."""

    coding: ClassVar[str]
    memory_bytes_max: ClassVar[int]

    def __init__(self) -> None:
        self._stream = self._open()
        self._rest = b""

    def feed(self, data: bytes) -> None:
        """Add bytes of the coded body."""
        self._rest += data

    @property
    def pending(self) -> bool:
        """Whether a step is possible without more bytes."""
        return bool(self._rest)

    def step(self) -> bytes:
        """Return the next bytes of the body, at most :data:`STEP_BYTES`.

        Raises
        ------
        MalformedError
            If the stream is corrupt or followed by other bytes.
        """
        if self._stream.eof:
            self._begin_next()
        return self._inflate()

    def finish(self) -> None:
        """Raise MalformedError if the stream is not complete."""
        if not self._stream.eof:
            raise MalformedError(f"The {self.coding} stream is truncated.")

    def _begin_next(self) -> None:
        """Begin the stream that the rest begins with, after the end of another one."""
        raise MalformedError(f"Bytes follow the end of the {self.coding} stream.")

    def _open(self) -> Any:
        raise NotImplementedError

    def _inflate(self) -> bytes:
        raise NotImplementedError


class GzipInflater(Inflater):
    """gzip of one member, which is all that HTTP clients send; its window of 32 KiB is not counted."""

    coding = "gzip"
    memory_bytes_max = 0
    # As zlib numbers the formats.
    window_bits: ClassVar[int] = 31

    def _open(self) -> Any:
        return zlib.decompressobj(wbits=self.window_bits)

    def _inflate(self) -> bytes:
        try:
            part: bytes = self._stream.decompress(self._rest, STEP_BYTES)
        except zlib.error as error:
            raise MalformedError(f"The {self.coding} stream is corrupt: {error}.") from None
        self._rest = self._stream.unused_data if self._stream.eof else self._stream.unconsumed_tail
        return part


class DeflateInflater(GzipInflater):
    """What HTTP calls deflate: the zlib format (RFC 1950) around deflate, never deflate alone."""

    coding = "deflate"
    window_bits = 15


class ZstdInflater(Inflater):
    """zstd: one or more frames (RFC 8878, 3), with windows of at most 8 MiB."""

    coding = "zstd"
    memory_bytes_max = 1 << ZSTD_WINDOW_LOG_MAX

    def __init__(self) -> None:
        super().__init__()
        self._frames = 1

    @property
    def pending(self) -> bool:
        """Whether a step is possible without more bytes."""
        return bool(self._rest) or not (self._stream.eof or self._stream.needs_input)

    def _begin_next(self) -> None:
        if not FRAME.match(self._rest):
            super()._begin_next()
        self._frames += 1
        if self._frames > FRAMES_MAX:
            raise MalformedError(f"The zstd stream has more than {FRAMES_MAX} frames.")
        self._stream = self._open()

    def _open(self) -> Any:
        return zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: ZSTD_WINDOW_LOG_MAX})

    def _inflate(self) -> bytes:
        try:
            part: bytes = self._stream.decompress(self._rest, STEP_BYTES)
        except zstd.ZstdError as error:
            if "memory" in str(error):
                raise MalformedError("The zstd frame needs a window of more than 8 MiB (RFC 9659).") from None
            raise MalformedError(f"The zstd stream is corrupt: {error}.") from None
        self._rest = self._stream.unused_data if self._stream.eof else b""
        return part


_INFLATERS: Mapping[str, type[Inflater]] = {each.coding: each for each in (GzipInflater, ZstdInflater, DeflateInflater)}


def inflater_of(headers: fields.Headers) -> type[Inflater] | None:
    """Return the inflater for the Content-Encoding of a request; None if its body is sent as it is.

    Raises
    ------
    web.HTTPUnsupportedMediaType
        If a coding is not supported, or the body has more than one.
    """
    if hdrs.CONTENT_ENCODING not in headers:
        return None
    sent = [item.lower() for item in fields.items(headers, hdrs.CONTENT_ENCODING)]
    codings = [_ALIASES.get(each, each) for each in sent if each != "identity"]
    if not codings:
        return None
    if len(codings) == 1 and codings[0] in _INFLATERS:
        return _INFLATERS[codings[0]]
    raise web.HTTPUnsupportedMediaType(
        text=f"Content-Encoding {', '.join(sent)!r} is not supported; use one of {SUPPORTED}, or none.",
        # RFC 7694: only an answer about the coding has this field.
        headers={hdrs.ACCEPT_ENCODING: SUPPORTED},
    )


def negotiate(headers: fields.Headers, *, small: bool, offered: tuple[str, ...] = OFFERED) -> str | None:
    """Return the coding of a response: one that is `offered`, or identity, which a small one gets if it is accepted.

    None: the client accepts none of them. A coding that is accepted by name precedes one that only ``*`` accepts.
    """
    if hdrs.ACCEPT_ENCODING not in headers:
        return "identity"
    return _negotiate(", ".join(headers.getall(hdrs.ACCEPT_ENCODING)), small, offered)


# Few clients differ in this field.
@lru_cache(maxsize=256)
def _negotiate(accepted: str, small: bool, offered: tuple[str, ...]) -> str | None:
    """Return what :func:`negotiate` does.

    >>> for accepted in ("gzip, deflate, zstd", "gzip, zstd;q=0.5", "*", "gzip;q=0", "x-gzip", "identity;q=0", ""):
    ...     print(_negotiate(accepted, False, OFFERED))
    zstd
    gzip
    gzip
    identity
    gzip
    None
    identity
    """
    sent = {_ALIASES.get(name, name): weight for name, weight in fields.weights(accepted).items()}
    others = sent.get("*", 0.0)
    identity = sent.get("identity", 0.0 if sent.get("*") == 0 else sys.float_info.min)
    if small and identity:
        return "identity"
    named = "identity" in sent
    best = (identity, named, LEAST, "identity")
    for coding in offered:
        if_named, if_any = PREFERENCES[coding]
        named = coding in sent
        best = max(best, (sent.get(coding, others), named, if_named if named else if_any, coding))
    return best[3] if best[0] else None


def encode(coding: str, body: bytes) -> bytes:
    """Return a response's body in a coding that :func:`negotiate` returned, except identity."""
    if coding == "zstd":
        return zstd.compress(body, ZSTD_LEVEL)
    inflater: Any = _INFLATERS[coding]
    return zlib.compress(body, GZIP_LEVEL, wbits=inflater.window_bits)
