"""The export file: the reader returns what was written, and refuses a file that was changed."""

import errno
import io
import json
import os
import signal
import stat
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from keepfit.errors import EnvelopeError, InvalidError, KeepfitError, UnavailableError, UnknownKeyError
from keepfit.identity import canonical, hash_of
from keepfit.security import envelope
from keepfit.security.envelope import Header, Keyring
from keepfit.transfer import archive
from keepfit.transfer.archive import ArchivedModel, ArchivedSnapshot, Reader, Writer

OURS = Keyring.from_text("local:" + "11" * 32)
THEIRS = Keyring.from_text("local:" + "22" * 32)
OTHERS = Keyring.from_text("other:" + "33" * 32)
METADATA = {"type": "shoes", "brand": "nike"}
HASH = hash_of(METADATA)
PICKLES = (b"newest", b"older")


def snapshot_of(version: int, data: bytes) -> ArchivedSnapshot:
    """Return the fields of a snapshot."""
    return ArchivedSnapshot(
        timestamp=1e9 + version,
        generation=1,
        version=version,
        sequence=version,
        rows_seen=3 * version,
        metrics={"rows": version},
        sha256=envelope.digest_of(data),
        size_bytes=len(data),
        runtime=envelope.runtime(),
    )


def sealed(version: int, pickle: bytes, keyring: Keyring = THEIRS) -> bytes:
    """Return a signed bundle."""
    return keyring.seal(Header(envelope.BUNDLE, HASH, 1, version, version, 3 * version, "", envelope.runtime()), pickle)


def write(path: Path, keyring: Keyring = THEIRS) -> ArchivedModel:
    """Write a file with one model and two snapshots."""
    blobs = {2: sealed(2, PICKLES[0], keyring), 1: sealed(1, PICKLES[1], keyring)}
    model = ArchivedModel(
        metadata=canonical(METADATA).decode(),
        recipe='{"estimator":"SGDRegressor"}',
        snapshots=[snapshot_of(version, data) for version, data in blobs.items()],
    )
    with Writer(path, keyring) as writer:
        for one, data in zip(model.snapshots, blobs.values(), strict=True):
            writer.add_blob(HASH, one, data)
        writer.add(HASH, model)
    return model


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return the path of a file that does not exist yet."""
    return tmp_path / "export.zip"


def test_a_fifo_is_no_export_file(path: Path) -> None:
    """A FIFO that nothing writes to is an error at once, and leaves nothing open."""
    os.mkfifo(path)
    with pytest.raises(UnavailableError, match="it is not a regular file"):
        Reader(path, [OURS])


def test_a_file_is_read_as_it_was_written(path: Path) -> None:
    """Models, their fields and pickles are read as they were written; only the owner may read the file."""
    model = write(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert os.listdir(path.parent) == [path.name]
    with Reader(path, [OURS, THEIRS]) as reader:
        assert reader.hashes == [HASH]
        assert reader.read(HASH) == model
        assert tuple(reader.blob(HASH, one)[1] for one in model.snapshots) == PICKLES
    assert zipfile.ZipFile(path).testzip() is None


def test_an_existing_file_is_not_overwritten(path: Path) -> None:
    """Writing to an existing path fails and leaves the file as it is."""
    path.write_bytes(b"precious")
    with pytest.raises(InvalidError, match="exists already"):
        write(path)
    assert path.read_bytes() == b"precious"


def test_a_writer_that_fails_leaves_nothing(path: Path) -> None:
    """After an error there is no file, and no partial file."""
    with pytest.raises(AttributeError), Writer(path, THEIRS) as writer:
        writer.add_blob(HASH, None, b"x")  # type: ignore[arg-type]
    assert os.listdir(path.parent) == []


def test_without_the_writers_key_a_file_is_refused(path: Path) -> None:
    """The error names the key, and says how to give those of the deployment that wrote the file."""
    write(path)
    with pytest.raises(
        UnknownKeyError, match=r"with the key 'local', which is not known here: .*--keys.*KEEPFIT_IMPORT"
    ):
        Reader(path, [OTHERS])
    with pytest.raises(
        EnvelopeError,
        match=r"a key named 'local', which is not the key of that name here. .*--keys.*KEEPFIT_IMPORT_KEYS",
    ):
        Reader(path, [OURS])


KILLED = """
import os, signal, sys
from pathlib import Path
from keepfit.security.envelope import Keyring
from keepfit.transfer import archive
if sys.argv[2] == "named":
    archive.DESCRIPTORS = "/none"
