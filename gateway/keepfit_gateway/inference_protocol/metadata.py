"""The inputs and outputs of a model, as the protocol describes them.

Owns the names of tensors and their datatypes as far as the recipe tells. Never asks a worker. Invariant: a request with
the tensors that are described here has the form that the model takes.
"""

from collections.abc import Sequence

from keepfit.errors import InvalidError
from keepfit.recipe.recipe import Label, Recipe
from keepfit.rows.values import format_value
from keepfit_gateway.inference_protocol.rows import MATRIX
from keepfit_gateway.schemas import TensorMetadata
from keepfit_gateway.schemas.inference import DatatypeName

PREDICTIONS, PROBABILITIES, CLASSES, SCORES = "predictions", "probabilities", "classes", "scores"
ANY = -1
INPUT_DATATYPES: dict[str, DatatypeName] = {
    "number": "FP64",
    "timestamp": "FP64",
    "boolean": "BOOL",
    "category": "BYTES",
    "text": "BYTES",
}
LABEL_DATATYPES: dict[type, DatatypeName] = {int: "INT64", bool: "BOOL"}


def inputs_of(recipe: Recipe) -> list[TensorMetadata]:
    """Return the inputs of a model: one for each column, or the matrix."""
    if recipe.features is None:
        return [TensorMetadata(name=MATRIX, datatype="FP64", shape=[ANY, ANY])]
    columns = recipe.layout.columns
    return [TensorMetadata(name=c.name, datatype=INPUT_DATATYPES[c.kind], shape=[ANY]) for c in columns]


def outputs_of(recipe: Recipe) -> list[TensorMetadata]:
    """Return the outputs that a request may name; probabilities only some classifiers have."""
    entry = recipe.entry
    rows = [ANY, ANY] if entry.multi_output or entry.kind == "transformer" else [ANY]
    outputs = [TensorMetadata(name=PREDICTIONS, datatype=_prediction_datatype(recipe), shape=rows)]
    if entry.target == "labels":
        shares = [ANY] * (len(rows) + 1)
        outputs.append(TensorMetadata(name=PROBABILITIES, datatype="FP64", shape=shares))
        outputs.append(TensorMetadata(name=CLASSES, datatype=_prediction_datatype(recipe), shape=shares[1:]))
    elif entry.kind == "outlier_detector":
        outputs.append(TensorMetadata(name=SCORES, datatype="FP64", shape=[ANY]))
    return outputs


def predicts_numbers(recipe: Recipe) -> bool:
    """Return whether predictions are numbers, also if all of them happen to be whole."""
    return recipe.entry.target == "numbers" or recipe.entry.kind == "transformer"


def check_outputs(recipe: Recipe, names: Sequence[str]) -> None:
    """Check that a model has all outputs that a request names.

    Raises
    ------
    InvalidError
        With those that it has.
    """
    known = [output.name for output in outputs_of(recipe)]
    unknown = next((name for name in names if name not in known), None)
    if unknown is not None:
        raise InvalidError(f"The model has no output {format_value(unknown)}; it has {', '.join(known)}.")


def _prediction_datatype(recipe: Recipe) -> DatatypeName:
    if recipe.entry.target == "labels":
        return _label_datatype(recipe.classes or [])
    return "FP64" if predicts_numbers(recipe) else "INT64"


def _label_datatype(classes: Sequence[Label | list[Label]]) -> DatatypeName:
    """Return the datatype of labels: that of the recipe's classes if they are of one type, BYTES for all others."""
    labels = [label for one in classes for label in (one if isinstance(one, list) else [one])]
    types = set(map(type, labels))
    return LABEL_DATATYPES.get(types.pop(), "BYTES") if len(types) == 1 else "BYTES"
