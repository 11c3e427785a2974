"""Values of rows in files get the types that the recipe names."""

import re
from typing import Any

import msgspec
import pytest

from keepfit.client.files.row_files import FileRow
from keepfit.client.files.row_values import ModelColumns, ValueFaultError, check_targets, columns_of
from keepfit.errors import InvalidError
from keepfit.recipe import recipe


def bound(document: dict[str, Any], header: list[str], **options: Any) -> ModelColumns:
    """Return the columns of a model with this recipe in a file with this header."""
    columns = columns_of({"recipe": msgspec.to_builtins(recipe.parse(document))}, **options)
    columns.bind(header, "rows.csv")
    return columns


def row(**values: Any) -> FileRow:
    """Return a row of a file."""
    return FileRow("line 2", values)


FEATURES = {
    "make": "category", "note": "text", "year": "number", "at": "timestamp", "new": "boolean",
    "price": {"type": "number", "missing": "mean"},
}  # fmt: skip
VALUES = {"make": "0042", "note": "", "year": " 2001 ", "at": "1.5", "new": "True", "price": "", "size": "4.5"}


def test_csv_values_get_the_types_of_the_recipe() -> None:
    """Categories and texts stay text, numbers become numbers, an empty value is missing where the recipe allows it."""
    columns = bound({"estimator": "SGDRegressor", "features": FEATURES}, list(VALUES), targets=["size"])
    assert columns.values_of(row(**VALUES), typed=False) == ["0042", "", 2001.0, 1.5, True, None]
    assert columns.target_of(row(**VALUES), typed=False) == 4.5
    timed = row(**{**VALUES, "at": "2026-11-20T12:00:00Z"})
    assert columns.values_of(timed, typed=False)[3] == "2026-11-20T12:00:00Z"
    assert columns.unread == []


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("year", "abc", "column 'year': 'abc' is not a number"),
        ("year", "nan", "column 'year': 'nan' is not a number"),
        ("year", "1_000", "column 'year': '1_000' is not a number"),
        ("year", "", "column 'year': the value is missing"),
        ("make", "", "column 'make': the value is missing"),
        ("new", "maybe", "column 'new': 'maybe' is not true, false, 1 or 0"),
        ("size", "", "column 'size': the value is missing"),
        ("size", "big", "column 'size': 'big' is not a number"),
    ],
)
def test_a_value_of_another_type_is_a_fault(column: str, value: str, message: str) -> None:
    """The fault names the column and the value."""
    columns = bound({"estimator": "SGDRegressor", "features": FEATURES}, list(VALUES), targets=["size"])
    wrong = row(**{**VALUES, column: value})
    read = columns.target_of if column == "size" else columns.values_of
    with pytest.raises(ValueFaultError) as raised:
        read(wrong, typed=False)
    assert str(raised.value) == message


def test_json_values_keep_their_types() -> None:
    """Values of JSON are sent as they are; only those that are absent are checked here."""
    columns = bound({"estimator": "SGDRegressor", "features": FEATURES}, list(VALUES), targets=["size"])
    typed = row(make=7, note="", year="abc", at=1, new=True, size="4")
    assert columns.values_of(typed, typed=True) == [7, "", "abc", 1, True, None]
    assert columns.target_of(typed, typed=True) == "4"


@pytest.mark.parametrize(
    ("classes", "label_type", "labels", "expected"),
    [
        (None, None, ["1", "-2"], "1"),
        (None, None, ["01067", "01069"], "01067"),
        (None, None, ["true", "False"], "true"),
        (None, "integer", ["-2"], -2),
        (None, "boolean", ["1"], True),
        (None, "string", ["1", "2"], "1"),
        (["1", "2"], None, ["1", "2"], "1"),
        ([1, 2], None, ["1", "2"], 1),
        ([True, False], None, ["true", "false"], True),
    ],
)
def test_labels_get_one_type(classes: Any, label_type: Any, labels: list[str], expected: Any) -> None:
    """The recipe's classes give the type of labels in CSV, else the option; otherwise they are text, never a guess."""
    document = {"estimator": "SGDClassifier", "features": {"year": "number"}, "classes": classes}
    columns = bound(document, ["year", "label"], targets=["label"], label_type=label_type)
    found = columns.target_of(row(label=labels[0]), typed=False)
    assert (type(found), found) == (type(expected), expected)


