"""What the examples need and keepfit does not bring: pinned, in the versions of the tests."""

import re
import tomllib
from pathlib import Path

import pytest

from tests.examples.started import EXAMPLES

ROOT = EXAMPLES.parent
FILES = sorted(EXAMPLES.glob("*/requirements.txt"))


def pins(path: Path) -> dict[str, str]:
    """Return the version of each package in a file of requirements."""
    return dict(re.findall(r"^([\w.-]+)==([\w.]+)", path.read_text(), re.MULTILINE))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.parent.name)
def test_pins_are_those_of_the_tests(path: Path) -> None:
    """An example is tested with the versions that it names, and names no package of a client."""
    wanted, tested = pins(path), pins(ROOT / "requirements/test.txt")
    assert wanted
    assert wanted == {name: tested[name] for name in wanted}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert not wanted.keys() & {re.split(r"[<>=; ]", package)[0] for package in project["dependencies"]}


def test_examples_have_requirements() -> None:
    """Two examples need more than keepfit."""
    assert {path.parent.name for path in FILES} >= {"fastapi", "stream"}
