"""Where snapshots are kept: a local folder or S3, by URL.

Owns writing a blob so that it is there whole or not at all, and reading it back. Never decides what a blob means.
Invariant: when :meth:`Storage.put` returns, the blob survives a power cut of this machine (local) or is acknowledged by
the object store (S3). Paths are built by keepfit from hashes and numbers; no address from outside is opened.
"""

import os
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import fsspec
from botocore.exceptions import BotoCoreError, ClientError

from keepfit.errors import SettingsError, UnavailableError

# The SDK's own limits add up to minutes; who waits here is a pass over many models or a prediction.
S3_LIMITS: Mapping[str, Any] = {
    "connect_timeout": 3,
    "read_timeout": 20,
    "retries": {"mode": "standard", "total_max_attempts": 3},
}


class Storage(ABC):
    """Blobs by relative path under one URL."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")

    def uri(self, path: str) -> str:
        """Full address of a blob, for people and documents."""
        return f"{self.url}/{path}"

    @abstractmethod
    def put(self, path: str, data: bytes) -> None:
        """Write a blob whole, and check that it is there; UnavailableError if that fails."""

    @abstractmethod
    def get(self, path: str) -> bytes | None:
        """Read a blob; None where there is none, UnavailableError where the storage as a whole is not there."""


class LocalStorage(Storage):
    """Blobs as files below a folder."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self._root = Path(unquote(urlsplit(url).path))

    def put(self, path: str, data: bytes) -> None:
        """Write to a temporary file, sync it, rename it, sync the folder: whole or not at all."""
        target = self._root / path
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=target.parent, delete=False) as file:
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
            raise UnavailableError(f"The snapshot folder {self._root} cannot be written: {error}") from error

    def get(self, path: str) -> bytes | None:
        """Read a file."""
        try:
            return (self._root / path).read_bytes()
        except FileNotFoundError:
            if not self._root.is_dir():
                # Not mounted, or another address than before: that says nothing of a blob.
                raise UnavailableError(f"The snapshot folder {self._root} is not there.") from None
            return None
        except OSError as error:
            raise UnavailableError(f"The snapshot folder {self._root} cannot be read: {error}") from error


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class S3Storage(Storage):
    """Blobs as objects; credentials, region and endpoint are the AWS SDK's own settings (AWS_ENDPOINT_URL, …)."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self._fs = fsspec.filesystem("s3", use_listings_cache=False, config_kwargs=dict(S3_LIMITS))
        self._root = self.url.removeprefix("s3://")

    def put(self, path: str, data: bytes) -> None:
        """Upload, then ask for the object's size."""
        target = f"{self._root}/{path}"
        try:
            self._fs.pipe_file(target, data)
            size = self._fs.info(target)["size"]
        except (OSError, BotoCoreError, ClientError) as error:
            raise UnavailableError(f"{self.url} cannot be written: {error}") from error
        if size != len(data):
            raise UnavailableError(f"{self.url} kept {size} of {len(data)} bytes of {path}.")

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


def _no_bucket(cause: BaseException | None) -> bool:
    return isinstance(cause, ClientError) and cause.response["Error"].get("Code") == "NoSuchBucket"


def open_storage(url: str) -> Storage:
    """Open ``file:///path`` or ``s3://bucket/prefix``.

    Raises
    ------
    SettingsError
        For any other address.
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
    raise SettingsError(f"KEEPFIT_SNAPSHOT_URL: {url!r} is neither file:///path nor s3://bucket/prefix.")
