"""Storage of snapshots and the row log: a local folder or S3, by URL.

Owns writing a blob as a whole or not at all, reading, listing and deleting. Never decides what a blob means, or which
blob is deleted.
Invariant: when :meth:`Storage.put` returns, the blob survives a power cut of this machine (local) or is acknowledged by
the object store (S3). Paths are built by keepfit from hashes and numbers; no address from a client is opened.
"""

import errno
import hashlib
import os
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from io import BufferedReader
from itertools import takewhile
from pathlib import Path
from typing import Any, TypeVar, cast
from urllib.parse import unquote_to_bytes, urlsplit

import fsspec
import fsspec.asyn
from botocore.exceptions import BotoCoreError, ClientError

from keepfit.backends.files import open_regular, sync_folder, write_and_rename
from keepfit.backends.storage_urls import check_storage_url
from keepfit.errors import UnavailableError
from keepfit.observability.printable import printable

T = TypeVar("T")

# The SDK's own limits add up to minutes; here, a pass over many models or a prediction waits for the result.
S3_LIMITS: Mapping[str, Any] = {
    "connect_timeout": 3,
    "read_timeout": 20,
    "retries": {"mode": "standard", "total_max_attempts": 3},
}


# Objects that S3 deletes in one call.
DELETE_BATCH_MAX = 1000
TEMPORARY = "tmp"
# What clients without the scope `admin` read: addresses and paths are for logs, commands and administrators.
NO_STORAGE, NOT_READ, NOT_WRITTEN = (
    f"The storage {what}." for what in ("does not exist", "cannot be read", "cannot be written")
)
FOLDER_ATTEMPTS = 10
# Memory that comparing a blob takes, whatever its size.
PART_BYTES = 256 * 2**10


@dataclass(frozen=True, slots=True)
class Entry:
    """A blob, or the leftover of a killed writer.

    `modified_s` is the time of the last change by the clock of the storage (seconds); `unfinished` is an upload's id or
    "file".
    """

    path: str
    modified_s: float = 0.0
    unfinished: str = ""


