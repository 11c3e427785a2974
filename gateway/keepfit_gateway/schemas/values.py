"""Values that several forms hold: metadata, rows, targets, parameters, positions.

Owns their types and their JSON Schemas. The types are as wide as the parsers need them, because
:mod:`keepfit.rows.shaping` checks values against a recipe; :data:`COMPONENTS` describes what can pass that check.
Invariant: the schema of a value accepts everything that a model can accept.
"""

from typing import Annotated, Any

from msgspec import Meta

REFERENCE = "#/components/schemas/{name}"


def _schema(name: str) -> dict[str, Any]:
    return {"$ref": REFERENCE.format(name=name)}


# Integers apart from other numbers: a generated client must not make 2001.0, which is no label, of the label 2001.
SCALARS = [{"type": "integer"}, {"type": "number"}, {"type": "string"}, {"type": "boolean"}]
PROBABILITY = {"anyOf": [{"type": "number"}, {"type": "null"}]}
# By name: a type refers to one by its title. Only what no class describes: unions, and objects whose keys are data.
COMPONENTS: dict[str, dict[str, Any]] = {
    "Metadata": {
        "description": "Names the model: a non-empty string `type` and any other keys, but no `timestamp`.",
        "type": "object",
        "properties": {"type": {"type": "string", "minLength": 1, "description": "Type of the model."}},
        "required": ["type"],
        "additionalProperties": {},
        "examples": [{"type": "shoes", "brand": "nike"}],
    },
    "Params": {
        "description": "Parameters of the estimator by name.",
        "type": "object",
        "additionalProperties": {},
        "examples": [{"alpha": 0.001}],
    },
    "MetadataFilter": {
        "description": "Values of keys of metadata, as text.",
        "type": "object",
        "additionalProperties": {"type": "string"},
    },
    "Value": {
        "description": "Value of a column, by its type; null where the recipe allows a missing value.",
        "anyOf": [*SCALARS, {"type": "null"}],
    },
    "RowByName": {
        "description": "A row as an object by column name.",
        "type": "object",
        "additionalProperties": _schema("Value"),
        "examples": [{"make": "nike", "year": 2001}],
    },
    "HistoryDocument": {
        "description": "A document of the history; that of a snapshot has the fields of SnapshotAnswer.",
        "type": "object",
        "properties": {
            "type": {"type": "string"},
            "timestamp": {"type": "number", "description": "Seconds since 1970."},
        },
        "required": ["type", "timestamp"],
        "additionalProperties": {},
    },
    "NewDocument": {
        "description": "A document to store: a `type`, the time, and any other fields but `_id` and `kind`.",
        "type": "object",
        "properties": {
            "type": {"type": "string", "minLength": 1, "maxLength": 256},
            "timestamp": {
                "description": "Seconds since 1970, or ISO 8601; the present without it.",
                "anyOf": [{"type": "number"}, {"type": "string"}],
            },
        },
        "required": ["type"],
        "additionalProperties": {},
        "examples": [{"type": "vote", "brand": "nike", "fit": 4.5}],
    },
    "Label": {
        "description": "A number, or a label of a classifier.",
        "anyOf": SCALARS,
    },
    "Target": {
        "description": "Target of one row: a number or a label; a list or an object with one for each output.",
        "anyOf": [
            *SCALARS,
            {"type": "array", "items": _schema("Label")},
            _schema("TargetByName"),
        ],
    },
    "TargetByName": {
        "description": "Targets of one row by the names of the outputs.",
        "type": "object",
        "additionalProperties": _schema("Label"),
    },
    "Prediction": {
        "description": "Prediction of one row: as its target, or null.",
        "anyOf": [
            *SCALARS,
            {"type": "null"},
            {"type": "array", "items": {"anyOf": [*SCALARS, {"type": "null"}]}},
            _schema("PredictionByName"),
        ],
    },
    "TensorValue": {
        "description": "A value of a tensor, null if it is missing; or the values of a row.",
        "anyOf": [*SCALARS, {"type": "null"}, {"type": "array", "items": {"anyOf": [*SCALARS, {"type": "null"}]}}],
    },
    "PredictionByName": {
        "description": "Predictions of one row by the names of the outputs; null for an output without one.",
        "type": "object",
        "additionalProperties": {"anyOf": [*SCALARS, {"type": "null"}]},
    },
}

Metadata = Annotated[dict[str, Any], Meta(title="Metadata")]
Params = Annotated[dict[str, Any], Meta(title="Params")]
OpenApiDocument = Annotated[dict[str, Any], Meta(title="OpenApiDocument")]
Recipe = Annotated[dict[str, Any], Meta(title="Recipe")]
Row = Annotated[list[Any], Meta(extra_json_schema={"items": _schema("Value")})]
RowByName = Annotated[dict[str, Any], Meta(title="RowByName")]
X = Annotated[
    list[Row | RowByName],
    # The minimum of one row is checked together with the content of the rows.
    Meta(
        description="Rows: lists of values in column order, or objects with column names as keys.",
        extra_json_schema={"minItems": 1},
    ),
]
TargetList = Annotated[list[Any], Meta(extra_json_schema={"items": _schema("Target")})]
Target = Annotated[Any, Meta(extra_json_schema=_schema("Target"))]
RowId = Annotated[
    Annotated[str, Meta(min_length=1, max_length=128)] | Annotated[int, Meta(ge=-(2**53), le=2**53)],
    Meta(title="RowId", description="Id of a predicted row: text, or an integer, which is the same as its digits."),
]
PredictionList = Annotated[list[Any], Meta(extra_json_schema={"items": _schema("Prediction")})]
LabelList = Annotated[list[Any], Meta(extra_json_schema={"items": _schema("Label")})]
Probabilities = Annotated[
    list[Any],
    Meta(
        description="Of one row: one for each class; a list of them for each output.",
        extra_json_schema={"items": {"anyOf": [*PROBABILITY["anyOf"], {"type": "array", "items": PROBABILITY}]}},
    ),
]
Weights = Annotated[list[Any], Meta(extra_json_schema={"items": {"type": "number", "minimum": 0}})]

Hash = Annotated[str, Meta(pattern="^[0-9a-f]{64}$", description="SHA-256 of the model's canonical metadata.")]
Version = Annotated[int, Meta(description="Number of commits of the model.")]
RowsSeen = Annotated[int, Meta(description="Number of rows that the model has learned.")]
Sequence = Annotated[int, Meta(description="Position among the requests of the model, within its generation.")]
Generation = Annotated[int, Meta(description="A restore of a snapshot, and creation, begin a new generation.")]
Timestamp = Annotated[float, Meta(description="Seconds since 1970.")]
Next = Annotated[str | None, Meta(description="Send it as `after` to get the next page; null on the last page.")]
DeadId = Annotated[
    str, Meta(title="DeadLetterId", pattern="^[0-9]{1,15}-[0-9]{1,16}$", description="Id of a dead letter.")
]
