"""Compressed files: gzip and Zstandard, by the end of a name.

Owns how they are opened. Invariant: the same content gives the same bytes, because nothing that is written has a time
in it.
"""

import gzip
import sys
import zlib
from typing import BinaryIO, Literal, cast

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

Coding = Literal["gzip", "zstd"]
CODINGS: dict[str, Coding] = {".gz": "gzip", ".zst": "zstd"}
# What a damaged or truncated file raises.
ERRORS = (gzip.BadGzipFile, zlib.error, zstd.ZstdError, EOFError)
# As of RFC 9659: a frame that needs more memory than 128 MiB is refused.
OPTIONS = {int(zstd.DecompressionParameter.window_log_max): 27}


def coding_of(path: str) -> tuple[str, Coding | None]:
    """Return a name without the end that says how the file is compressed, and the coding.

    >>> coding_of("a.csv.gz"), coding_of("a.csv.ZST"), coding_of("a.csv")
    (('a.csv', 'gzip'), ('a.csv', 'zstd'), ('a.csv', None))
    """
    for end, coding in CODINGS.items():
        if path.lower().endswith(end):
            return path[: -len(end)], coding
    return path, None


def reader(raw: BinaryIO, coding: Coding | None) -> BinaryIO:
    """Return the file that is in `raw`."""
    if coding == "gzip":
        return cast("BinaryIO", gzip.GzipFile(fileobj=raw))
    if coding == "zstd":
        return cast("BinaryIO", zstd.ZstdFile(raw, options=OPTIONS))
    return raw


def writer(raw: BinaryIO, coding: Coding | None) -> BinaryIO | None:
    """Return a file that is compressed into `raw`, None without a coding; closing it leaves `raw` open."""
    if coding == "gzip":
        return cast("BinaryIO", gzip.GzipFile("", "wb", fileobj=raw, mtime=0))
    return cast("BinaryIO", zstd.ZstdFile(raw, "w")) if coding == "zstd" else None
