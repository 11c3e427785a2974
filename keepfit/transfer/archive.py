"""Read and write the export file: a signed zip of bundles, recipes and history documents.

Owns the format::

    manifest.json                          format, time, and the SHA-256 of each model's entry
    manifest.seal                          envelope over the manifest's SHA-256: identifies the writer's key
    models/<hash>/model.json               metadata, recipe, and fields of each snapshot's document, newest first
    models/<hash>/<generation>-<version>   a snapshot's bundle, in its envelope

Never unpickles and never extracts: entries are read by names that are built here. Invariant: the reader returns only
data that it has verified to be signed with one of the given keys. Nothing is compressed, so no entry is larger than its
size in the zip directory. What is exported and how it is imported: `docs/guides/export-and-import.md`.
"""

import hashlib
import os
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import msgspec

import keepfit
from keepfit.backends.files import open_regular, sync_folder
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
# The open files of this process, on Linux.
DESCRIPTORS = "/proc/self/fd"
GIVE_KEYS = (
    "name a file with the signing keys of the deployment that wrote it with --keys (for `keepfit up` the file "
    "signing-keys of its folder), or set KEEPFIT_IMPORT_KEYS."
)
# All entries have the same time in the zip directory; the times that matter are in the documents.
ZIP_TIME = (2000, 1, 1, 0, 0, 0)


class ArchivedSnapshot(msgspec.Struct, frozen=True, kw_only=True):
    """Fields of a snapshot's history document that do not depend on where it is stored.

    `changed` is the JSON text of the parameters that were changed before it, None if none were.
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


class ArchivedModel(msgspec.Struct, frozen=True, kw_only=True):
    """A model in the file: metadata (canonical) and recipe as text, and its snapshots, newest first."""

    metadata: str
    recipe: str
    snapshots: list[ArchivedSnapshot]


class _Manifest(msgspec.Struct, frozen=True, kw_only=True):
    format: int
    keepfit: str
    timestamp: float
    models: dict[str, str]


def _model_path(model_hash: str) -> str:
    return f"models/{model_hash}/model.json"


def _blob_path(model_hash: str, snapshot: ArchivedSnapshot) -> str:
    return f"models/{model_hash}/{snapshot.generation}-{snapshot.version}"


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


def _create_unnamed(path: Path) -> tuple[int, Path | None]:
    """Create a file for `path`, without a name or with a temporary one; return its descriptor and that name.

    Only the owner can read it: it holds everything that the models have learned.
    """
    if sys.platform == "linux" and Path(DESCRIPTORS).is_dir():
        # A file system or a kernel that cannot do it says so in several ways; the other way reports a real problem.
        with suppress(OSError):
            return os.open(path.parent, os.O_TMPFILE | os.O_RDWR, 0o600), None
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    return descriptor, Path(name)


def _link(descriptor: int, temporary: Path | None, path: Path) -> None:
    """Give the file its name."""
    if temporary is not None:
        os.link(temporary, path)
        return
    folder = os.open(DESCRIPTORS, os.O_RDONLY)
    try:
        # With a folder's descriptor Python calls linkat(2), which follows the link to the file.
        os.link(str(descriptor), path, src_dir_fd=folder)
    finally:
        os.close(folder)


class Writer:
    """Writes an export file in a ``with`` block; the file gets its name when it is complete.

    There is no file after an error, or if no model was added. A killed process leaves none either, where the file
    system can create files without a name (Linux), otherwise one with a temporary name.
    """

    def __init__(self, path: Path, keyring: Keyring) -> None:
        self._path = path
        self._keyring = keyring
        self._models: dict[str, str] = {}

    def __enter__(self) -> Self:
        """Create the file without its name."""
        with _writable(self._path):
            if self._path.exists():
                raise FileExistsError
            descriptor, self._part = _create_unnamed(self._path)
            self._file = os.fdopen(descriptor, "w+b")
        self._zip = zipfile.ZipFile(self._file, "w", zipfile.ZIP_STORED)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Complete the file; remove it after an error, or if it has no model."""
        try:
            if kind is None and self._models:
                self._end()
        finally:
            with suppress(OSError, ValueError):
                self._zip.close()
            with suppress(OSError, ValueError):
                self._file.close()
            if self._part is not None:
                self._part.unlink(missing_ok=True)

    def add_blob(self, model_hash: str, snapshot: ArchivedSnapshot, data: bytes) -> None:
        """Add a snapshot's bundle."""
        self._write(_blob_path(model_hash, snapshot), data)

    def add(self, model_hash: str, model: ArchivedModel) -> None:
        """Add a model after all its bundles."""
        text = msgspec.json.encode(model)
        self._write(_model_path(model_hash), text)
        self._models[model_hash] = _digest(text)

    def _write(self, name: str, data: bytes) -> None:
        with _writable(self._path):
            self._zip.writestr(zipfile.ZipInfo(name, ZIP_TIME), data)

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
            # A hard link: unlike a rename it never replaces an existing file.
            _link(self._file.fileno(), self._part, self._path)
            try:
                sync_folder(self._path.parent)
            except OSError:
                self._path.unlink(missing_ok=True)
                raise


