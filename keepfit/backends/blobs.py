"""Storage of snapshots and the row log: a local folder or S3, by URL.

Owns writing a blob as a whole or not at all, reading, listing and deleting. Never decides what a blob means, or which
blob is deleted.
Invariant: when :meth:`Storage.put` returns, the blob survives a power cut of this machine (local) or is acknowledged by
the object store (S3). Paths are built by keepfit from hashes and numbers; no address from a client is opened.
"""

import errno
import os
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import fsspec
from botocore.exceptions import BotoCoreError, ClientError

from keepfit.errors import SettingsError, UnavailableError

# The SDK's own limits add up to minutes; here, a pass over many models or a prediction waits for the result.
S3_LIMITS: Mapping[str, Any] = {
    "connect_timeout": 3,
    "read_timeout": 20,
    "retries": {"mode": "standard", "total_max_attempts": 3},
}


# Objects that S3 deletes in one call.
DELETE_BATCH_MAX = 1000
TEMPORARY = "tmp"
FOLDER_ATTEMPTS = 10


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
        self._root = Path(unquote(urlsplit(url).path))

    def put(self, path: str, data: bytes) -> None:
        """Write to a temporary file, sync it, rename it, sync the folder: the blob exists as a whole or not at all."""
        target = self._root / path
        try:
            with self._temporary(target.parent) as file:
                try:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                    Path(file.name).rename(target)
                except BaseException:
                    Path(file.name).unlink(missing_ok=True)
                    raise
            for folder in (target.parent, *target.parent.relative_to(self._root).parents):
                _sync_folder(self._root / folder)
        except OSError as error:
            raise UnavailableError(f"The folder {self._root} cannot be written: {error}") from error

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
        try:
            return (self._root / path).read_bytes()
        except FileNotFoundError:
            if not self._root.is_dir():
                # Not mounted, or another address than before: this does not mean that the blob is missing.
                raise UnavailableError(f"The folder {self._root} does not exist.") from None
            return None
        except OSError as error:
            raise UnavailableError(f"The folder {self._root} cannot be read: {error}") from error

    def list(self, after: str, until: str) -> Iterator[Entry]:
        """Walk through the folders in order of their names."""
        try:
            names = sorted(path.name for path in self._root.iterdir()) if self._root.is_dir() else []
            for name in names:
                if not after < name <= until:
                    continue
                for folder, _, files in os.walk(self._root / name):
                    yield from self._entries(folder, files)
        except OSError as error:
            raise UnavailableError(f"The folder {self._root} cannot be read: {error}") from error

    def _entries(self, folder: str, names: Sequence[str]) -> Iterator[Entry]:
        for name in names:
            path = Path(folder, name)
            # Temporary files may disappear at any time.
            with suppress(FileNotFoundError):
                modified_s = path.stat().st_mtime
                unfinished = "file" if name.startswith(TEMPORARY) else ""
                yield Entry(str(path.relative_to(self._root)), modified_s, unfinished)

    def delete(self, entries: Sequence[Entry]) -> None:
        """Delete the files, then their folders if these are empty."""
        if not entries:
            return
        if not self._root.is_dir():
            raise UnavailableError(f"The folder {self._root} does not exist.")
        try:
            for entry in entries:
                path = self._root / entry.path
                path.unlink(missing_ok=True)
                for folder in path.relative_to(self._root).parents[:-1]:
                    with suppress(OSError):
                        (self._root / folder).rmdir()
        except OSError as error:
            raise UnavailableError(f"The folder {self._root} cannot be written: {error}") from error


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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
            raise UnavailableError(f"{self.url} cannot be written: {error}") from error
        if size != len(data):
            raise UnavailableError(f"{self.url} stored {size} of {len(data)} bytes of {path}.")

    def get(self, path: str) -> bytes | None:
        """Download an object."""
        try:
            data: bytes = self._fs.cat_file(f"{self._root}/{path}")
        except FileNotFoundError as error:
            if _no_bucket(error.__cause__):
                raise UnavailableError(f"{self.url} cannot be read: {error}") from error
            return None
        except (OSError, BotoCoreError, ClientError) as error:
            raise UnavailableError(f"{self.url} cannot be read: {error}") from error
        return data

    def list(self, after: str, until: str) -> Iterator[Entry]:
        """List objects and unfinished uploads, a thousand of each per call."""
        try:
            yield from takewhile(lambda entry: entry.path.partition("/")[0] <= until, self._objects(after))
            yield from (entry for entry in self._uploads() if after < entry.path.partition("/")[0] <= until)
        except (OSError, BotoCoreError, ClientError) as error:
            raise UnavailableError(f"{self.url} cannot be read: {error}") from error

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
                    raise UnavailableError(f"{self.url} cannot be written: {failed[0].get('Message')}")
            for entry in entries:
                if entry.unfinished:
                    self._abort(entry)
        except (OSError, BotoCoreError, ClientError) as error:
            raise UnavailableError(f"{self.url} cannot be written: {error}") from error

    def _abort(self, entry: Entry) -> None:
        # A missing upload was aborted or completed by another process.
        with suppress(FileNotFoundError):
            key = f"{self._prefix}{entry.path}"
            self._fs.call_s3("abort_multipart_upload", Bucket=self._bucket, Key=key, UploadId=entry.unfinished)


def _no_bucket(cause: BaseException | None) -> bool:
    return isinstance(cause, ClientError) and cause.response["Error"].get("Code") == "NoSuchBucket"


def open_storage(url: str, setting: str = "KEEPFIT_SNAPSHOT_URL") -> Storage:
    """Open ``file:///path`` or ``s3://bucket/prefix``.

    Raises
    ------
    SettingsError
        For any other address; the message names the `setting`.
    """
    try:
        parts = urlsplit(url)
    except ValueError:
        parts = urlsplit("")
    plain = not parts.query and not parts.fragment
    if parts.scheme == "file" and not parts.netloc and parts.path.startswith("/") and parts.path.strip("/") and plain:
        return LocalStorage(url)
    if parts.scheme == "s3" and parts.netloc and plain:
        return S3Storage(url)
    raise SettingsError(f"{setting}: {url!r} is neither file:///path nor s3://bucket/prefix.")