class Storage(ABC):
    """Blobs by relative path under one URL."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")

    def uri(self, path: str) -> str:
        """Return the full address of a blob, for messages and documents."""
        return f"{self.url}/{path}"

    @abstractmethod
    def put(self, path: str, data: bytes) -> None:
        """Write a blob as a whole, and check that it exists; UnavailableError if that fails."""

    @abstractmethod
    def get(self, path: str) -> bytes | None:
        """Read a blob; None if it does not exist, UnavailableError if the storage itself does not exist."""

    @abstractmethod
    def digest(self, path: str) -> str | None:
        """Return the SHA-256 (hex) of a blob, which is never in memory as a whole; None and errors as of `get`."""

    @abstractmethod
    def list(self, after: str, until: str) -> Iterator[Entry]:
        """List everything in the folders (first parts of paths) with ``after < name <= until``.

        The list is empty if no blob was ever written; UnavailableError if the storage cannot be read.
        """

    @abstractmethod
    def delete(self, entries: Sequence[Entry]) -> None:
        """Delete those of `entries` that exist; UnavailableError if that fails or the storage itself does not exist."""


class LocalStorage(Storage):
    """Blobs as files below a folder."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        # A name of Linux is bytes, which need not be UTF-8.
        self._root = Path(os.fsdecode(unquote_to_bytes(urlsplit(url).path)))
        self._shown = printable(str(self._root))

    def put(self, path: str, data: bytes) -> None:
        """Write to a temporary file, sync it, rename it, sync the folder: the blob exists as a whole or not at all."""
        target = self._root / path
        try:
            self._refuse_links(path)
            with self._temporary(target.parent) as file:
                write_and_rename(file, data, target)
            for folder in (target.parent, *target.parent.relative_to(self._root).parents):
                sync_folder(self._root / folder)
        except OSError as error:
            raise UnavailableError(f"The folder {self._shown} cannot be written: {error}", NOT_WRITTEN) from error

    def _temporary(self, folder: Path) -> "tempfile._TemporaryFileWrapper[bytes]":
        """Open a temporary file in a folder, and create the folder if needed."""
        for _ in range(FOLDER_ATTEMPTS):
            # The process that deletes the last blob of a folder deletes the folder too.
            with suppress(FileNotFoundError):
                folder.mkdir(parents=True, exist_ok=True)
                return tempfile.NamedTemporaryFile(dir=folder, prefix=TEMPORARY, delete=False)
        raise FileNotFoundError(errno.ENOENT, "The folder was deleted each time it was created", str(folder))

    def get(self, path: str) -> bytes | None:
        """Read a file."""
        return self._read(path, lambda file: file.read())

    def digest(self, path: str) -> str | None:
        """Read a file in parts."""
        return self._read(path, lambda file: hashlib.file_digest(file, "sha256").hexdigest())

    def _read(self, path: str, read: Callable[[BufferedReader], T]) -> T | None:
        try:
            with open_regular(self._root / path, self._root) as file:
                return read(file)
        except FileNotFoundError:
            if not self._root.is_dir():
                # Not mounted, or another address than before: this does not mean that the blob is missing.
                raise UnavailableError(f"The folder {self._shown} does not exist.", NO_STORAGE) from None
            return None
        except OSError as error:
            raise UnavailableError(f"The folder {self._shown} cannot be read: {error}", NOT_READ) from error

    def _refuse_links(self, path: str) -> None:
        """Raise OSError if a folder of the path is a link: it would lead to files that are not keepfit's."""
        for folder in Path(path).parents[:-1]:
            if (self._root / folder).is_symlink():
                raise OSError(errno.ELOOP, "it is a symbolic link", str(self._root / folder))

    def list(self, after: str, until: str) -> Iterator[Entry]:
        """Walk through the folders in order of their names."""
        try:
            paths = list(self._root.iterdir()) if self._root.is_dir() else []
            # A link is not keepfit's: what it leads to is neither listed nor, as garbage, deleted.
            names = sorted(path.name for path in paths if not path.is_symlink())
            for name in names:
                if not after < name <= until:
                    continue
                for folder, _, files in os.walk(self._root / name):
                    yield from self._entries(folder, files)
        except OSError as error:
            raise UnavailableError(f"The folder {self._shown} cannot be read: {error}", NOT_READ) from error

    def _entries(self, folder: str, names: Sequence[str]) -> Iterator[Entry]:
        for name in names:
            path = Path(folder, name)
            # Temporary files may disappear at any time.
            with suppress(FileNotFoundError):
                modified_s = path.lstat().st_mtime
                unfinished = "file" if name.startswith(TEMPORARY) else ""
                yield Entry(str(path.relative_to(self._root)), modified_s, unfinished)

    def delete(self, entries: Sequence[Entry]) -> None:
        """Delete the files, then their folders if these are empty."""
        if not entries:
            return
        if not self._root.is_dir():
            raise UnavailableError(f"The folder {self._shown} does not exist.", NO_STORAGE)
        try:
            for entry in entries:
                path = self._root / entry.path
                self._refuse_links(entry.path)
                path.unlink(missing_ok=True)
                for folder in path.relative_to(self._root).parents[:-1]:
                    with suppress(OSError):
                        (self._root / folder).rmdir()
        except OSError as error:
            raise UnavailableError(f"The folder {self._shown} cannot be written: {error}", NOT_WRITTEN) from error


