"""docs/reference/limits.md agrees with the settings, the fields of a recipe and the constants that it names."""

import re
from pathlib import Path

import msgspec
import pytest

from keepfit.client_settings import PREFIX, variable_of
from keepfit.recipe.recipe import Recipe
from keepfit.settings import Settings
from tests.test_docs import resolve

PAGE = Path(__file__).parents[1] / "docs/reference/limits.md"
UNITS = {"": 1, "s": 1, "%": 0.01, "KiB": 2**10, "MiB": 2**20}
TABLE = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in PAGE.read_text().splitlines()
    if line.startswith("| ") and not line.startswith("| limit ")
]
# What no number bounds: the last column says so.
UNBOUNDED = {"parameter `threshold`", "the object", "an operator"}
CHECKED = [row for row in TABLE if row[2] not in UNBOUNDED]


def number_of(bound: str) -> float:
    """Return the number of a bound: "64 MiB", "10,000", "60 s", "75 %"; 0 for "none" and "its share"."""
    if bound in ("none", "its share"):
        return 0
    digits, unit = re.fullmatch(r"([\d,.]+) ?([\w%]*)", bound).groups()  # type: ignore[union-attr]
    return float(digits.replace(",", "")) * UNITS[unit]


def value_of(set_by: str) -> float:
    """Return the default of a setting or of a recipe's field, or the value of a constant."""
    (name,) = re.findall(r"`([^`]+)`", set_by)
    if name.startswith(PREFIX):
        value: float = Settings.model_fields[name.removeprefix(PREFIX).lower()].default
    elif set_by.startswith("recipe: "):
        value = next(field.default for field in msgspec.structs.fields(Recipe) if field.name == name)
    else:
        value = resolve(name)
    return value


@pytest.mark.parametrize("row", CHECKED, ids=lambda row: row[0])
def test_a_bound_is_that_of_the_code(row: list[str]) -> None:
    """The bound of each row equals the default or constant that the row names, and the row says what happens at it."""
    _, bound, set_by, effect = row
    assert number_of(bound) == value_of(set_by)
    assert effect


def test_only_what_is_named_here_has_no_bound() -> None:
    """A row without a number has a setting with which a bound is set, or is one of the few without any."""
    unbounded = {row[2] for row in TABLE if row[1] == "none"}
    settings = ("RATE_PER_S", "HISTORY_DAILY_ENTRIES_MAX", "HISTORY_DAILY_BYTES_MAX")
    assert unbounded - UNBOUNDED == {f"`KEEPFIT_{name}`" for name in settings}
    assert unbounded >= UNBOUNDED


def test_the_page_has_every_setting_that_is_a_maximum() -> None:
    """Each setting whose name ends in _max is in the table."""
    listed = set(re.findall(r"`(KEEPFIT_\w+)`", "\n".join(row[2] for row in TABLE)))
    assert {variable_of(name) for name in Settings.model_fields if name.endswith("_max")} <= listed


def test_each_limit_is_listed_once() -> None:
    """No two rows name the same limit, and every row has four cells."""
    assert {len(row) for row in TABLE} == {4}
    assert len({row[0] for row in TABLE}) == len(TABLE) > 40
