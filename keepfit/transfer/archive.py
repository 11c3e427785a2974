"""The file that models move house in: a zip of their bundles, recipes and histories, signed by who wrote it.

Owns the format::

    manifest.json                          format, time, and the SHA-256 of each model's entry
    manifest.seal                          envelope over the manifest's SHA-256: who wrote the file
    models/<hash>/model.json               metadata, recipe, and what is said of each snapshot, newest first
    models/<hash>/<generation>-<version>   a snapshot's bundle, in the envelope that it had

Never unpickles, never extracts: entries are read by names that are built here. Invariant: nothing that is read is given
out before it is known to be what a holder of one of the given keys wrote. Nothing is compressed, so no entry is larger
than it looks. What goes in and what becomes of it: `docs/guides/restore.md`.
"""

import hashlib
import os
import time
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import msgspec

import keepfit
from keepfit.errors import EnvelopeError, InvalidError, MalformedError, UnavailableError, UnknownKeyError
from keepfit.identity import check_metadata, hash_of, parse_json
from keepfit.security import envelope
from keepfit.security.envelope import Header, Keyring

F = TypeVar("F")

FORMAT = 1
ARCHIVE = "archive"
MANIFEST, SEAL = "manifest.json", "manifest.seal"
SEAL_BYTES_MAX = 4096
TEXT_BYTES_MAX = 256 * 2**20
# All entries are of the same moment, for a reader of zip files; keepfit's times are in the documents.
MOMENT = (2000, 1, 1, 0, 0, 0)


class ArchivedSnapshot(msgspec.Struct, frozen=True, kw_only=True):
    """What is said of one snapshot: the fields of its history document that do not depend on where it is kept.

    `changed` is the text of the parameters that were changed before it, None where none were.
    """

    timestamp: float
    generation: int
    version: int
    sequence: int
    rows_seen: int
    metrics: dict[str, Any]
    sha256: str
    size_bytes: int
    runtime: dict[str, str]
    changed: str | None = None


class Archived(msgspec.Struct, frozen=True, kw_only=True):
    """One model in the file: metadata (canonical) and recipe as text, and its snapshots, newest first."""

    metadata: str
    recipe: str
    snapshots: list[ArchivedSnapshot]


class _Manifest(msgspec.Struct, frozen=True, kw_only=True):
    format: int
    keepfit: str
    timestamp: float
    models: dict[str, str]


def _entry_of(model_hash: str) -> str:
    return f"models/{model_hash}/model.json"


def _blob_of(model_hash: str, shot: ArchivedSnapshot) -> str:
    return f"models/{model_hash}/{shot.generation}-{shot.version}"


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@contextmanager
def _writable(path: Path) -> Iterator[None]:
    try:
        yield
    except FileExistsError:
        raise InvalidError(f"{path} exists already; name another file, or remove it.") from None
    except OSError as error:
        raise UnavailableError(f"{path} cannot be written: {error.strerror or error}") from error


