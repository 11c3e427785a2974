"""Forms of the Open Inference Protocol, version 2: its requests and answers.

Owns their shapes. The names of the fields are those of the protocol. What a tensor may hold depends on the model;
:mod:`keepfit_gateway.inference_protocol` checks it.
"""

from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

from keepfit.recipe.features import COLUMNS_MAX
from keepfit_gateway.schemas.requests import Form
from keepfit_gateway.schemas.values import REFERENCE

DatatypeName = Literal[
    "BOOL",
    "UINT8",
    "UINT16",
    "UINT32",
    "UINT64",
    "INT8",
    "INT16",
    "INT32",
    "INT64",
    "FP16",
    "BF16",
    "FP32",
    "FP64",
    "BYTES",
]
Datatype = Annotated[DatatypeName, Meta(title="TensorDatatype")]
TensorData = Annotated[
    list[Any],
    Meta(
        description="Values row by row, in one list or in a list per row; null for a missing value.",
        extra_json_schema={"items": {"$ref": REFERENCE.format(name="TensorValue")}},
    ),
]
Parameters = Annotated[dict[str, Any], Meta(title="InferenceParameters")]
Name = Annotated[str, Meta(description="Name of the tensor.")]
Length = Annotated[int, Meta(ge=0)]


class InputTensor(Form, kw_only=True):
    """A tensor of the request, with `data`, or with `binary_data_size` in `parameters` and its bytes after the JSON.

    The shape is [rows, columns] for the input `X`, and [rows] or [rows, 1] for a single column.
    """

    name: Name
    shape: Annotated[list[Length], Meta(min_length=1, max_length=2)]
    datatype: Datatype
    parameters: Parameters | None = None
    data: TensorData | None = None


class RequestedOutput(Form, kw_only=True):
    """An output of the answer; among its parameters, `binary_data` says whether its bytes follow the JSON."""

    name: Name
    parameters: Parameters | None = None


class InferenceRequest(Form, kw_only=True):
    """Rows to predict, as tensors.

    Among `parameters`, `binary_data_output` is the default of the outputs' `binary_data`, and `timeout` the
    microseconds after which the request expires. `model_name` and `model_version` are ignored: the path names both.
    """

    inputs: Annotated[list[InputTensor], Meta(min_length=1, max_length=COLUMNS_MAX)]
    outputs: Annotated[list[RequestedOutput] | None, Meta(description="Default: `predictions`.")] = None
    id: Annotated[str | None, Meta(description="Repeated in the answer.")] = None
    parameters: Parameters | None = None
    model_name: str | None = None
    model_version: str | None = None


class OutputParameters(Struct, kw_only=True):
    """Present if the bytes of the tensor follow the JSON."""

    binary_data_size: Annotated[int, Meta(description="Number of bytes.")]


class OutputTensor(Struct, kw_only=True):
    """A tensor of the answer; without `data` its bytes follow the JSON."""

    name: Name
    shape: list[int]
    datatype: Datatype
    parameters: OutputParameters | UnsetType = UNSET
    data: TensorData | UnsetType = UNSET


class InferenceAnswer(Struct, kw_only=True):
    """The predictions of the bundle of `model_version`, in tensors."""

    model_name: Annotated[str, Meta(description="Hash of the model.")]
    model_version: Annotated[str, Meta(description="Version of the model.")]
    id: str | UnsetType = UNSET
    outputs: list[OutputTensor]


class InferenceError(Struct, kw_only=True):
    """An error of the protocol: what is wrong, where, and what would be right."""

    error: str


class ServerMetadata(Struct, kw_only=True):
    """The server and the extensions of the protocol that it has."""

    name: str
    version: str
    extensions: list[str]


class ServerLive(Struct, kw_only=True):
    """The process responds."""

    live: bool


class ServerReady(Struct, kw_only=True):
    """Whether the service learns and predicts; if it does not, `error` says why."""

    ready: bool
    error: str | UnsetType = UNSET


class ModelReady(Struct, kw_only=True):
    """The model predicts."""

    name: Annotated[str, Meta(description="Hash of the model.")]
    ready: bool


class TensorMetadata(Struct, kw_only=True):
    """A tensor of a model; -1 stands for any length."""

    name: Name
    datatype: Datatype
    shape: list[int]


class ModelMetadata(Struct, kw_only=True):
    """The inputs and outputs of a model; `versions` names the live version, the only one that answers."""

    name: Annotated[str, Meta(description="Hash of the model.")]
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]
