"""The session in the README gives the output that the README shows, and its predictions are plausible."""

import importlib.util
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Stack

ROOT = Path(__file__).parents[1]
ADDRESS = "http://127.0.0.1:8000"
COMMAND_S_MAX = 60


def blocks() -> list[str]:
    """Return the README's blocks of commands."""
    return re.findall(r"```console\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


def session() -> list[tuple[str, str]]:
    """Return the curl commands of the README, each with the line of output after it."""
    lines = "".join(block for block in blocks() if "curl" in block).strip().splitlines()
    commands, outputs = lines[::2], lines[1::2]
    assert all(command.startswith("$ curl -s ") for command in commands)
    return [(command[2:], output) for command, output in zip(commands, outputs, strict=True)]


def run(command: str, url: str) -> Any:
    """Run a command in the repository, as a reader does, with the stack's address instead of port 8000."""
    done = subprocess.run(
        ["bash", "-c", command.replace(ADDRESS, url)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=COMMAND_S_MAX,
        check=True,
    )
    return parse(done.stdout)


def parse(output: str) -> Any:
    """Return an output as JSON; a part of a document is a name and its value, cut off."""
    return json.loads(output if output.startswith("{") else f"{{{output.rstrip()}}}}}")


def assert_similar(answer: Any, expected: Any) -> None:
    """Assert that JSON documents are equal, numbers with a tolerance for other processors."""
    if isinstance(expected, dict):
        assert answer.keys() == expected.keys()
        for name, value in expected.items():
            assert_similar(answer[name], value)
    elif isinstance(expected, list):
        assert len(answer) == len(expected)
        for one, other in zip(answer, expected, strict=True):
            assert_similar(one, other)
    else:
        assert answer == (pytest.approx(expected) if isinstance(expected, float) else expected)


def test_the_session_begins_with_the_repository() -> None:
    """The first command is git clone, and each of the first block is one that a reader can paste after the other."""
    commands = [line.removeprefix("$ ") for line in blocks()[0].splitlines()]
    assert [command.split()[0] for command in commands] == ["git", "python3", ".venv/bin/keepfit"]
    assert commands[0].startswith("git clone ")
    assert commands[0].endswith(" keepfit && cd keepfit")


def test_the_session_gives_the_output_shown(stack: Stack) -> None:
    """The session creates a model, learns, predicts and learns more, with the outputs of the README.

    Its predictions are on the scale of the votes and near their means, and its error is far below the baseline's.
    """
    steps = session()
    answers = [run(command, stack.url) for command, _ in steps]
    for answer, (_, output) in zip(answers, steps, strict=True):
        assert_similar(answer, parse(output))
    created, _, predicted, _, described = answers
    assert created["warnings"] == []
    votes = json.loads((ROOT / "examples/sneakers/votes-1.json").read_text())
    for make, prediction in zip(("nike", "adidas"), predicted["predictions"], strict=True):
        of_make = [y for row, y in zip(votes["X"], votes["y"], strict=True) if row[0] == make]
        assert prediction == pytest.approx(sum(of_make) / len(of_make), abs=0.3)
    metrics = described["metrics"]
    assert metrics["mean_absolute_error"] < 0.7 * metrics["baseline_mean_absolute_error"]


def test_the_votes_are_what_their_script_makes(tmp_path: Path) -> None:
    """examples/sneakers/make_votes.py writes the files that are in the repository."""
    script = ROOT / "examples/sneakers/make_votes.py"
    copy = tmp_path / script.name
    copy.write_text(script.read_text())
    spec = importlib.util.spec_from_file_location("make_votes", copy)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.main()
    for name in ("votes-1.json", "votes-2.json", "votes.csv"):
        assert (tmp_path / name).read_text() == script.with_name(name).read_text()
