"""The session in the README gives the output that the README shows."""

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
    """Return the commands of the README's curl session, each with the line of output after it."""
    blocks = re.findall(r"```console\n(.*?)```", README.read_text(), re.DOTALL)
    lines = next(block for block in blocks if "curl" in block).strip().splitlines()
    commands, outputs = lines[::2], lines[1::2]
    assert all(command.startswith("$ curl -s ") for command in commands)
    return [(command[2:], output) for command, output in zip(commands, outputs, strict=True)]


def curl(command: str, url: str) -> Any:
    """Make the request of a `curl -s URL -H … -d …`, to the stack instead of port 8000."""
    _, _, address, *options = shlex.split(command)
    headers = dict(
        value.split(": ", 1) for flag, value in zip(options[::2], options[1::2], strict=True) if flag == "-H"
    )
    (body,) = (value for flag, value in zip(options[::2], options[1::2], strict=True) if flag == "-d")
    request = urllib.request.Request(address.replace(ADDRESS, url), body.encode(), headers)
    with urllib.request.urlopen(request, timeout=30) as response:
        return json.load(response)


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


def test_the_session_gives_the_output_shown(stack: Stack) -> None:
    """The session creates a model, learns, predicts, learns more and predicts again, with the outputs of the README."""
    steps = session()
    answers = [curl(command, stack.url) for command, _ in steps]
    for answer, (_, output) in zip(answers, steps, strict=True):
        assert_similar(answer, json.loads(output))
    assert answers[2]["predictions"] != answers[4]["predictions"]
