"""The examples in docstrings are run, and there are some."""

import doctest
import importlib
import pkgutil

import pytest

import keepfit

MODULES = sorted(
    found.name for found in pkgutil.walk_packages(keepfit.__path__, "keepfit.") if found.name != "keepfit.__main__"
)


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings_are_true(name: str) -> None:
    """Each example in a module's docstrings gives the output that stands below it."""
    result = doctest.testmod(importlib.import_module(name))
    assert result.failed == 0


def test_pure_code_carries_examples() -> None:
    """The modules that need no server have at least one example each where a newcomer looks first."""
    finder = doctest.DocTestFinder(exclude_empty=True)
    with_examples = {
        name
        for name in MODULES
        for found in finder.find(importlib.import_module(name))
        if any(example.want for example in found.examples)
    }
    assert {
        "keepfit.identity",
        "keepfit.security.envelope",
        "keepfit.recipe.recipe",
        "keepfit.backends.redis_keys",
    } <= with_examples
