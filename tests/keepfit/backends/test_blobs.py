"""Storage: one contract for a local folder and S3, and how each of them fails."""

import errno
import hashlib
import os
import resource
import subprocess
import sys
import time
import tracemalloc
import uuid
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import pytest
import s3fs
from aiobotocore.response import AioStreamingBody
from aiohttp import ClientPayloadError

from keepfit.backends.blobs import S3_LIMITS, Entry, LocalStorage, S3Storage, Storage, open_storage
from keepfit.errors import SettingsError, UnavailableError
from keepfit.local.servers import free_port
from tests.servers import S3_ENVIRONMENT, wait_until

PATH = "ab12/1/7-c0ffee"

WRITE_FOREVER = """
import hashlib, os, sys
from keepfit.backends.blobs import open_storage
storage = open_storage(sys.argv[1])
while True:
    data = os.urandom(300_000)
    storage.put(f"model/1/{hashlib.sha256(data).hexdigest()}", data)
"""


@pytest.fixture(params=["local", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    """Return an empty storage of each kind."""
    url = (tmp_path / "snapshots").as_uri() if request.param == "local" else request.getfixturevalue("s3_url")
    return open_storage(url)


@pytest.fixture
def local(tmp_path: Path) -> LocalStorage:
    """Return an empty local storage."""
    return LocalStorage((tmp_path / "snapshots").as_uri())


@pytest.fixture
def unreachable_s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Storage]:
    """Return an S3 storage whose endpoint refuses connections."""
    for name, value in {**S3_ENVIRONMENT, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{free_port()}"}.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    yield S3Storage("s3://bucket/snapshots")
    s3fs.S3FileSystem.clear_instance_cache()


def test_a_blob_is_read_back_as_it_was_written(storage: Storage) -> None:
    """`get` returns the bytes that `put` stored, through the same object and through one opened later."""
    storage.put(PATH, b"a bundle\0\xff")
    assert storage.get(PATH) == b"a bundle\0\xff"
    assert storage.digest(PATH) == hashlib.sha256(b"a bundle\0\xff").hexdigest()
    assert open_storage(storage.url).get(PATH) == b"a bundle\0\xff"


def test_a_missing_blob_is_none(storage: Storage) -> None:
    """`get` and `digest` return None for a path that was never written, next to and below existing blobs."""
    storage.put(PATH, b"one")
    for path in ("ab12/1/8-c0ffee", "never/1/1-0"):
        assert storage.get(path) is None
        assert storage.digest(path) is None


def test_the_same_path_again_replaces_the_blob(storage: Storage) -> None:
    """A second `put` to the same path replaces the blob, whether it is shorter or longer."""
    for data in (b"first", b"2", b"third and longest"):
        storage.put(PATH, data)
        assert storage.get(PATH) == data


def test_a_large_blob_is_read_back_unchanged(storage: Storage) -> None:
    """A blob of several megabytes is read back unchanged."""
    data = os.urandom(6 * 2**20)
    storage.put(PATH, data)
    assert storage.get(PATH) == data


def test_the_digest_of_a_blob_takes_no_memory_of_its_size(local: LocalStorage, s3_url: str) -> None:
    """`digest` of 32 MiB allocates less than 4 MiB, from a folder and from S3."""
    data = bytes(32 * 2**20)
    expected = hashlib.sha256(data).hexdigest()
    storages = (local, open_storage(s3_url))
    for storage in storages:
        storage.put(PATH, data)
    del data
    for storage in storages:
        tracemalloc.start()
        try:
            assert storage.digest(PATH) == expected
            assert tracemalloc.get_traced_memory()[1] < 4 * 2**20
        finally:
            tracemalloc.stop()


def test_a_download_that_breaks_is_no_digest(s3_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the connection breaks within a blob, `digest` raises UnavailableError: the blob is not damaged."""
    storage = open_storage(s3_url)
    storage.put(PATH, bytes(1000))
    read = AioStreamingBody.read

    async def broken(body: AioStreamingBody, amt: int) -> bytes:
        if body.tell():
            raise ClientPayloadError("not enough data")
        return cast("bytes", await read(body, min(amt, 10)))

    monkeypatch.setattr(AioStreamingBody, "read", broken)
    with pytest.raises(UnavailableError, match="the answer ended early"):
        storage.digest(PATH)


def test_an_empty_blob_is_a_blob(storage: Storage) -> None:
    """An empty blob is not a missing blob."""
    storage.put(PATH, b"")
    assert storage.get(PATH) == b""


def test_uri_joins_the_storage_url_and_the_path(storage: Storage) -> None:
    """`uri` joins URL and path with one slash, with or without a slash at the end of the URL."""
    assert storage.uri(PATH) == f"{storage.url}/{PATH}"
    assert open_storage(storage.url + "/").uri(PATH) == storage.uri(PATH)


FAR = "g"


def test_blobs_are_listed_by_folder(storage: Storage) -> None:
    """`list` returns all blobs in the folders after one name and up to another, with their modification times."""
    began_s = time.time()
    paths = {f"{name}/{number}/1-c0ffee" for name in ("aa", "ab", "ac", "b0") for number in (1, 12)}
    for path in paths:
        storage.put(path, b"x")
    storage.put("keepfit-history", b"beside the folders")
    assert {entry.path for entry in storage.list("", FAR)} == paths
    assert {entry.path for entry in storage.list("aa", "ac")} == {path for path in paths if path[:2] in ("ab", "ac")}
    assert list(storage.list("b0", FAR)) == []
    for entry in storage.list("", FAR):
        assert began_s - 2 < entry.modified_s < time.time() + 2
        assert entry.unfinished == ""


def test_an_unused_storage_is_empty(storage: Storage) -> None:
    """In a storage without blobs, `list` returns nothing and `delete` has nothing to do."""
    assert list(storage.list("", FAR)) == []
    storage.delete([])


def test_more_than_one_page_is_listed_and_deleted(s3_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """`list` reads every page of S3 (a thousand objects or fewer), `delete` sends batches of up to a thousand."""
    monkeypatch.setattr("keepfit.backends.blobs.DELETE_BATCH_MAX", 2)
    storage = S3Storage(s3_url)
    paths = [f"ab/1/{number}-c0ffee" for number in range(7)]
    for path in paths:
        storage.put(path, b"x")
    real = storage._fs.call_s3

    def with_small_pages(method: str, **options: Any) -> Any:
        return real(method, **options, **({"MaxKeys": 3} if method == "list_objects_v2" else {}))

    monkeypatch.setattr(storage._fs, "call_s3", with_small_pages)
    assert sorted(entry.path for entry in storage.list("", FAR)) == paths
    storage.delete([Entry(path) for path in paths[1:]])
    assert [entry.path for entry in storage.list("", FAR)] == paths[:1]


def test_delete_removes_only_the_named_blobs(storage: Storage) -> None:
    """`delete` removes blobs by path and ignores missing ones; their folders can be used again."""
    storage.put(PATH, b"one")
    storage.put("ab12/1/8-c0ffee", b"two")
    storage.delete([Entry(PATH), Entry("ab12/2/9-c0ffee")])
    assert (storage.get(PATH), storage.get("ab12/1/8-c0ffee")) == (None, b"two")
    storage.delete([Entry(PATH), Entry("ab12/1/8-c0ffee")])
    assert list(storage.list("", FAR)) == []
    storage.put(PATH, b"again")
    assert storage.get(PATH) == b"again"


def test_folders_may_be_removed_during_writes(storage: Storage) -> None:
    """With concurrent writes and deletes in one folder, the blobs that were written last exist."""
    paths = [f"ab12/1/{number}-c0ffee" for number in range(20)]

    def write_and_delete(path: str) -> None:
        for _ in range(5):
            storage.put(path, b"x")
            storage.delete([Entry(path)])
        storage.put(path, path.encode())

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write_and_delete, paths))
    assert [storage.get(path) for path in paths] == [path.encode() for path in paths]


def test_readers_never_see_a_partial_blob(storage: Storage) -> None:
    """While a blob is replaced repeatedly, every read returns one complete version, never a mixture and never None."""
    versions = [bytes([number]) * 200_000 for number in range(8)]
    storage.put(PATH, versions[0])

    def write() -> None:
        for _ in range(3):
            for version in versions:
                storage.put(PATH, version)

    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(write)
        seen = [storage.get(PATH)]
        while not writing.done():
            seen.append(storage.get(PATH))
        writing.result()
    assert set(seen) <= set(versions)
    assert storage.get(PATH) == versions[-1]


def test_concurrent_writers_may_write_the_same_blob(storage: Storage) -> None:
    """Several snapshotters that save the same bundle at once leave that bundle."""
    data = os.urandom(100_000)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: storage.put(PATH, data), range(16)))
    assert storage.get(PATH) == data


def test_a_folder_whose_name_is_not_utf8_is_used(tmp_path: Path) -> None:
    """The URL of a folder of any name leads to that folder; messages show the name without characters of no text."""
    folder = tmp_path / os.fsdecode(b"caf\xe9 \x1b[31m")
    storage = open_storage(folder.as_uri())
    storage.put(PATH, b"x")
    assert open_storage(folder.as_uri()).get(PATH) == b"x"
    assert (folder / PATH).read_bytes() == b"x"
    (folder / PATH).unlink()
    (folder / PATH).mkdir()
    with pytest.raises(UnavailableError, match="regular file") as raised:
        storage.get(PATH)
    assert str(raised.value).encode().isascii()
    assert "\x1b" not in str(raised.value)


@pytest.mark.parametrize("kind", ["fifo", "link", "link to a folder"])
def test_only_regular_files_of_the_folder_are_blobs(local: LocalStorage, tmp_path: Path, kind: str) -> None:
    """A FIFO does not block a read, and links do not lead out of the folder: they are not read, listed or followed."""
    foreign = tmp_path / "foreign"
    (foreign / "1").mkdir(parents=True)
    (foreign / "1" / "7-c0ffee").write_bytes(b"not keepfit's")
    local.put("0000/1/1-c0ffee", b"one")
    blob = tmp_path / "snapshots" / PATH
    if kind == "link to a folder":
        blob.parents[1].symlink_to(foreign)
        assert [entry.path for entry in local.list("", FAR)] == ["0000/1/1-c0ffee"]
        for change in (lambda: local.put(PATH, b"x"), lambda: local.delete([Entry(PATH)])):
            with pytest.raises(UnavailableError, match="symbolic link"):
                change()
    else:
        blob.parent.mkdir(parents=True)
        if kind == "fifo":
            os.mkfifo(blob)
        else:
            blob.symlink_to(foreign / "1" / "7-c0ffee")
    with pytest.raises(UnavailableError, match=r"regular file|symbolic link|Not a directory"):
        local.get(PATH)
    if kind != "link to a folder":
        local.put(PATH, b"mine")
        assert local.get(PATH) == b"mine"
    assert (foreign / "1" / "7-c0ffee").read_bytes() == b"not keepfit's"


@pytest.mark.parametrize(
    "url",
    [
        "",
        "http://host/path",
        "https://bucket.s3.amazonaws.com/x",
        "ftp://host/path",
        "file://host/path",
        "file:///",
        "file:////",
        "file:relative/path",
        "file:///path?versions",
        "file:///path#1",
        "s3://",
        "s3:///prefix",
        "S3",
        "/var/lib/keepfit",
        "memory://x",
        "http://[",
        "s3://[",
    ],
)
def test_invalid_addresses_are_refused(url: str) -> None:
    """An address that is neither file:///path nor s3://bucket/prefix is a SettingsError that names the setting."""
    with pytest.raises(SettingsError, match=r"KEEPFIT_SNAPSHOT_URL.*neither file:///path nor s3://bucket/prefix"):
        open_storage(url)


def test_percent_encoded_folder_names_are_decoded(tmp_path: Path) -> None:
    """Spaces and other special characters are percent-encoded in the URL and not on disk."""
    folder = tmp_path / "my models #1"
    open_storage(folder.as_uri()).put(PATH, b"x")
    assert (folder / PATH).read_bytes() == b"x"


@pytest.mark.parametrize("death", [OSError(errno.EIO, "Input/output error"), KeyboardInterrupt()])
def test_an_interrupted_write_leaves_no_partial_blob(
    local: LocalStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, death: BaseException
) -> None:
    """A `put` that ends between write and rename leaves the former blob and no temporary file."""
    local.put(PATH, b"before")

    def rename(self: Path, target: Path) -> Path:
        raise death

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", rename)
        with pytest.raises((UnavailableError, KeyboardInterrupt)):
            local.put(PATH, b"after")
        with pytest.raises((UnavailableError, KeyboardInterrupt)):
            local.put("new/1/1-0", b"after")
    assert local.get(PATH) == b"before"
    assert local.get("new/1/1-0") is None
    assert [path for path in (tmp_path / "snapshots").rglob("*") if path.is_file()] == [tmp_path / "snapshots" / PATH]


def test_a_killed_writer_leaves_complete_blobs_only(tmp_path: Path) -> None:
    """After SIGKILL in the middle of a write, every blob under its final name is complete."""
    folder = tmp_path / "snapshots" / "model" / "1"
    for _ in range(2):
        before = len(list(folder.glob("*")))
        command = [sys.executable, "-c", WRITE_FOREVER, (tmp_path / "snapshots").as_uri()]
        with subprocess.Popen(command) as process:
            wait_until(lambda at_least=before + 10: len(list(folder.glob("*"))) > at_least, "ten blobs")  # type: ignore[misc]
            process.kill()
    blobs = [path for path in folder.iterdir() if not path.name.startswith("tmp")]
    assert len(blobs) >= 20
    assert [path.name for path in blobs if hashlib.sha256(path.read_bytes()).hexdigest() != path.name] == []


def test_a_write_syncs_the_file_before_the_rename_and_the_folders_after_it(
    local: LocalStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`put` syncs the file, renames it, and syncs each folder up to the root: a power cut leaves no empty file."""
    events: list[str] = []
    sync, rename = os.fsync, Path.rename

    def recorded_sync(descriptor: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        events.append(f"sync {path.relative_to(tmp_path) if path.is_dir() else 'data'}")
        sync(descriptor)

    def recorded_rename(self: Path, target: Path) -> Path:
        events.append("rename")
        return rename(self, target)

    monkeypatch.setattr(os, "fsync", recorded_sync)
    monkeypatch.setattr(Path, "rename", recorded_rename)
    local.put(PATH, b"x")
    assert events[:2] == ["sync data", "rename"]
    assert set(events[2:]) == {"sync snapshots", "sync snapshots/ab12", "sync snapshots/ab12/1"}


def test_a_file_in_place_of_the_folder_is_reported(tmp_path: Path) -> None:
    """If the folder is unusable, reads and writes raise UnavailableError with its name."""
    (tmp_path / "snapshots").write_text("no folder")
    storage = open_storage((tmp_path / "snapshots").as_uri())
    with pytest.raises(UnavailableError, match=f"{tmp_path}/snapshots cannot be written"):
        storage.put(PATH, b"x")
    with pytest.raises(UnavailableError, match=f"{tmp_path}/snapshots"):
        storage.get(PATH)


def test_a_full_disk_is_reported_and_leaves_no_file(local: LocalStorage, tmp_path: Path) -> None:
    """A write that fails in the middle raises UnavailableError, and its temporary file is removed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64 * 1024, hard))
    try:
        with pytest.raises(UnavailableError, match="snapshots cannot be written"):
            local.put(PATH, bytes(1_000_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert local.get(PATH) is None
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_missing_folder_is_not_a_missing_blob(local: LocalStorage, tmp_path: Path) -> None:
    """A folder that is not mounted raises UnavailableError, so that no snapshot is considered damaged."""
    local.put(PATH, b"x")
    (tmp_path / "snapshots").rename(tmp_path / "unmounted")
    with pytest.raises(UnavailableError, match=f"{tmp_path}/snapshots does not exist"):
        local.get(PATH)
    with pytest.raises(UnavailableError, match=f"{tmp_path}/snapshots does not exist"):
        local.digest(PATH)
    with pytest.raises(UnavailableError, match=f"{tmp_path}/snapshots does not exist"):
        local.delete([Entry(PATH)])


def test_unreachable_s3_is_reported_after_three_attempts(unreachable_s3: S3Storage) -> None:
    """If S3 is unreachable, each call raises UnavailableError with the address after three attempts, not minutes."""
    attempts: list[str] = []
    unreachable_s3._fs.connect()
    unreachable_s3._fs.s3.meta.events.register("before-send.s3", lambda event_name, **_: attempts.append(event_name))
    with pytest.raises(UnavailableError, match="s3://bucket/snapshots cannot be written"):
        unreachable_s3.put(PATH, b"x")
    with pytest.raises(UnavailableError, match="s3://bucket/snapshots cannot be read"):
        unreachable_s3.get(PATH)
    with pytest.raises(UnavailableError, match="s3://bucket/snapshots cannot be written"):
        unreachable_s3.delete([Entry(PATH)])
    with pytest.raises(UnavailableError, match="s3://bucket/snapshots cannot be read"):
        list(unreachable_s3.list("", FAR))
    assert list(Counter(attempts).values()) == [S3_LIMITS["retries"]["total_max_attempts"]] * 4


def test_a_missing_bucket_is_not_a_missing_blob(s3_url: str) -> None:
    """A missing bucket raises UnavailableError, so that no snapshot is considered damaged."""
    with pytest.raises(UnavailableError, match="bucket does not exist"):
        open_storage(f"s3://no{uuid.uuid4().hex}/snapshots").get(PATH)
    with pytest.raises(UnavailableError, match="bucket does not exist"):
        open_storage(f"s3://no{uuid.uuid4().hex}/snapshots").digest(PATH)


def test_wrong_s3_credentials_are_not_a_missing_blob(s3_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Credentials that S3 refuses raise UnavailableError; `get` never returns None for them."""
    open_storage(s3_url).put(PATH, b"x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not it")
    s3fs.S3FileSystem.clear_instance_cache()
    refused = open_storage(s3_url)
    with pytest.raises(UnavailableError, match="cannot be read"):
        refused.get(PATH)
    with pytest.raises(UnavailableError, match="cannot be read"):
        refused.digest(PATH)
    with pytest.raises(UnavailableError, match="cannot be written"):
        refused.put(PATH, b"y")


def test_an_upload_of_another_size_is_an_error(s3_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """`put` checks the size that S3 has stored, and raises UnavailableError if it differs."""
    real = s3fs.S3FileSystem._info

    async def short(self: Any, path: str, **kwargs: Any) -> dict[str, Any]:
        return {**await real(self, path, **kwargs), "size": 3}

    monkeypatch.setattr(s3fs.S3FileSystem, "_info", short)
    with pytest.raises(UnavailableError, match="stored 3 of 5 bytes"):
        open_storage(s3_url).put(PATH, b"12345")