class S3Storage(Storage):
    """Blobs as objects; credentials, region and endpoint come from the AWS SDK's own settings (AWS_ENDPOINT_URL, …)."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self._fs = fsspec.filesystem("s3", use_listings_cache=False, config_kwargs=dict(S3_LIMITS))
        self._root = self.url.removeprefix("s3://")
        self._bucket, _, folder = self._root.partition("/")
        self._prefix = f"{folder}/" if folder else ""

    def put(self, path: str, data: bytes) -> None:
        """Upload the object, then compare its stored size."""
        target = f"{self._root}/{path}"
        try:
            self._fs.pipe_file(target, data)
            size = self._fs.info(target)["size"]
        except (OSError, BotoCoreError, ClientError) as error:
            raise UnavailableError(f"{self.url} cannot be written: {error}", NOT_WRITTEN) from error
        if size != len(data):
            raise UnavailableError(f"{self.url} stored {size} of {len(data)} bytes of {path}.", NOT_WRITTEN)

    def get(self, path: str) -> bytes | None:
        """Download an object."""
        return self._read(lambda: cast("bytes", self._fs.cat_file(f"{self._root}/{path}")))

    def digest(self, path: str) -> str | None:
        """Download an object in parts."""

        def read() -> str:
            answer = self._fs.call_s3("get_object", Bucket=self._bucket, Key=f"{self._prefix}{path}")
            return cast("str", fsspec.asyn.sync(self._fs.loop, _digest_of, answer["Body"]))

        return self._read(read)

    def _read(self, read: Callable[[], T]) -> T | None:
        try:
            return read()
        except FileNotFoundError as error:
            if _no_bucket(error.__cause__):
                raise UnavailableError(f"{self.url} cannot be read: {error}", NOT_READ) from error
            return None
        except (OSError, BotoCoreError, ClientError) as error:
            raise UnavailableError(f"{self.url} cannot be read: {error}", NOT_READ) from error

    def list(self, after: str, until: str) -> Iterator[Entry]:
        """List objects and unfinished uploads, a thousand of each per call."""
        try:
            yield from takewhile(lambda entry: entry.path.partition("/")[0] <= until, self._objects(after))
            yield from (entry for entry in self._uploads() if after < entry.path.partition("/")[0] <= until)
        except (OSError, BotoCoreError, ClientError) as error:
            raise UnavailableError(f"{self.url} cannot be read: {error}", NOT_READ) from error

    def _objects(self, after: str) -> Iterator[Entry]:
        # "0" is the character after "/": the list starts after all objects of that folder.
        where: dict[str, Any] = {"StartAfter": f"{self._prefix}{after}0"} if after else {}
        while True:
            page = self._fs.call_s3("list_objects_v2", Bucket=self._bucket, Prefix=self._prefix, **where)
            for found in page.get("Contents", ()):
                yield Entry(found["Key"].removeprefix(self._prefix), found["LastModified"].timestamp())
            if not page.get("IsTruncated"):
                return
            where = {"ContinuationToken": page["NextContinuationToken"]}

    def _uploads(self) -> Iterator[Entry]:
        where: dict[str, Any] = {}
        while True:
            page = self._fs.call_s3("list_multipart_uploads", Bucket=self._bucket, Prefix=self._prefix, **where)
            for found in page.get("Uploads", ()):
                path = found["Key"].removeprefix(self._prefix)
                yield Entry(path, found["Initiated"].timestamp(), found["UploadId"])
            if not page.get("IsTruncated"):
                return
            where = {"KeyMarker": page["NextKeyMarker"], "UploadIdMarker": page["NextUploadIdMarker"]}

    def delete(self, entries: Sequence[Entry]) -> None:
        """Delete objects, a thousand per call, and abort uploads."""
        blobs = [{"Key": f"{self._prefix}{entry.path}"} for entry in entries if not entry.unfinished]
        try:
            for begin in range(0, len(blobs), DELETE_BATCH_MAX):
                some = {"Objects": blobs[begin : begin + DELETE_BATCH_MAX], "Quiet": True}
                failed = self._fs.call_s3("delete_objects", Bucket=self._bucket, Delete=some).get("Errors")
                if failed:
                    raise UnavailableError(f"{self.url} cannot be written: {failed[0].get('Message')}", NOT_WRITTEN)
            for entry in entries:
                if entry.unfinished:
                    self._abort(entry)
        except (OSError, BotoCoreError, ClientError) as error:
            raise UnavailableError(f"{self.url} cannot be written: {error}", NOT_WRITTEN) from error

    def _abort(self, entry: Entry) -> None:
        # A missing upload was aborted or completed by another process.
        with suppress(FileNotFoundError):
            key = f"{self._prefix}{entry.path}"
            self._fs.call_s3("abort_multipart_upload", Bucket=self._bucket, Key=key, UploadId=entry.unfinished)


async def _digest_of(body: Any) -> str:
    """Return the SHA-256 (hex) of the body of an answer; raises OSError if it ends early."""
    digest = hashlib.sha256()
    try:
        async with body:
            async for part in body.iter_chunks(PART_BYTES):
                digest.update(part)
    except Exception as error:
        # Whichever class the HTTP client of the SDK has for it.
        raise OSError(f"the answer ended early: {error}") from error
    return digest.hexdigest()


def _no_bucket(cause: BaseException | None) -> bool:
    return isinstance(cause, ClientError) and cause.response["Error"].get("Code") == "NoSuchBucket"


def open_storage(url: str, setting: str = "KEEPFIT_SNAPSHOT_URL") -> Storage:
    """Open ``file:///path`` or ``s3://bucket/prefix``.

    Raises
    ------
    SettingsError
        For any other address; the message names the `setting`.
    """
    parts = check_storage_url(url, setting)
    # The scheme may be written in capitals; stored addresses of blobs have it in lower case.
    url = parts.scheme + url[len(parts.scheme) :]
    return LocalStorage(url) if parts.scheme == "file" else S3Storage(url)