with archive.Writer(Path(sys.argv[1]), Keyring.from_text("k:" + "11" * 32)) as writer:
    writer._write("models/half", b"x" * 100_000)
    os.kill(os.getpid(), getattr(signal, sys.argv[3]))
"""


@pytest.mark.parametrize("how", ["SIGKILL", "SIGTERM", "SIGINT"])
def test_a_killed_writer_leaves_no_file(path: Path, how: str) -> None:
    """A process that is killed while it writes leaves nothing in the folder."""
    done = subprocess.run(
        [sys.executable, "-c", KILLED, path, "unnamed", how], check=False, timeout=60, capture_output=True
    )
    assert done.returncode == -getattr(signal, how)
    assert os.listdir(path.parent) == []


def test_a_killed_writer_leaves_no_file_of_the_name_where_files_have_names(path: Path) -> None:
    """Where a file cannot be without a name, a killed process leaves one with a temporary name, and no other."""
    done = subprocess.run([sys.executable, "-c", KILLED, path, "named", "SIGKILL"], check=False, timeout=60)
    assert done.returncode == -signal.SIGKILL
    assert not path.exists()
    write(path)
    with Reader(path, [THEIRS]) as reader:
        assert reader.hashes == [HASH]


def test_a_file_that_is_named_from_the_start_is_read_as_it_was_written(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a file cannot be without a name, the result is the same, and the temporary name is removed."""
    monkeypatch.setattr(archive, "DESCRIPTORS", "/none")
    write(path)
    assert os.listdir(path.parent) == [path.name]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.unlink()
    with pytest.raises(AttributeError), Writer(path, THEIRS) as writer:
        writer.add_blob(HASH, None, b"x")  # type: ignore[arg-type]
    assert os.listdir(path.parent) == []


def test_without_models_there_is_no_file(path: Path) -> None:
    """A writer to which no model was added leaves no file."""
    with Writer(path, THEIRS):
        pass
    assert os.listdir(path.parent) == []


@pytest.mark.parametrize("fails", ["fsync", "link"])
def test_a_disk_that_fails_at_the_end_leaves_no_file(path: Path, monkeypatch: pytest.MonkeyPatch, fails: str) -> None:
    """If the file cannot be synced or named, there is none, and the error names it."""

    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(archive.os, fails, fail)
    with pytest.raises(UnavailableError, match=f"{path} cannot be written: No space left on device"):
        write(path)
    assert os.listdir(path.parent) == []


def remade(path: Path, change: Callable[[dict[str, bytes]], None], compression: int = zipfile.ZIP_STORED) -> None:
    """Write the file again with changed entries."""
    with zipfile.ZipFile(path) as read:
        entries = {name: read.read(name) for name in read.namelist()}
    change(entries)
    with zipfile.ZipFile(path, "w", compression) as written:
        for name, data in entries.items():
            written.writestr(name, data)


def read_all(path: Path) -> None:
    """Read everything, as an import does."""
    with Reader(path, [THEIRS]) as reader:
        for model_hash in reader.hashes:
            for one in reader.read(model_hash).snapshots:
                reader.blob(model_hash, one)


def without_a_blob(entries: dict[str, bytes]) -> None:
    """Remove a bundle."""
    del entries[f"models/{HASH}/1-1"]


def with_a_flipped_bit(entries: dict[str, bytes]) -> None:
    """Flip one bit of a bundle."""
    data = bytearray(entries[f"models/{HASH}/1-2"])
    data[-1] ^= 1
    entries[f"models/{HASH}/1-2"] = bytes(data)


def with_bundles_exchanged(entries: dict[str, bytes]) -> None:
    """Replace the newest bundle by the older one."""
    entries[f"models/{HASH}/1-2"] = entries[f"models/{HASH}/1-1"]