class Reader:
    """Reads an export file from an untrusted source; `keyrings` are tried in turn.

    Raises
    ------
    InvalidError
        If there is no such file, or it is not an export file of a format that this version reads.
    UnknownKeyError, EnvelopeError
        If it is not signed with any of the keys.
    UnavailableError
        If the file cannot be read.
    """

    def __init__(self, path: Path, keyrings: Sequence[Keyring]) -> None:
        self._path = path
        self._keyrings = keyrings
        try:
            self._file = open_regular(path)
        except FileNotFoundError:
            raise InvalidError(f"There is no file {path}.") from None
        except OSError as error:
            raise UnavailableError(f"{path} cannot be read: {error.strerror}") from error
        try:
            self._zip = self._open_zip()
            self._models = self._manifest().models
        except BaseException:
            self._file.close()
            raise

    def _open_zip(self) -> zipfile.ZipFile:
        try:
            return zipfile.ZipFile(self._file)
        except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
            raise InvalidError(f"{self._path} is not a complete zip file: {error}") from None
        except OSError as error:
            raise UnavailableError(f"{self._path} cannot be read: {error.strerror}") from error

    def _manifest(self) -> _Manifest:
        text = self._read(MANIFEST, TEXT_BYTES_MAX)
        seal = self._read(SEAL, SEAL_BYTES_MAX)
        try:
            _, sealed = self._open(seal, ARCHIVE)
        except UnknownKeyError:
            raise
        except EnvelopeError as error:
            if not (key_id := envelope.key_id_of(seal)):
                raise
            raise EnvelopeError(
                f"{self._path} is signed with a key named {key_id!r}, which is not the key of that name here. If "
                f"another deployment wrote the file: {GIVE_KEYS} Otherwise the file is damaged. ({error})"
            ) from None
        if sealed != _digest(text).encode():
            raise EnvelopeError(f"The manifest of {self._path} is not the one that was signed.")
        manifest = self._decode(text, MANIFEST, _Manifest)
        if manifest.format != FORMAT:
            raise InvalidError(f"{self._path} has format {manifest.format}; this keepfit reads {FORMAT}.")
        return manifest

    def __enter__(self) -> Self:
        """Return the reader."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the file."""
        self._file.close()

    @property
    def hashes(self) -> list[str]:
        """Hashes of the models in the file."""
        return list(self._models)

    def read(self, model_hash: str) -> ArchivedModel:
        """Read the entry of a model.

        Raises
        ------
        EnvelopeError, InvalidError
            If it is not the signed one, or names another model.
        """
        text = self._read(_model_path(model_hash), TEXT_BYTES_MAX)
        if _digest(text) != self._models[model_hash]:
            raise EnvelopeError(f"The entry of {model_hash} in {self._path} is not the one that was signed.")
        model = self._decode(text, _model_path(model_hash), ArchivedModel)
        try:
            metadata = check_metadata(parse_json(model.metadata.encode()))
        except MalformedError as error:
            raise InvalidError(f"{self._path}: the metadata of {model_hash} cannot be read: {error}") from None
        if hash_of(metadata) != model_hash or not model.snapshots:
            raise InvalidError(f"{self._path}: {model_hash} is not the hash of its metadata, or has no snapshot.")
        return model

    def blob(self, model_hash: str, snapshot: ArchivedSnapshot) -> tuple[Header, bytes]:
        """Read a snapshot's bundle; return its verified header and its pickle, which is not loaded.

        Raises
        ------
        EnvelopeError
            If it is not signed with one of the keys for this model and version.
        """
        data = self._read(_blob_path(model_hash, snapshot), snapshot.size_bytes)
        if len(data) != snapshot.size_bytes or _digest(data) != snapshot.sha256:
            raise EnvelopeError(f"The bundle of {model_hash}, version {snapshot.version}, is damaged in {self._path}.")
        header, payload = self._open(data, envelope.BUNDLE)
        if (header.hash, header.generation, header.version) != (model_hash, snapshot.generation, snapshot.version):
            raise EnvelopeError(
                f"{self._path} holds another bundle under the name of {model_hash}, version {snapshot.version}."
            )
        return header, payload

    def _decode(self, text: bytes, name: str, form: type[F]) -> F:
        try:
            return msgspec.json.decode(text, type=form)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise InvalidError(f"{name} in {self._path} is not in the format that keepfit writes: {error}.") from None

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
        key_id = envelope.key_id_of(data)
        raise UnknownKeyError(f"{self._path} is signed with the key {key_id!r}, which is not known here: {GIVE_KEYS}")

    def _read(self, name: str, bytes_max: int) -> bytes:
        try:
            entry = self._zip.getinfo(name)
            if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size:
                raise InvalidError(f"{name} in {self._path} is compressed; keepfit writes entries uncompressed.")
            if entry.file_size > bytes_max:
                raise InvalidError(f"{name} in {self._path} is larger than {bytes_max} bytes.")
            return self._zip.read(entry)
        except KeyError:
            raise InvalidError(f"{self._path} has no {name}; it is not a complete export file.") from None
        except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, ValueError) as error:
            raise InvalidError(f"{name} in {self._path} cannot be read: {error}") from None
        except OSError as error:
            raise UnavailableError(f"{self._path} cannot be read: {error.strerror}") from error
