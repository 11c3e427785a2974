"""All column types over HTTP: the recipe of the documentation, and missing values in every format."""

import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from keepfit.model.columns import Columns
from keepfit.recipe.recipe import parse
from keepfit.rows.shaping import shape
from keepfit_gateway.web import rows_body
from tests.gateway.api_client import WAIT, Api

RECIPES = Path(__file__).parents[3] / "docs/reference/recipe.md"
NPY, ARROW = {"Content-Type": rows_body.NPY}, {"Content-Type": rows_body.ARROW}


def npy(values: Any) -> io.BytesIO:
    """Return an array in numpy's format."""
    file = io.BytesIO()
    np.save(file, np.array(values, float))
    return io.BytesIO(file.getvalue())


def arrow(**columns: Any) -> io.BytesIO:
    """Return columns as an Arrow stream with one row per batch."""
    table, file = pa.table(columns), io.BytesIO()
    with pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=1)
    return io.BytesIO(file.getvalue())


async def test_the_recipe_of_the_documentation(api: Api, metadata: dict[str, Any]) -> None:
    """A model with the page's recipe learns and predicts the page's rows; its columns have the documented names."""
    page = RECIPES.read_text().partition("### The order of the matrix")[2]
    recipe, X, names = (json.loads(block) for block in re.findall(r"```json\n(.*?)```", page, re.DOTALL))
    path = await api.make(metadata, recipe)
    learned = await api.post(f"{path}/partial_fit", {"X": X, "y": [1, 2, 3]}, headers=WAIT)
    assert learned.of(200)["rows_seen"] == 3
    assert len((await api.post(f"{path}/predict", {"X": X})).of(200)["predictions"]) == 3
    columns, parsed = Columns.new(parse(recipe)), parse(recipe)
    columns.partial_fit(parsed, shape(parsed, X, learning=False))
    assert columns.names(parsed) == names


async def test_missing_values_are_equal_in_every_format(api: Api, metadata: dict[str, Any]) -> None:
    """null, an omitted column, Arrow's null and NaN, and npy's NaN are learned and predicted alike."""
    options = {"type": "number", "missing": "indicator"}
    recipe = {"estimator": "SGDRegressor", "features": {"a": options, "b": {"type": "timestamp", "missing": "mean"}}}
    nan, sent = float("nan"), []
    formats = {
        "lists": ({"X": [[1, None], [None, 20], [3, 40]], "y": [1, 2, 3]}, {"X": [[None, None], [2, None]]}),
        "objects": ({"X": [{"a": 1}, {"b": 20}, {"b": 40, "a": 3}], "y": [1, 2, 3]}, {"X": [{}, {"a": 2}]}),
        "npy": (npy([[1, nan, 1], [nan, 20, 2], [3, 40, 3]]), npy([[nan, nan], [2, nan]])),
        "nulls": (
            arrow(a=[1, None, 3], b=[None, 20.0, 40.0], y=[1, 2, 3]),
            arrow(a=[None, 2.0], b=pa.array([None, None], pa.int8())),
        ),
        "nans": (arrow(b=[nan, 20, 40], a=[1, nan, 3], y=[1, 2, 3]), arrow(a=[nan, 2])),
    }
    for name, (rows, query) in formats.items():
        path = await api.make({**metadata, "format": name}, recipe)
        if isinstance(rows, dict):
            learned = await api.post(f"{path}/partial_fit", rows, headers=WAIT)
            predicted = await api.post(f"{path}/predict", query)
        else:
            kind = NPY if name == "npy" else ARROW
            learned = await api.call("POST", f"{path}/partial_fit", data=rows, headers={**kind, **WAIT})
            predicted = await api.call("POST", f"{path}/predict", data=query, headers=kind)
        assert learned.of(200)["rows_seen"] == 3
        sent.append(predicted.of(200)["predictions"])
    assert sent == [sent[0]] * len(formats)
    # Means of 1 and 3, of 20 and 40, and the indicator.
    same = (await api.post(f"{path}/predict", {"X": [[2, 30], [2, None]]})).of(200)["predictions"]
    assert same == [sent[0][1]] * 2
    assert sent[0][0] != sent[0][1]
