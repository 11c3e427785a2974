"""The commands `keepfit pull` and `jobs` on a running stack."""

import json
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from keepfit.cli.jobs import _columns
from keepfit.errors import MalformedError
from tests.conftest import Stack
from tests.keepfit.cli.command import Done, error_line, keepfit
from tests.keepfit.cli.terminal import on_terminal

SOURCE = "s3://data/daily/shoes.parquet"


def made(stack: Stack, cwd: Path) -> tuple[str, Callable[..., Done]]:
    """Create a model; return its hash, and a function that runs a command on the stack."""

    def run(*words: str) -> Done:
        return keepfit(*words, "--data", str(stack.data), cwd=cwd)

    words = ("--metadata", "type=pulled", f"session={uuid.uuid4().hex}", "--estimator", "SGDRegressor")
    done = run("create", *words, "--features", "make:category", "year:number", "--scaler", "StandardScaler")
    assert done.returncode == 0, done.stderr
    return done.stdout.strip(), run


def documents(done: Done) -> list[dict[str, Any]]:
    """Return the JSON that a command printed."""
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_jobs_are_made_listed_and_cancelled(stack: Stack, tmp_path: Path) -> None:
    """`pull` prints the id of a job; the same run gives the same job, and no run another one; `jobs` shows all."""
    model_hash, run = made(stack, tmp_path)
    words = ("pull", SOURCE, "--hash", model_hash, "--target", "fit", "--column", "make=brand", "--column", "year")
    first, second = run(*words).stdout.strip(), run(*words).stdout.strip()
    assert first != second
    daily = [run(*words, "--run", "monday").stdout.strip() for _ in range(2)]
    assert daily[0] == daily[1] not in (first, second)
    (job,) = documents(run("jobs", first[:12], "--json"))
    assert (job["job"], job["hash"], job["url"], job["state"]) == (first, model_hash, SOURCE, "queued")
    assert (job["columns"], job["target"]) == ({"make": "brand", "year": "year"}, "fit")
    ids = [each["job"] for each in documents(run("jobs", "--hash", model_hash[:12], "--json"))]
    assert ids == [daily[0], second, first]
    cut = run("jobs", "--hash", model_hash, "--limit", "1")
    assert cut.stdout.splitlines()[1].split("\t")[:3] == [daily[0], model_hash, "queued"]
    assert cut.stderr == "There are more jobs than these 1: use --limit, --hash or --state.\n"
    (ended,) = documents(run("jobs", first, "--cancel", "--json"))
    assert ended["state"] == "cancelled"
    followed = run("jobs", first, "--follow", "--json")
    assert (followed.returncode, followed.stderr) == (1, "keepfit: the job has been cancelled\n")
    (listed,) = documents(run("jobs", "--hash", model_hash, "--state", "cancelled", "--json"))
    assert listed["job"] == first
    shown = on_terminal("jobs", "--hash", model_hash, "--data", str(stack.data), cwd=tmp_path)
    assert [line.split()[:3] for line in shown.splitlines()[1:]] == [
        [daily[0][:10], model_hash[:10], "queued"], [second[:10], model_hash[:10], "queued"],
        [first[:10], model_hash[:10], "cancelled"],
    ]  # fmt: skip
    assert max(map(len, shown.splitlines())) <= 80
    for job_id in (second, daily[0]):
        assert run("jobs", job_id, "--cancel").returncode == 0
    for wrong, message in (
        (("pull", "https://example.org/a.csv", "--hash", model_hash), "KEEPFIT_PULL_PREFIXES"),
        (("pull", SOURCE, "--hash", model_hash, "--column", "=x"), "--column is NAME, or NAME=SOURCE"),
        (("jobs", "--follow"), "Name the job to follow or to cancel."),
        (("jobs", "f" * 31), "There is no job whose id begins with"),
        (("jobs", "f" * 32), "There is no job"),
    ):
        assert message in error_line(run(*wrong))


def test_a_job_is_followed_to_its_end(up: Callable[..., Stack], tmp_path: Path) -> None:
    """--follow waits until the source is learned, and prints the job; a job that fails is an error with the reason."""
    folder = tmp_path / "sources"
    folder.mkdir()
    stack = up(PULL_PREFIXES=folder.as_uri())
    model_hash, run = made(stack, tmp_path)
    rows = "".join(f"nike,{2000 + number % 20},{number % 7}\n" for number in range(250))
    (folder / "shoes.csv").write_text(f"make,year,fit\n{rows}")
    (folder / "bad.csv").write_text(f"make,year,fit\nnike,abc,1\n{rows}")
    words = ("--hash", model_hash, "--target", "fit", "--batch", "100", "--follow")
    (job,) = documents(run("pull", f"{folder.as_uri()}/shoes.csv", *words, "--json"))
    assert (job["state"], job["rows"]["accepted"], job["calls"]) == ("done", 250, 3)
    failed = run("pull", f"{folder.as_uri()}/bad.csv", *words)
    assert failed.returncode == 1
    assert failed.stderr.startswith("keepfit: the job has failed: ")
    lines = [line.split("\t") for line in failed.stdout.splitlines()]
    assert ["state", "failed"] in lines
    assert dict(lines)["error"].rstrip(".") in failed.stderr


def test_columns_are_names_or_pairs() -> None:
    """A column is named once."""
    assert _columns(["a=b", "c"]) == {"a": "b", "c": "c"}
    for wrong in (["a", "a"], ["a="], [""]):
        with pytest.raises(MalformedError):
            _columns(wrong)