class Writer:
    """Writes a file, which has its name only when it is whole; to be used in a ``with``."""

    def __init__(self, path: Path, keyring: Keyring) -> None:
        self._path = path
        self._part = path.with_name(f"{path.name}.part")
        self._keyring = keyring
        self._models: dict[str, str] = {}

    def __enter__(self) -> Self:
        """Begin the file."""
        with _writable(self._path):
            if self._path.exists():
                raise FileExistsError
            # Nobody else's to read: it holds all that the models know.
            descriptor = os.open(self._part, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
            self._file = os.fdopen(descriptor, "w+b")
        self._zip = zipfile.ZipFile(self._file, "w", zipfile.ZIP_STORED)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the file, or remove what there is of it."""
        try:
            if kind is None:
                self._end()
        finally:
            with suppress(OSError, ValueError):
                self._zip.close()
            with suppress(OSError, ValueError):
                self._file.close()
            self._part.unlink(missing_ok=True)

    def add_blob(self, model_hash: str, shot: ArchivedSnapshot, data: bytes) -> None:
        """Add a snapshot's bundle."""
        self._write(_blob_of(model_hash, shot), data)

    def add(self, model_hash: str, model: Archived) -> None:
        """Add a model, all of whose bundles are there."""
        text = msgspec.json.encode(model)
        self._write(_entry_of(model_hash), text)
        self._models[model_hash] = _digest(text)

    def _write(self, name: str, data: bytes) -> None:
        with _writable(self._path):
            self._zip.writestr(zipfile.ZipInfo(name, MOMENT), data)

    def _end(self) -> None:
        manifest = _Manifest(format=FORMAT, keepfit=keepfit.__version__, timestamp=time.time(), models=self._models)
        text = msgspec.json.encode(manifest)
        self._write(MANIFEST, text)
        header = Header(ARCHIVE, "", 0, 0, 0, 0, "", envelope.runtime())
        self._write(SEAL, self._keyring.seal(header, _digest(text).encode()))
        with _writable(self._path):
            self._zip.close()
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            # A link, which unlike a rename never takes another file's place.
            os.link(self._part, self._path)
            folder = os.open(self._path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)


class Reader:
    """Reads a file that somebody else may have written; `keyrings` are asked in turn whose it is.

    Raises
    ------
    InvalidError
        If there is no such file, or it is no archive of keepfit's that this version reads.
    UnknownKeyError, EnvelopeError
        If none of the keys signed it.
    """

    def __init__(self, path: Path, keyrings: Sequence[Keyring]) -> None:
        self._path = path
        self._keyrings = keyrings
        try:
            self._zip = zipfile.ZipFile(path)
        except FileNotFoundError:
            raise InvalidError(f"There is no file {path}.") from None
        except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
            raise InvalidError(f"{path} is no whole zip file: {error}") from None
        except OSError as error:
            raise UnavailableError(f"{path} cannot be read: {error.strerror}") from error
        try:
            self._models = self._manifest().models
        except BaseException:
            self._zip.close()
            raise

    def _manifest(self) -> _Manifest:
        text = self._read(MANIFEST, TEXT_BYTES_MAX)
        _, sealed = self._open(self._read(SEAL, SEAL_BYTES_MAX), ARCHIVE)
        if sealed != _digest(text).encode():
            raise EnvelopeError(f"The manifest of {self._path} is not the one that was signed.")
        manifest = self._decode(text, MANIFEST, _Manifest)
        if manifest.format != FORMAT:
            raise InvalidError(f"{self._path} has format {manifest.format}; this keepfit reads {FORMAT}.")
        return manifest

    def __enter__(self) -> Self:
        """Read on."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the file."""
        self._zip.close()

    @property
    def hashes(self) -> list[str]:
        """Hashes of the models in the file."""
        return list(self._models)

    def read(self, model_hash: str) -> Archived:
        """Read what is said of a model.

        Raises
        ------
        EnvelopeError, InvalidError
            If it is not what was signed, or names another model.
        """
        text = self._read(_entry_of(model_hash), TEXT_BYTES_MAX)
        if _digest(text) != self._models[model_hash]:
            raise EnvelopeError(f"What {self._path} says of {model_hash} is not what was signed.")
        model = self._decode(text, _entry_of(model_hash), Archived)
        try:
            metadata = check_metadata(parse_json(model.metadata.encode()))
        except MalformedError as error:
            raise InvalidError(f"{self._path}: the metadata of {model_hash} cannot be read: {error}") from None
        if hash_of(metadata) != model_hash or not model.snapshots:
            raise InvalidError(f"{self._path}: {model_hash} is not what its metadata name, or has no snapshot.")
        return model

    def blob(self, model_hash: str, shot: ArchivedSnapshot) -> tuple[Header, bytes]:
        """Read a snapshot's bundle; return its verified header and its pickle, which nobody has opened.

        Raises
        ------
        EnvelopeError
            If it is not the one that was signed, by one of the keys, for this model and version.
        """
        data = self._read(_blob_of(model_hash, shot), shot.size_bytes)
        if len(data) != shot.size_bytes or _digest(data) != shot.sha256:
            raise EnvelopeError(f"The bundle of {model_hash}, version {shot.version}, is damaged in {self._path}.")
        header, payload = self._open(data, envelope.BUNDLE)
        if (header.hash, header.generation, header.version) != (model_hash, shot.generation, shot.version):
            raise EnvelopeError(f"{self._path} holds another bundle for {model_hash} than it names.")
        return header, payload

    def _decode(self, text: bytes, name: str, form: type[F]) -> F:
        try:
            return msgspec.json.decode(text, type=form)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise InvalidError(f"{name} in {self._path} is not as keepfit writes it: {error}.") from None

    def _open(self, data: bytes, purpose: str) -> tuple[Header, bytes]:
        failure: EnvelopeError | None = None
        for keyring in self._keyrings:
            try:
                return keyring.open(data, purpose)
            except UnknownKeyError:
                continue
            except EnvelopeError as error:
                failure = error
        if failure is not None:
            raise failure
        raise UnknownKeyError(
            f"{self._path} is signed with a key that is not known here: give the signing keys of who wrote it, in "
            "KEEPFIT_IMPORT_KEYS or a file named with --keys."
        )

    def _read(self, name: str, bytes_max: int) -> bytes:
        try:
            entry = self._zip.getinfo(name)
            if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size:
                raise InvalidError(f"{name} in {self._path} is compressed; keepfit writes it as it is.")
            if entry.file_size > bytes_max:
                raise InvalidError(f"{name} in {self._path} is larger than it may be.")
            return self._zip.read(entry)
        except KeyError:
            raise InvalidError(f"{self._path} has no {name}; it is no whole archive of keepfit's.") from None
        except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, ValueError) as error:
            raise InvalidError(f"{name} in {self._path} cannot be read: {error}") from None
        except OSError as error:
            raise UnavailableError(f"{self._path} cannot be read: {error.strerror}") from error
