"""Written rows: no column is lost, files are complete or as they were, and nothing but a file is replaced."""

import gzip
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from keepfit.client.files.row_files import FileRow, RowFile
from keepfit.client.files.row_writer import RowWriter
from keepfit.errors import KeepfitError

ROWS = [{"a": 1, "b": "x"}, {"a": 2, "b": "y"}]
CSV = "a,b\n1,x\n2,y\n"


def read(path: Path) -> list[FileRow]:
    """Return the rows of a file."""
    with RowFile(str(path)) as source:
        return list(source)


def write(path: Path | str) -> None:
    """Write two rows as CSV."""
    with RowWriter(str(path), "csv") as writer:
        for row in ROWS:
            writer.write(row)


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.json", "a.jsonl", "a.csv.gz", "a.csv.zst", "a.json.gz"])
def test_written_rows_are_read_again(tmp_path: Path, name: str) -> None:
    """Rows are written in the format of the name; without rows the file is empty, or an empty list."""
    path = tmp_path / name
    rows = [{"a": "x,\t\n", "b": "1"}, {"a": "größe", "b": "2.5"}]
    with RowWriter(str(path), "csv" if "csv" in name else name.split(".")[1]) as writer:  # type: ignore[arg-type]
        for row in rows:
            writer.write(dict(row))
    assert [row.values for row in read(path)] == rows


def test_an_error_leaves_the_former_file(tmp_path: Path) -> None:
    """A result is written beside the file and replaces it at the end: after an error the former file is there."""
    path = tmp_path / "a.csv"
    path.write_text("former")

    def stop() -> None:
        with RowWriter(str(path), "csv") as writer:
            writer.write({"a": 1})
            raise KeepfitError("stopped")

    with pytest.raises(KeepfitError, match="stopped"):
        stop()
    assert path.read_text() == "former"
    assert [found.name for found in tmp_path.iterdir()] == ["a.csv"]


def test_no_column_of_csv_is_lost(tmp_path: Path) -> None:
    """Columns that a later row brings are in the header, those that are added last; the others have no value there."""
    with RowWriter(str(tmp_path / "a.csv"), "csv") as writer:
        writer.write({"x": 1}, {"p": None})
        writer.write({"x": 2, "y": [3]}, {"p": "u", "p_u": 0.5})
        writer.write({"z": True}, {"p": "v", "p_u": 0.1, "p_v": 0.9})
    assert (tmp_path / "a.csv").read_text() == (
        "x,y,z,p,p_u,p_v\n1,,,,,\n2,[3],,u,0.5,\n,,true,v,0.1,0.9\n"
    )  # fmt: skip


def test_a_file_without_rows_has_a_header(tmp_path: Path) -> None:
    """Columns that are known without a row are the header of CSV."""
    with RowWriter(str(tmp_path / "a.csv"), "csv") as writer:
        writer.expect(["x", "y"], ["prediction"])
    assert (tmp_path / "a.csv").read_text() == "x,y,prediction\n"


@pytest.mark.parametrize("suffix", [".csv", ".csv.gz"])
def test_a_pipe_is_written_to(tmp_path: Path, suffix: str) -> None:
    """A FIFO gets the rows and remains one."""
    path = tmp_path / f"pipe{suffix}"
    os.mkfifo(path)
    found: list[bytes] = []
    reader = threading.Thread(target=lambda: found.append(path.read_bytes()))
    reader.start()
    write(path)
    reader.join(30)
    assert (gzip.decompress(found[0]) if suffix.endswith(".gz") else found[0]).decode() == CSV
    assert stat.S_ISFIFO(path.stat().st_mode)


def test_a_device_is_written_to() -> None:
    """/dev/null takes the rows; a device that is full is an error. Both remain devices."""
    write("/dev/null")
    with pytest.raises(KeepfitError, match="/dev/full cannot be written: No space left on device"):
        write("/dev/full")
    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode)
    assert stat.S_ISCHR(Path("/dev/full").stat().st_mode)


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    """The file that a link leads to is replaced, or made; the link remains."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "link.csv").symlink_to("folder/real.csv")
    for _ in range(2):
        write(tmp_path / "link.csv")
        assert (tmp_path / "link.csv").is_symlink()
        assert (tmp_path / "folder" / "real.csv").read_text() == CSV
    (tmp_path / "loop.csv").symlink_to("loop.csv")
    with pytest.raises(KeepfitError, match=r"loop\.csv cannot be written: Too many levels"):
        write(tmp_path / "loop.csv")


def test_a_folder_is_an_error(tmp_path: Path) -> None:
    """A folder, and a path in a folder that does not exist, are errors that name the path."""
    for path, message in ((tmp_path, "Is a directory"), (tmp_path / "none" / "a.csv", "No such file or directory")):
        with pytest.raises(KeepfitError, match=f"{path} cannot be written: {message}"):
            write(path)
    assert list(tmp_path.iterdir()) == []


def test_modes_are_kept(tmp_path: Path) -> None:
    """A new file has the mode that the umask gives, a replaced one keeps its own; files beside it are not touched."""
    beside = tmp_path / ".a.csv.new"
    beside.write_text("of another program")
    mask = os.umask(0o027)
    try:
        write(tmp_path / "a.csv")
    finally:
        os.umask(mask)
    assert stat.S_IMODE((tmp_path / "a.csv").stat().st_mode) == 0o640
    (tmp_path / "a.csv").chmod(0o604)
    write(tmp_path / "a.csv")
    assert stat.S_IMODE((tmp_path / "a.csv").stat().st_mode) == 0o604
    assert beside.read_text() == "of another program"
    assert sorted(path.name for path in tmp_path.iterdir()) == [".a.csv.new", "a.csv"]


PROGRAM = """
import sys
from keepfit.client.files.row_writer import RowWriter
with RowWriter(sys.argv[1], "csv") as writer:
    writer.write({"a": 1, "b": "x"})
    writer.write({"a": 2, "b": "y"})
"""


@pytest.mark.parametrize("path", ["/dev/stdout", "/dev/fd/1", "-", "out.csv"])
def test_standard_output_by_any_name_is_appended_to(tmp_path: Path, path: str) -> None:
    """Where the output is redirected to a file, that file is neither replaced nor emptied."""
    out = tmp_path / "out.csv"
    out.write_text("before\n")
    with out.open("a") as file:
        subprocess.run([sys.executable, "-c", PROGRAM, path], stdout=file, check=True, timeout=60, cwd=tmp_path)
    assert out.read_text() == f"before\n{CSV}"
    piped = subprocess.run([sys.executable, "-c", PROGRAM, path], stdout=subprocess.PIPE, check=True, timeout=60,
                           cwd=tmp_path)  # fmt: skip
    assert (piped.stdout.decode() or out.read_text()) == CSV


def test_a_full_disk_leaves_the_former_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the disk is full at the end, the former file is there, and nothing else."""
    write(tmp_path / "a.csv")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("keepfit.backends.files.os.fsync", fail)
    with pytest.raises(KeepfitError, match="No space left"), RowWriter(str(tmp_path / "a.csv"), "csv") as writer:
        writer.write({"other": 1})
    assert (tmp_path / "a.csv").read_text() == CSV
    assert [path.name for path in tmp_path.iterdir()] == ["a.csv"]