def with_other_metrics(entries: dict[str, bytes]) -> None:
    """Change a field of a snapshot."""
    name = f"models/{HASH}/model.json"
    document = json.loads(entries[name])
    document["snapshots"][0]["rows_seen"] = 10**9
    entries[name] = json.dumps(document).encode()


def with_another_manifest(entries: dict[str, bytes]) -> None:
    """Remove the models from the manifest."""
    manifest = json.loads(entries["manifest.json"])
    entries["manifest.json"] = json.dumps({**manifest, "models": {}}).encode()


def with_a_bundle_for_a_seal(entries: dict[str, bytes]) -> None:
    """Replace the seal by an envelope for another purpose."""
    digest = envelope.digest_of(entries["manifest.json"])
    entries["manifest.seal"] = sealed(1, digest.encode())


def of_another_format(entries: dict[str, bytes]) -> None:
    """Make it a file of a later format, correctly signed."""
    manifest = json.loads(entries["manifest.json"])
    entries["manifest.json"] = json.dumps({**manifest, "format": 2}).encode()
    header = Header("archive", "", 0, 0, 0, 0, "", {})
    entries["manifest.seal"] = THEIRS.seal(header, envelope.digest_of(entries["manifest.json"]).encode())


def without_a_manifest(entries: dict[str, bytes]) -> None:
    """Make it another zip file."""
    entries.clear()
    entries["../../etc/passwd"] = b"root"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without_a_blob, "has no models/.*/1-1"),
        (with_a_flipped_bit, "version 2, is damaged"),
        (with_bundles_exchanged, "version 2, is damaged|is larger than"),
        (with_other_metrics, "is not the one that was signed"),
        (with_another_manifest, "is not the one that was signed"),
        (with_a_bundle_for_a_seal, "Signature mismatch"),
        (of_another_format, "has format 2"),
        (without_a_manifest, "not a complete export file"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_a_changed_file_is_refused(path: Path, change: Callable[[dict[str, bytes]], None], message: str) -> None:
    """Any difference to what the writer signed is an error that names it, and the data is not returned."""
    write(path)
    remade(path, change)
    with pytest.raises(KeepfitError, match=message):
        read_all(path)


def test_compressed_entries_are_refused_unread(path: Path) -> None:
    """keepfit writes no compressed entries, so the reader refuses them and inflates nothing."""
    write(path)
    remade(path, lambda entries: entries.update({"manifest.json": bytes(10**8)}), zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 10**6
    with pytest.raises(InvalidError, match="is compressed"):
        Reader(path, [THEIRS])


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04 nothing", os.urandom(1000)], ids=["empty", "begun", "noise"])
def test_a_file_that_is_not_a_zip_is_refused(path: Path, data: bytes) -> None:
    """Other bytes, a missing file and a truncated file are an InvalidError."""
    with pytest.raises(InvalidError, match="There is no file"):
        Reader(path, [THEIRS])
    path.write_bytes(data)
    with pytest.raises(InvalidError, match="not a complete zip file"):
        Reader(path, [THEIRS])


def test_a_truncated_file_is_refused(path: Path) -> None:
    """A file is refused wherever it is truncated."""
    write(path)
    whole = path.read_bytes()
    for end in range(0, len(whole), 97):
        path.write_bytes(whole[:end])
        with pytest.raises(KeepfitError):
            read_all(path)


def test_a_model_under_another_hash_is_refused(path: Path) -> None:
    """Metadata whose hash is not the name of the entry is refused, although the writer signed it."""
    other = "0" * 64
    model = ArchivedModel(metadata=canonical(METADATA).decode(), recipe="{}", snapshots=[snapshot_of(1, b"x")])
    with Writer(path, THEIRS) as writer:
        writer.add(other, model)
    with Reader(path, [THEIRS]) as reader, pytest.raises(InvalidError, match="not the hash of its metadata"):
        reader.read(other)
    assert msgspec.json.decode(io.BytesIO(zipfile.ZipFile(path).read("manifest.json")).read())["format"] == 1
