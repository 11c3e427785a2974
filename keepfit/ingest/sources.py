"""Sources that are pulled: a file in an allowed folder, an object of S3, or an https address, as a stream of bytes.

Owns which address is opened, and the check that a source is the same as when the job began. Never follows a link or a
redirect, and never opens what the operator did not allow. Invariant: the bytes that are read are those of one state of
the source: a change is an error, never a mixture.
"""

import contextlib
import gzip
import io
import os
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, ParamSpec, TypeVar, cast

from keepfit.backends.files import open_regular
from keepfit.backends.range_file import RangeFile, block_bytes
from keepfit.backends.source_urls import COMPRESSED, SourceUrl, check_allowed
from keepfit.errors import ConflictError, InvalidError, MalformedError, NotFoundError, UnavailableError
from keepfit.ingest.https_source import HttpsSource

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

P = ParamSpec("P")
T = TypeVar("T")

TOO_LARGE = "The source has more than {} bytes (KEEPFIT_PULL_BYTES_MAX)."
CHANGED = "The source has changed since the job began; what was learned stays. Start a new job for the new source."
# As of RFC 9659; a frame with a larger window is refused.
WINDOW_LOG_MAX = 27


@dataclass(slots=True)
class Source:
    """An open source: `file` is seekable unless it is compressed. `size` is in bytes as it is stored, None if unknown.

    `identity` tells this state of the source from any other; `check` raises ConflictError if the source has changed.
    """

    file: BinaryIO
    identity: str
    size: int | None
    check: Callable[[], None]
    close: Callable[[], None]

    def expect(self, identity: str) -> None:
        """Raise ConflictError if a job that began with another state, "" if with none, would go on with this one."""
        if identity not in ("", self.identity):
            raise ConflictError(CHANGED)


def open_source(url: str, prefixes: str, bytes_max: int, *, seekable: bool) -> Source:
    """Open the source at `url`, which one of `prefixes` allows; `seekable`: the format is read at any place.

    It has at most `bytes_max` bytes, also after it is inflated.

    Raises
    ------
    ForbiddenError, MalformedError
        If the address is not allowed.
    NotFoundError
        If there is no such source.
    InvalidError
        If it cannot be read as its address says.
    UnavailableError
        If it cannot be reached now.
    """
    address, prefix = check_allowed(url, prefixes)
    source = _OPENERS[address.scheme](address, prefix, seekable=seekable)
    try:
        kind = Path(address.path).suffix.lower()
        _check(source, kind, bytes_max, seekable=seekable)
        if kind in COMPRESSED or source.size is None:
            counted = _Counted(_inflated(source.file, kind), bytes_max)
            source.file = cast("BinaryIO", io.BufferedReader(counted, 1 << 20))
    except BaseException:
        source.close()
        raise
    return source


def _check(source: Source, kind: str, bytes_max: int, *, seekable: bool) -> None:
    if source.size is not None and source.size > bytes_max:
        raise InvalidError(TOO_LARGE.format(bytes_max))
    if kind in COMPRESSED and seekable:
        raise InvalidError(f"{kind} files are read from their start: Parquet and npy have to be uncompressed.")


def _inflated(file: BinaryIO, kind: str) -> Any:
    if kind == ".gz":
        return gzip.GzipFile(fileobj=file)
    if kind == ".zst":
        return zstd.ZstdFile(file, options={int(zstd.DecompressionParameter.window_log_max): WINDOW_LOG_MAX})
    return file


@contextlib.contextmanager
def readable() -> Iterator[None]:
    """Convert the errors of streams to errors of keepfit."""
    try:
        yield
    except (gzip.BadGzipFile, EOFError, zlib.error, zstd.ZstdError) as error:
        raise MalformedError(f"The source is compressed and cannot be inflated: {error}.") from None
    except OSError as error:
        raise UnavailableError(f"The source cannot be read: {error}", "The source cannot be read.") from error


def _open_file(address: SourceUrl, prefix: SourceUrl, *, seekable: bool) -> Source:
    root = Path(prefix.path)
    if address.path == prefix.path:
        # The operator named the file itself.
        root = root.parent
    try:
        file = open_regular(Path(address.path), root)
    except (FileNotFoundError, NotADirectoryError):
        raise NotFoundError("There is no such file on the machine of the workers.") from None
    except PermissionError:
        raise InvalidError("The workers may not read the file.") from None
    except OSError as error:
        raise InvalidError(f"The file cannot be read: {error.strerror}.") from None
    identity = _state_of(file.fileno())

    def check() -> None:
        # Both: the file may be written to, or another file may have its name.
        try:
            with open_regular(Path(address.path), root) as named:
                same = _state_of(named.fileno()) == identity == _state_of(file.fileno())
        except OSError:
            same = False
        if not same:
            raise ConflictError(CHANGED)

    return Source(cast("BinaryIO", file), identity, os.fstat(file.fileno()).st_size, check, file.close)


def _state_of(descriptor: int) -> str:
    # Without the number of the device: a volume of the network has another one on each machine, and after each mount.
    state = os.fstat(descriptor)
    return f"{state.st_ino}:{state.st_size}:{state.st_mtime_ns}"


def _open_object(address: SourceUrl, prefix: SourceUrl, *, seekable: bool) -> Source:
    # botocore takes a tenth of a second and 40 MB, which the other sources do without.
    from keepfit.backends.s3_objects import S3Object  # noqa: PLC0415

    found = S3Object.find(address.host, address.path.lstrip("/"))
    file = io.BufferedReader(RangeFile(_unchanged(found.read), found.size, block_bytes(seekable=seekable)))
    return Source(cast("BinaryIO", file), f"{found.etag} {found.size}", found.size, _unchanged(found.check), file.close)


def _open_address(address: SourceUrl, prefix: SourceUrl, *, seekable: bool) -> Source:
    found = HttpsSource(address)
    file = found.open(seekable=seekable)
    return Source(file, found.identity, found.size, _unchanged(found.check), found.close)


def _unchanged(function: Callable[P, T]) -> Callable[P, T]:
    """Return the function with the message of a job in place of a backend's own, if the source has changed."""

    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return function(*args, **kwargs)
        except ConflictError:
            raise ConflictError(CHANGED) from None

    return call


_OPENERS: Mapping[str, Callable[..., Source]] = {"file": _open_file, "s3": _open_object, "https": _open_address}


class _Counted(io.RawIOBase):
    """A compressed stream, inflated, of which at most `bytes_max` bytes are read."""

    def __init__(self, stream: Any, bytes_max: int) -> None:
        super().__init__()
        self._stream, self._left, self._bytes_max = stream, bytes_max, bytes_max

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Inflate what fits."""
        data = self._stream.read(len(memoryview(buffer)))
        self._left -= len(data)
        if self._left < 0:
            raise InvalidError(TOO_LARGE.format(self._bytes_max))
        memoryview(buffer).cast("B")[: len(data)] = data
        return len(data)
