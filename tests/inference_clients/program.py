"""Call the inference protocol with tritonclient (sync and aio) and with kserve, and print what they return as JSON.

Arguments: the URL of a gateway, the number of calls of each client, and for `sync`, `aio` or `kserve` alone its name.
Standard input: the models, as JSON by name with `hash`, and the rows `X` of the matrix model with their `expected`
predictions. Each client makes its calls at a concurrency of 32; each answer is compared with the expected one.
"""

import asyncio
import json
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import httpx
import kserve
import numpy as np
import tritonclient.http as sync
from kserve.protocol.infer_type import InferInput, InferRequest, RequestedOutput
from tritonclient.http import aio
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

CONCURRENCY = 32
CODINGS = (None, "gzip", "deflate")
MISSING = "0" * 64


def inputs_of(library: Any, tensors: dict[str, Any], *, binary: bool) -> list[Any]:
    """Return the inputs of a request."""
    inputs = []
    for name, values in tensors.items():
        array = np.asarray(values)
        array = array.astype(np.object_) if array.dtype.kind == "U" else array
        inputs.append(library.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype)))
        inputs[-1].set_data_from_numpy(array, binary_data=binary)
    return inputs


def values_of(result: Any, name: str) -> Any:
    """Return an output as a list; text as str."""
    array = result.as_numpy(name)
    decode = np.vectorize(lambda each: each.decode() if isinstance(each, bytes) else each, otypes=[np.object_])
    return (decode(array) if array.dtype == np.object_ and array.size else array).tolist()


def matrices(rows: list[list[float]]) -> list[dict[str, Any]]:
    """Return the input of each of some requests: one row, then two, then one, ..."""
    return [{"X": np.array(rows[i % len(rows) :][: 1 + i % 2])} for i in range(64)]


def call_sync(url: str, count: int, models: dict[str, Any], rows: list[list[float]]) -> dict[str, Any]:
    """Return what tritonclient's synchronous client returns."""
    matrix, shoes, labels = (models[name]["hash"] for name in ("matrix", "shoes", "labels"))
    found: dict[str, Any] = {"errors": 0}
    with sync.InferenceServerClient(url.removeprefix("http://"), concurrency=CONCURRENCY) as client:
        found["health"] = [client.is_server_live(), client.is_server_ready()]
        found["ready"] = [client.is_model_ready(name) for name in (matrix, MISSING)]
        version = client.get_model_metadata(matrix)["versions"][0]
        found["version"] = [client.is_model_ready(matrix, each) for each in (version, "999999")]
        found["server"] = client.get_server_metadata()["extensions"]
        found["inputs"] = [client.get_model_metadata(name)["inputs"] for name in (matrix, shoes)]
        found["refused"] = []
        for refused in (client.get_model_config, client.get_inference_statistics):
            try:
                refused(matrix)
            except InferenceServerException as error:
                found["refused"].append([error.status(), str(error)])
        found["matrix"] = [
            values_of(
                client.infer(
                    matrix,
                    inputs_of(sync, {"X": np.array(rows)}, binary=binary),
                    outputs=[sync.InferRequestedOutput("predictions", binary_data=binary)],
                    request_id="42",
                    model_version=version,
                    request_compression_algorithm=coding,
                    response_compression_algorithm=coding,
                ),
                "predictions",
            )
            for binary in (True, False)
            for coding in CODINGS
        ]
        columns = {"make": ["pegasus", "cortez"], "year": np.array([2001, 2010], np.int64)}
        found["shoes"] = [
            values_of(client.infer(shoes, inputs_of(sync, columns, binary=binary)), "predictions")
            for binary in (True, False)
        ]
        asked = [sync.InferRequestedOutput(name) for name in ("predictions", "probabilities", "classes")]
        answer = client.infer(labels, inputs_of(sync, {"X": np.array(rows)}, binary=True), outputs=asked)
        found["labels"] = {name: values_of(answer, name) for name in ("predictions", "probabilities", "classes")}
        try:
            client.infer(matrix, inputs_of(sync, {"X": np.full((1, 2), np.nan)}, binary=True))
        except InferenceServerException as error:
            found["error"] = [error.status(), str(error)]

        requests = [inputs_of(sync, tensors, binary=True) for tensors in matrices(rows)]

        def call(number: int) -> Any:
            return values_of(client.infer(matrix, requests[number % len(requests)]), "predictions")

        started = time.monotonic()
        # The client runs its calls as greenlets; one waits for its answer while others are sent.
        pending = [client.async_infer(matrix, requests[n % len(requests)]) for n in range(min(count, CONCURRENCY))]
        for number in range(count):
            got = values_of(pending[number % CONCURRENCY].get_result(), "predictions")
            found["errors"] += got != expected_of(models, number)
            following = number + CONCURRENCY
            if following < count:
                request = requests[following % len(requests)]
                pending[number % CONCURRENCY] = client.async_infer(matrix, request)
        found["calls"], found["seconds"] = count, time.monotonic() - started
    return found


