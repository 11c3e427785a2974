"""The README's first screen is true: its session gives the output that stands there."""

import json
import re
import shlex
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Stack

README = Path(__file__).parents[1] / "README.md"
ADDRESS = "http://127.0.0.1:8000"


def session() -> list[tuple[str, str]]:
    """Commands of the README's curl session, each with the line of output that follows it."""
    blocks = re.findall(r"```console\n(.*?)```", README.read_text(), re.DOTALL)
    lines = next(block for block in blocks if "curl" in block).strip().splitlines()
    commands, outputs = lines[::2], lines[1::2]
    assert all(command.startswith("$ curl -s ") for command in commands)
    return [(command[2:], output) for command, output in zip(commands, outputs, strict=True)]


def curl(command: str, url: str) -> Any:
    """Do what a `curl -s URL -H … -d …` does, on the stack instead of port 8000."""
    _, _, address, *options = shlex.split(command)
    headers = dict(
        value.split(": ", 1) for flag, value in zip(options[::2], options[1::2], strict=True) if flag == "-H"
    )
    (body,) = (value for flag, value in zip(options[::2], options[1::2], strict=True) if flag == "-d")
    request = urllib.request.Request(address.replace(ADDRESS, url), body.encode(), headers)
    with urllib.request.urlopen(request, timeout=30) as response:
        return json.load(response)


def assert_like(answer: Any, expected: Any) -> None:
    """Compare JSON, numbers with a tolerance for other processors."""
    if isinstance(expected, dict):
        assert answer.keys() == expected.keys()
        for name, value in expected.items():
            assert_like(answer[name], value)
    elif isinstance(expected, list):
        assert len(answer) == len(expected)
        for one, other in zip(answer, expected, strict=True):
            assert_like(one, other)
    else:
        assert answer == (pytest.approx(expected) if isinstance(expected, float) else expected)


def test_the_session_gives_the_output_shown(stack: Stack) -> None:
    """Start, learn, predict, learn more, predict again: the prediction changed, as the README shows."""
    shown = session()
    answers = [curl(command, stack.url) for command, _ in shown]
    for answer, (_, output) in zip(answers, shown, strict=True):
        assert_like(answer, json.loads(output))
    assert answers[2]["predictions"] != answers[4]["predictions"]


def test_links_lead_somewhere() -> None:
    """Every relative link in the README and the documents names a file that exists."""
    documents = [README, *README.parent.glob("*.md"), *(README.parent / "docs").rglob("*.md")]
    links = [(path, link) for path in documents for link in re.findall(r"\]\(([^)#]+)\)", path.read_text())]
    missing = [(str(path), link) for path, link in links if "://" not in link and not (path.parent / link).exists()]
    assert not missing


def test_the_makefile_has_the_commands_the_readme_names() -> None:
    """Every `make X` in the documents is a target."""
    targets = set(re.findall(r"^([a-z]+):", (README.parent / "Makefile").read_text(), re.MULTILINE))
    named = set(
        re.findall(r"(?:`|\$ |=1 )make ([a-z]+)", README.read_text() + (README.parent / "CONTRIBUTING.md").read_text())
    )
    assert {"run", "test"} <= named <= targets
