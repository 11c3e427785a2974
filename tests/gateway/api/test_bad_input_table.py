"""The table in docs/reference/validation.md names tests that exist, and every test of bad input."""

import ast
import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[2]
TABLE = TESTS.parent / "docs/reference/validation.md"
ROWS = [line.strip("|").split("|") for line in TABLE.read_text().splitlines() if line.startswith("| ")][1:]
# Tests of valid input, which the table of invalid input does not list.
RIGHT = {"test_a_valid_gzip_stream"}


def names_in(file: str) -> set[str]:
    """Return the names of the tests in the files of this name."""
    nodes = [node for path in TESTS.rglob(file) for node in ast.walk(ast.parse(path.read_text()))]
    found = {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
    return {name for name in found if name.startswith("test_")}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: str(row[0]).strip()[:40])
def test_each_row_names_existing_tests(row: list[str]) -> None:
    """Each row names an answer and at least one test, and each test that it names exists."""
    _, answer, _, tests = row
    named = re.findall(r"`(\w+\.py)::(\w+)`", tests)
    assert answer.strip()
    assert named
    assert [name for file, name in named if name not in names_in(file)] == []


@pytest.mark.parametrize("file", ["test_bad_input.py", "test_bad_inference.py", "test_floods.py"])
def test_each_test_has_a_row(file: str) -> None:
    """The table lists every test of bad input and of floods."""
    named = {name for row in ROWS for name in re.findall(rf"`{file}::(\w+)`", row[3])}
    assert names_in(file) - RIGHT == named