@pytest.mark.parametrize("label", ["blue", "01067", "+1", "1.0", "--1", "0x1", "-0"])
def test_a_label_of_another_type_is_a_fault(label: str) -> None:
    """Where labels are integers, text that an integer does not keep is a fault."""
    columns = bound({"estimator": "SGDClassifier"}, ["x", "label"], targets=["label"], label_type="integer")
    with pytest.raises(ValueFaultError, match=f"'{re.escape(label)}' is not an integer, the type of the labels"):
        columns.target_of(row(label=label), typed=False)


@pytest.mark.parametrize("text", ["20261120", "20260101 ", "19991231"])
def test_a_date_without_separators_is_no_time(text: str) -> None:
    """Eight digits that are a date are a number of seconds as well: a fault that says how to write either."""
    columns = bound({"estimator": "SGDRegressor", "features": {"at": "timestamp"}}, ["at"])
    with pytest.raises(ValueFaultError, match=r"is a date and a number of seconds: write \d{4}-\d\d-\d\d or \d{8}\.0"):
        columns.values_of(row(at=text), typed=False)
    assert columns.values_of(row(at=f"{text.strip()}.0"), typed=False) == [float(text)]
    assert columns.values_of(row(at="1795176000"), typed=False) == [1795176000.0]


def test_without_features_a_later_column_is_a_fault() -> None:
    """A row of JSON with a column that the first rows lack is refused, instead of learned without it."""
    columns = bound({"estimator": "SGDRegressor"}, ["a", "y"], targets=["y"])
    with pytest.raises(ValueFaultError, match="column 'b': the first rows of the file have no such column"):
        columns.values_of(row(a=1, b=2, y=3), typed=True)


def test_without_features_all_other_columns_are_read() -> None:
    """A model without features reads each column that is not target, weight or ignored, in the order of the file."""
    columns = bound(
        {"estimator": "SGDRegressor"}, ["id", "b", "a", "w", "y"], targets=["y"], weight="w", ignored=["id"]
    )
    assert columns.values_of(row(b="1", a="2"), typed=False) == [1.0, 2.0]
    assert columns.weight_of(row(w="0.5"), typed=False) == 0.5


def test_columns_that_the_model_needs_must_exist() -> None:
    """A missing column is an error that names the columns of the file; a column that may be missing is not needed."""
    with pytest.raises(InvalidError, match=r"rows\.csv: column 'note' is missing; the file has 'make', 'size'\."):
        bound({"estimator": "SGDRegressor", "features": FEATURES}, ["make", "size"], targets=["size"])
    header = [name for name in VALUES if name != "price"]
    columns = bound({"estimator": "SGDRegressor", "features": FEATURES}, [*header, "more"], targets=["size"])
    assert columns.values_of(row(**{name: VALUES[name] for name in header}), typed=False)[-1] is None
    assert columns.unread == ["more"]


@pytest.mark.parametrize(
    ("estimator", "targets", "weight", "message"),
    [
        ("SGDRegressor", [], None, "name its column with --target"),
        ("SGDRegressor", ["a", "b"], None, "takes one target, not 2"),
        ("MiniBatchKMeans", ["a"], None, "takes no target: leave out --target"),
        ("Birch", [], "w", "takes no weights: leave out --weight"),
    ],
)
def test_targets_must_fit_the_estimator(estimator: str, targets: list[str], weight: str | None, message: str) -> None:
    """The number of targets and the weight are checked before the file is read."""
    found = columns_of({"recipe": msgspec.to_builtins(recipe.parse({"estimator": estimator}))}, targets, weight)
    with pytest.raises(InvalidError, match=message):
        check_targets(found)