def expected_of(models: dict[str, Any], number: int) -> list[float]:
    """Return the predictions that the request of a number gets."""
    expected: list[float] = models["matrix"]["expected"]
    number %= 64
    return expected[number % len(expected) :][: 1 + number % 2]


async def repeated(count: int, call: Callable[[int], Any], models: dict[str, Any]) -> dict[str, Any]:
    """Make calls concurrently; return their number, the number of wrong answers, and the seconds."""
    numbers, errors, started = iter(range(count)), 0, time.monotonic()

    async def run() -> None:
        nonlocal errors
        for number in numbers:
            errors += await call(number) != expected_of(models, number)

    await asyncio.gather(*(run() for _ in range(CONCURRENCY)))
    return {"calls": count, "errors": errors, "seconds": time.monotonic() - started}


async def call_aio(url: str, count: int, models: dict[str, Any], rows: list[list[float]]) -> dict[str, Any]:
    """Return what tritonclient's asynchronous client returns."""
    matrix, wide = models["matrix"]["hash"], models["wide"]["hash"]
    async with aio.InferenceServerClient(url.removeprefix("http://"), conn_limit=CONCURRENCY) as client:
        found: dict[str, Any] = {
            "health": [await client.is_server_live(), await client.is_server_ready()],
            "ready": [await client.is_model_ready(name) for name in (matrix, MISSING)],
            # More than a kilobyte, which other answers of the gateway are compressed from.
            "inputs": len((await client.get_model_metadata(wide))["inputs"]),
            "matrix": [],
        }
        for binary in (True, False):
            for coding in CODINGS:
                many = np.repeat(np.array(rows), 100, axis=0)
                result = await client.infer(
                    matrix,
                    inputs_of(aio, {"X": many}, binary=binary),
                    outputs=[aio.InferRequestedOutput("predictions", binary_data=binary)],
                    request_compression_algorithm=coding,
                    response_compression_algorithm=coding,
                )
                found["matrix"].append(values_of(result, "predictions")[::100])
        try:
            await client.infer(matrix, inputs_of(aio, {"Y": np.array(rows)}, binary=True))
        except InferenceServerException as error:
            found["error"] = [error.status(), str(error)]
        requests = [inputs_of(aio, tensors, binary=True) for tensors in matrices(rows)]

        async def call(number: int) -> Any:
            return values_of(await client.infer(matrix, requests[number % len(requests)]), "predictions")

        return {**found, **await repeated(count, call, models)}


async def call_kserve(url: str, count: int, models: dict[str, Any], rows: list[list[float]]) -> dict[str, Any]:
    """Return what kserve's client returns."""
    matrix, labels = models["matrix"]["hash"], models["labels"]["hash"]
    client = kserve.InferenceRESTClient(kserve.RESTConfig(protocol="v2", timeout=60))

    def request(tensors: dict[str, Any], *, binary: bool, outputs: list[str] | None = None) -> InferRequest:
        made = []
        for name, values in tensors.items():
            made.append(InferInput(name, list(values.shape), np_to_triton_dtype(values.dtype)))
            made[-1].set_data_from_numpy(values, binary_data=binary)
        asked = [RequestedOutput(name) for name in outputs or ()]
        parameters = {"binary_data_output": binary}
        return InferRequest(matrix, made, parameters=parameters, request_outputs=asked or None)

    async def call(tensors: dict[str, Any], *, binary: bool = True) -> Any:
        answer = await client.infer(url, request(tensors, binary=binary), model_name=matrix)
        return answer.outputs[0].as_numpy().tolist()

    found: dict[str, Any] = {
        "health": [await client.is_server_live(url), await client.is_server_ready(url)],
        "ready": [await client.is_model_ready(url, name) for name in (matrix, MISSING)],
        "matrix": [await call({"X": np.array(rows)}, binary=binary) for binary in (True, False)],
    }
    asked = request({"X": np.array(rows)}, binary=False, outputs=["predictions", "probabilities"])
    answer = await client.infer(url, asked, model_name=labels)
    found["labels"] = {output.name: output.as_numpy().tolist() for output in answer.outputs}
    try:
        await client.infer(url, request({"X": np.full((1, 2), np.nan)}, binary=True), model_name=matrix)
    except httpx.HTTPStatusError as error:
        found["error"] = str(error)
    requests = matrices(rows)

    async def numbered(number: int) -> Any:
        return await call(requests[number % len(requests)], binary=number % 4 < 2)

    found |= await repeated(count, numbered, models)
    await client.close()
    return found


def main() -> None:
    """Run the clients, one after the other."""
    warnings.simplefilter("ignore")
    url, count, *names = sys.argv[1:]
    given = json.load(sys.stdin)
    arguments = url, int(count), given["models"], given["X"]
    clients = {
        "sync": lambda: call_sync(*arguments),
        "aio": lambda: asyncio.run(call_aio(*arguments)),
        "kserve": lambda: asyncio.run(call_kserve(*arguments)),
    }
    json.dump({name: call() for name, call in clients.items() if name in (names or clients)}, sys.stdout)


if __name__ == "__main__":
    main()
