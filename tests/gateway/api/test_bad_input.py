"""Bad input, row by row of the table in `docs/reference/validation.md`: it is rejected and causes no crash."""

import gzip
import io
import json
import re
from collections.abc import AsyncIterator, Mapping
from typing import Any

import pytest

from keepfit_gateway.web.offload import INLINE_BYTES_MAX
from tests.conftest import SHOES_RECIPE
from tests.gateway.api_client import CLASSIFIER, REGRESSOR, Api, Reply, connected, exchange

GOOD = b'{"X":[[1,2]],"y":[1]}'
PACKED = gzip.compress(GOOD)
GZIP = {"Content-Encoding": "gzip"}
KINDS: dict[str, Any] = {
    **REGRESSOR,
    "features": {
        "year": {"type": "number", "missing": "mean"},
        "make": {"type": "category", "missing": "indicator"},
        "note": {"type": "text", "n_features": 8},
        "at": {"type": "timestamp", "expand": ["hour"]},
    },
}
# More than the event loop parses without a thread.
PADDING = b" " * INLINE_BYTES_MAX


async def chunks(data: bytes) -> AsyncIterator[bytes]:
    """Yield a body in two pieces, so that its length is unknown before its end."""
    yield data[:3]
    yield data[3:]


async def rejected_in_every_format(
    api: Api, path: str, metadata: Mapping[str, Any], status: int, data: bytes
) -> list[dict[str, Any]]:
    """Send a body to partial_fit in every format; return the problem documents.

    The formats are: small (the fast path), with a key (the regular path), large, in chunks, compressed, and by metadata
    if the body is an object.
    """
    call = f"{path}/partial_fit"
    problems = [
        (await api.call("POST", call, data=sent, headers=headers)).problem(status)
        for sent, headers in (
            (data, {}),
            (data, {"Idempotency-Key": "a"}),
            (data + PADDING, {}),
            (chunks(data), {}),
            (gzip.compress(data), GZIP),
            (chunks(gzip.compress(data + PADDING)), GZIP),
        )
    ]
    if data.startswith(b'{"X"'):
        named = b'{"metadata":%s,%s' % (json.dumps(metadata).encode(), data[1:])
        problems += [
            (await api.call("POST", "/v1/partial_fit", data=sent)).problem(status)
            for sent in (named, named + PADDING, chunks(named))
        ]
    return problems


async def rejected(
    api: Api,
    metadata: Mapping[str, Any],
    status: int,
    data: bytes,
    headers: Mapping[str, str] | None = None,
    recipe: Mapping[str, Any] = REGRESSOR,
) -> dict[str, Any]:
    """Send a body to partial_fit; return the problem document, and check that the model is unchanged.

    Without `headers` the body is sent in every format, and all problem documents must be equal.
    """
    path = await api.make(metadata, recipe)
    before = await api.model(path)
    if headers is None:
        problem, *others = await rejected_in_every_format(api, path, metadata, status, data)
        # Only the position differs in formats with text before or after the body.
        alike = {re.sub(r"character \d+", "character …", json.dumps(each)) for each in (problem, *others)}
        assert len(alike) == 1, alike
    else:
        problem = (await api.call("POST", f"{path}/partial_fit", data=data, headers=headers)).problem(status)
    assert await api.model(path) == before
    # The model still learns.
    row = ["nike", 1] if recipe is SHOES_RECIPE else [None, None, "", 0] if recipe is KINDS else [1, 2]
    good = {"X": [row], "y": ["no" if recipe is CLASSIFIER else 1]}
    assert (await api.learn(path, **good))["sequence"] == 1
    return problem


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        pytest.param(b"", "not JSON", id="empty"),
        pytest.param(b"{", "not JSON", id="cut short"),
        pytest.param(GOOD + b"x", "not JSON", id="text after the end"),
        pytest.param(b"\xef\xbb\xbf" + GOOD, "BOM", id="byte order mark"),
        pytest.param(b'{"X":[["\xff"]]}', "not UTF-8", id="not UTF-8"),
        pytest.param(GOOD.decode().encode("utf-16"), "not UTF-8", id="UTF-16"),
        pytest.param(b"[" * 100_000, "nested too deeply", id="deep and open"),
        pytest.param(b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "nested too deeply", id="deep"),
        pytest.param(b'{"X":[[' + b"1" * 5000 + b']],"y":[1]}', "digits", id="number of 5,000 digits"),
        pytest.param(b'{"X":[["\\ud800"]],"y":[1]}', "surrogate", id="lone surrogate"),
        pytest.param(b'{"X":[[1,2]],"X":[[1,2]],"y":[1]}', "'X' occurs twice", id="repeated key"),
        pytest.param(b'{"X":[[1,2]],"\\u0058":[[1,2]],"y":[1]}', "'X' occurs twice", id="repeated key, escaped"),
        pytest.param(b'{"X":[{"a":1,"a":1}],"y":[1]}', "'a' occurs twice", id="repeated key in a row"),
        pytest.param(b'{"X":[[1,2]],"y":[1],"z":1}', "unknown field `z`", id="unknown field"),
        pytest.param(b'{"y":[1]}', "missing required field `X`", id="missing field"),
        pytest.param(b"[[1,2]]", "Expected `object`", id="no object"),
        pytest.param(b"null", "Expected `object`", id="null"),
        pytest.param(b'{"X":1,"y":[1]}', "$.X", id="X is no list"),
        pytest.param(b'{"X":[1,2],"y":[1]}', "$.X[0]", id="X is flat"),
        pytest.param(b'{"X":"[[1,2]]","y":[1]}', "$.X", id="X is text"),
        pytest.param(b'{"X":[[1,2]],"y":1}', "$.y", id="y is no list"),
        pytest.param(b'{"X":[[1,2]],"y":[1],"sample_weight":1}', "$.sample_weight", id="weight is no list"),
        pytest.param(b'{"metadata":{"type":"x"},"X":[[1,2]],"y":[1]}', "`metadata`", id="hash and metadata"),
    ],
)
async def test_invalid_json_and_forms(api: Api, metadata: dict[str, Any], body: bytes, reason: str) -> None:
    """A body that is not JSON, is ambiguous, or does not have the form of the call answers 400 with the reason."""
    assert reason in (await rejected(api, metadata, 400, body))["detail"]


@pytest.mark.parametrize(
    "headers",
    [
        {"Content-Type": "text/plain"},
        {"Content-Type": "application/x-www-form-urlencoded"},
        {"Content-Type": "application/octet-stream"},
        {"Content-Type": "application/json; charset=latin-1"},
        {"Content-Type": "application/json; charset=klingon"},
        {"Content-Type": ";;"},
        {"Content-Type": ""},
        {"Content-Encoding": "br"},
        {"Content-Encoding": "gzip, gzip"},
        {"Content-Encoding": "klingon"},
    ],
)
async def test_unsupported_media_types_and_encodings(
    api: Api, metadata: dict[str, Any], headers: dict[str, str]
) -> None:
    """Another Content-Type, charset or Content-Encoding answers 415, even if the body is JSON."""
    await rejected(api, metadata, 415, GOOD, headers)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        pytest.param(GOOD, "corrupt", id="not gzip"),
        pytest.param(PACKED[:-1], "truncated", id="last byte missing"),
        pytest.param(PACKED[:-8], "truncated", id="checksum missing"),
        pytest.param(PACKED[:12], "truncated", id="cut in the middle"),
        pytest.param(b"", "truncated", id="empty"),
        pytest.param(PACKED[:-8] + bytes(4) + PACKED[-4:], "corrupt", id="wrong checksum"),
        pytest.param(PACKED[:-4] + bytes(4), "corrupt", id="wrong length"),
        pytest.param(PACKED + b"x", "follow the end", id="trailing garbage"),
        pytest.param(PACKED + PACKED, "follow the end", id="a second stream"),
    ],
)
async def test_invalid_gzip_streams(api: Api, metadata: dict[str, Any], body: bytes, reason: str) -> None:
    """A gzip body that is corrupt, truncated or followed by data answers 400, even if its JSON is complete."""
    assert reason in (await rejected(api, metadata, 400, body, GZIP))["detail"]


async def test_a_valid_gzip_stream(api: Api, metadata: dict[str, Any]) -> None:
    """A gzip body is learned like a plain one."""
    path = await api.make(metadata, REGRESSOR)
    headers = {**GZIP, "Content-Type": "application/json; charset=UTF-8", "Prefer": "wait=10"}
    assert (await api.call("POST", f"{path}/partial_fit", data=PACKED, headers=headers)).of(200)["rows_seen"] == 1


NUMBERS = {
    "NaN": "NaN",
    "Infinity": "Infinity",
    "-Infinity": "-Infinity",
    "1e400": "not a finite number",
    "-1e308": "not a finite number",
    "9007199254740992": "2^53",
    '"1"': "'1' is not a number",
    "true": "true is not a number",
    "null": "null is not a number",
    "[1]": "is not a number",
    "{}": "is not a number",
}


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("where", ["X", "y", "sample_weight"])
async def test_invalid_numbers(api: Api, metadata: dict[str, Any], where: str, number: str) -> None:
    """NaN, infinities, too large numbers and values that are no numbers answer 422 with the value."""
    values = {"X": "2", "y": "1", "sample_weight": "1", where: number}
    body = '{"X":[[1,%(X)s]],"y":[%(y)s],"sample_weight":[%(sample_weight)s]}' % values  # noqa: UP031
    problem = await rejected(api, metadata, 422, body.encode())
    assert NUMBERS[number] in problem["detail"]
    if "Inf" not in number and number != "NaN":
        assert [(fault["row"], fault["column"]) for fault in problem["errors"]] == [(0, 1 if where == "X" else where)]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ('{"X":[],"y":[]}', "at least one row"),
        ('{"X":[[]],"y":[1]}', "empty"),
        ('{"X":[[1,2],[1]],"y":[1,2]}', "has 1 values where 2 are expected (row 1)"),
        ('{"X":[[1,2],{"a":1}],"y":[1,2]}', "a row is a list of numbers (row 1)"),
        ('{"X":[[1,2],[1,2]],"y":[1]}', "2 rows and y has 1"),
        ('{"X":[[1,2]],"y":[1,2]}', "1 rows and y has 2"),
        ('{"X":[[1,2]]}', "y must be a list of 1"),
        ('{"X":[[1,2]],"y":null}', "y must be a list of 1"),
        ('{"X":[[1,2]],"y":[1],"sample_weight":[1,1]}', "list of 1 numbers"),
        ('{"X":[[1,2]],"y":[1],"sample_weight":[-1]}', "-1 is negative"),
    ],
)
async def test_inconsistent_rows_targets_and_weights(
    api: Api, metadata: dict[str, Any], body: str, reason: str
) -> None:
    """Empty batches, ragged rows, targets and weights of another length answer 422 with the reason."""
    assert reason in (await rejected(api, metadata, 422, body.encode()))["detail"]


async def test_rows_of_another_width_than_the_model(api: Api, metadata: dict[str, Any]) -> None:
    """When the width of a model is known, rows of another width answer 422, even before the first row is learned."""
    path = await api.make(metadata, REGRESSOR)
    (await api.post(f"{path}/partial_fit", {"X": [[1, 2]], "y": [1]})).of(202)
    wider = await api.post(f"{path}/partial_fit", {"X": [[1, 2, 3]], "y": [1]})
    assert wider.problem(422)["detail"] == "The rows have 3 values where the model has 2."


@pytest.mark.parametrize(
    ("X", "row", "column"),
    [
        ('[{"make":"nike"}]', 0, "year"),
        ('[{"make":"nike","year":1,"size":4}]', 0, "size"),
        ('[["nike",1],["nike"]]', 1, None),
        ('[["nike","2001"]]', 0, "year"),
        ('[["nike",1],[true,1]]', 1, "make"),
        ("[[1.5,1]]", 0, "make"),
        ("[[null,1]]", 0, "make"),
        ('[["%s",1]]' % ("x" * 1025), 0, "make"),
        ("[[9007199254740992,1]]", 0, "make"),
    ],
)
async def test_rows_that_do_not_fit_the_recipe(
    api: Api, metadata: dict[str, Any], X: str, row: int, column: str | None
) -> None:
    """Missing and unknown columns, and values of the wrong type, answer 422 with row and column."""
    y = [1] * len(json.loads(X))
    problem = await rejected(
        api, metadata, 422, b'{"X":%s,"y":%s}' % (X.encode(), repr(y).encode()), None, SHOES_RECIPE
    )
    assert [(fault.get("row"), fault.get("column")) for fault in problem["errors"]] == [(row, column)]


@pytest.mark.parametrize(
    ("row", "reason", "column"),
    [
        ('["2001","nike","",0]', "'2001' is not a number", "year"),
        ('[NaN,"nike","",0]', "NaN", None),
        ('[1,true,"",0]', "true is not a category", "make"),
        ('[1,"nike",7,0]', "7 is not a text", "note"),
        ('[1,"nike",null,0]', "null is not a text", "note"),
        ('[1,"nike","%s",0]' % ("x" * 65_537), "the text has 65537 characters", "note"),
        ('[1,"nike","",null]', "null is not a time: send seconds since 1970 or ISO 8601 text", "at"),
        ('[1,"nike","","2024-02-30"]', "'2024-02-30' is not a time: send seconds since 1970", "at"),
        ('[1,"nike","",true]', "true is not a time", "at"),
        ('[1,"nike","","0001-01-01T00:00+01:00"]', "is not a time in UTC within the years 1 to 9999", "at"),
        ('[1,"nike","",1700000000000]', "1700000000000 is not a time in seconds", "at"),
        ('[1,"nike","",-62135596801]', "is not a time in seconds", "at"),
        ('{"year":1,"make":"nike","note":""}', "column 'at': the column is missing", "at"),
        ('{"yaer":1,"make":"nike","note":"","at":0}', "column 'yaer': the recipe has no such column", "yaer"),
    ],
    ids=lambda value: str(value)[:30],
)
async def test_values_of_the_wrong_type_for_their_column(
    api: Api, metadata: dict[str, Any], row: str, reason: str, column: str | None
) -> None:
    """Values of the wrong type, and missing values in columns that allow none, answer 422 with row and column."""
    body = '{"X":[{"note":"","at":0},%s],"y":[1,2]}' % row  # noqa: UP031
    problem = await rejected(api, metadata, 422, body.encode(), None, KINDS)
    assert reason in problem["detail"]
    if column is not None:
        assert [(fault["row"], fault["column"]) for fault in problem["errors"]] == [(1, column)]


async def test_rows_too_large_for_a_workers_memory(api: Api, metadata: dict[str, Any]) -> None:
    """Rows whose matrix does not fit into a worker's memory answer 422 in every format, and are not accepted."""
    wide = {**REGRESSOR, "features": {"note": {"type": "text", "n_features": 1_000_000}}}
    path = await api.make(metadata, wide)
    body = json.dumps({"X": [["a"]] * 200, "y": [1] * 200}).encode()
    for data in (body, body + PADDING, chunks(gzip.compress(body + PADDING))):
        headers = {} if isinstance(data, bytes) else GZIP
        problem = (await api.call("POST", f"{path}/partial_fit", data=data, headers=headers)).problem(422)
        assert "send at most 134 rows" in problem["detail"]
    assert (await api.model(path))["inbox"] == 0


async def test_texts_that_take_too_long(api: Api, metadata: dict[str, Any]) -> None:
    """Texts whose n-grams a worker would count past every deadline answer 422 with the number of rows that fit."""
    texts = {**REGRESSOR, "features": {"note": {"type": "text", "analyzer": "char", "ngram_range": [1, 8]}}}
    path = await api.make(metadata, texts)
    body = json.dumps({"X": [["a" * 65_536]] * 17}).encode()
    problem = (await api.call("POST", f"{path}/predict", data=io.BytesIO(body))).problem(422)
    assert "send at most 16 of these rows" in problem["detail"]


@pytest.mark.parametrize("label", ['"may\\u0000be"', "1", "true", "null", '["no"]', "{}", "1.5"])
async def test_invalid_labels(api: Api, metadata: dict[str, Any], label: str) -> None:
    """An invalid label, or one of another type than the recipe's classes, answers 422 with its row."""
    body = b'{"X":[[1,2],[3,4]],"y":["no",%s]}' % label.encode()
    problem = await rejected(api, metadata, 422, body, None, CLASSIFIER)
    assert [(fault["row"], fault["column"]) for fault in problem["errors"]] == [(1, "y")]


async def test_the_number_of_reported_faults_is_limited(api: Api, metadata: dict[str, Any]) -> None:
    """A problem document lists the first faults only, so that its size is bounded."""
    problem = await rejected(api, metadata, 422, json.dumps({"X": [["a", "b"]] * 5000, "y": [1] * 5000}).encode())
    assert 1 < len(problem["errors"]) <= 20
    assert [fault["row"] for fault in problem["errors"]] == list(range(len(problem["errors"])))


ONES = b"1," * 999_999


@pytest.mark.parametrize(
    "row",
    [
        pytest.param(b"[%s1]" % ONES, id="list"),
        pytest.param(b"[%strue]" % ONES, id="list for the strict parser"),
        pytest.param(b"{%s}" % b",".join(b'"%d":1' % i for i in range(100_000)), id="object"),
    ],
)
@pytest.mark.parametrize("call", ["partial_fit", "predict", "score", "by metadata"])
async def test_rows_with_too_many_columns(api: Api, metadata: dict[str, Any], call: str, row: bytes) -> None:
    """Rows with too many columns answer 413 in every format, before any value is checked."""
    path = await api.make(metadata, REGRESSOR)
    target = b"" if call == "predict" else b',"y":[1]'
    body = b'{"X":[%s]%s}' % (row, target)
    if call == "by metadata":
        body, address = b'{"metadata":%s,%s' % (json.dumps(metadata).encode(), body[1:]), "/v1/partial_fit"
    else:
        address = f"{path}/{call}"
    for data, headers in ((body, {}), (gzip.compress(body, 1), GZIP)):
        reply = await api.call("POST", address, data=io.BytesIO(data), headers=headers)
        assert "00000 columns" in reply.problem(413)["detail"]
    assert (await api.learn(path, [[1, 2]], [1]))["sequence"] == 1


@pytest.mark.parametrize(
    ("status", "member", "reason"),
    [
        pytest.param(422, b'"make":"%s"' % (b"x" * 16384), "larger than 16384 bytes", id="huge string"),
        pytest.param(422, b'"make":"a\\u0000b"', "NUL", id="NUL"),
        pytest.param(422, b'"a\\u0000b":1', "NUL", id="NUL in a key"),
        pytest.param(422, b'"$set":1', "'$set'", id="dollar"),
        pytest.param(422, b'"a.b":1', "'a.b'", id="dot"),
        pytest.param(422, b'"in":{"a.b":1}', "'a.b'", id="dot further in"),
        pytest.param(422, b'"year":NaN', "NaN", id="NaN"),
        pytest.param(422, b'"year":1e400', "inf is not", id="1e400"),
        pytest.param(422, b'"year":9007199254740992', "2^53", id="2^53"),
        pytest.param(422, b'"make":"e\xcc\x81"', "normal form C", id="not NFC"),
        pytest.param(422, b'"timestamp":1', "'timestamp'", id="timestamp"),
        pytest.param(400, b'"make":1,"make":1', "'make' occurs twice", id="repeated key"),
        pytest.param(400, b'"type":"shoes"', "'type' occurs twice", id="repeated type"),
        pytest.param(400, b'"make":"\\ud800"', "surrogate", id="lone surrogate"),
        pytest.param(400, b'"make":%s1%s' % (b"[" * 100_000, b"]" * 100_000), "nested too deeply", id="deep"),
    ],
)
async def test_invalid_metadata(api: Api, status: int, member: bytes, reason: str) -> None:
    """Metadata that are ambiguous, too large or invalid for MongoDB are rejected alike by every call."""
    metadata = b'{"type":"shoes",%s}' % member
    rows = b'{"metadata":%s,"X":[[1]],"y":[1]}' % metadata
    details = set()
    for call, body in (
        ("models", b'{"metadata":%s,"recipe":{"estimator":"SGDRegressor"}}' % metadata),
        ("partial_fit", rows),
        ("partial_fit", rows + PADDING),
        ("score", rows),
        ("predict", b'{"metadata":%s,"X":[[1]]}' % metadata),
    ):
        problem = (await api.call("POST", f"/v1/{call}", data=body)).problem(status)
        assert reason in problem["detail"]
        details.add(problem["detail"])
    assert len(details) == 1
    assert len(details.pop()) < 500


@pytest.mark.parametrize(
    ("status", "recipe", "reason"),
    [
        pytest.param(400, b'{"estimator":"A","estimator":"A"}', "occurs twice", id="repeated key"),
        pytest.param(422, b'{"estimator":"SGDRegressor","params":{"alpha":NaN}}', "NaN", id="NaN"),
        pytest.param(422, b'{"estimator":"SGDRegressor","params":{"alpha":1e400}}', "alpha", id="1e400"),
        pytest.param(422, b'{"estimator":"SGDRegressor","params":{"alpha":"0.1"}}', "alpha", id="number as text"),
        pytest.param(422, b'{"estimator":"os.system"}', "os.system", id="import path"),
        pytest.param(422, b'{"estimator":"SGDRegressor","features":{}}', "between 1 and", id="no features"),
        pytest.param(400, b"[]", "$.recipe", id="no object"),
        pytest.param(413, b'{"estimator":"%s"}' % (b"x" * 2**23), "larger than 8388608 bytes", id="huge"),
    ],
)
async def test_invalid_recipes(api: Api, metadata: dict[str, Any], status: int, recipe: bytes, reason: str) -> None:
    """An invalid recipe is rejected with the reason, and no model is created."""
    body = b'{"metadata":%s,"recipe":%s}' % (json.dumps(metadata).encode(), recipe)
    for data, headers in ((io.BytesIO(body), {}), (chunks(body), {}), (gzip.compress(body), GZIP)):
        assert reason in (await api.call("POST", "/v1/models", data=data, headers=headers)).problem(status)["detail"]
    assert (await api.get("/v1/models", session=metadata["session"])).of(200)["models"] == []


HEAD = b"POST %s/partial_fit HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
SIZE = len(GOOD)


@pytest.mark.parametrize(
    "lengths",
    [
        pytest.param(b"Content-Length: -1", id="negative length"),
        pytest.param(b"Content-Length: %d\r\nContent-Length: %d" % (SIZE, SIZE), id="length twice"),
        pytest.param(b"Content-Length: %d\r\nContent-Length: %d" % (SIZE, SIZE + 1), id="two lengths"),
        pytest.param(b"Content-Length: %d, %d" % (SIZE, SIZE), id="list of lengths"),
        pytest.param(b"Content-Length: +%d" % SIZE, id="signed length"),
        pytest.param(b"Content-Length: 0x%x" % SIZE, id="hexadecimal length"),
        pytest.param(b"Content-Length: %d.0" % SIZE, id="length with a point"),
        pytest.param(b"Content-Length: 99999999999999999999999", id="length beyond 64 bits"),
        pytest.param(b"Content-Length: %d\r\nTransfer-Encoding: chunked" % SIZE, id="length and chunks"),
        pytest.param(b"Transfer-Encoding: chunked\r\nContent-Length: %d" % SIZE, id="chunks and length"),
        pytest.param(b"Transfer-Encoding: identity", id="unknown transfer encoding"),
        pytest.param(b"Transfer-Encoding: chunked, identity", id="chunks not last"),
        pytest.param(b"Transfer-Encoding: chunked", id="no chunk size"),
    ],
)
async def test_invalid_body_lengths(api: Api, metadata: dict[str, Any], lengths: bytes) -> None:
    """A body whose end is ambiguous (request smuggling) answers 400, and none of its rows is learned."""
    path = await api.make(metadata, REGRESSOR)
    before = await api.model(path)
    answer = await exchange(api.url, HEAD % path.encode() + lengths + b"\r\n\r\n" + GOOD)
    Reply.parse(answer).problem(400)
    assert answer.count(b"HTTP/1.") == 1
    assert await api.model(path) == before
    assert (await api.learn(path, [[1, 2]], [1]))["sequence"] == 1


async def test_a_body_longer_than_its_content_length(api: Api, metadata: dict[str, Any]) -> None:
    """Only Content-Length bytes are the body; the bytes after it are read as the next request, here an invalid one."""
    path = await api.make(metadata, REGRESSOR)
    head = HEAD % path.encode() + b"Content-Length: %d\r\n\r\n" % (SIZE - 1)
    answers = (await exchange(api.url, head + GOOD + b"\r\n\r\n")).split(b"HTTP/1.")[1:]
    assert {int(answer[2:5]) for answer in answers} == {400}
    assert (await api.learn(path, [[1, 2]], [1]))["sequence"] == 1


@pytest.mark.parametrize(
    ("status", "data"),
    [
        pytest.param(400, b"GET /livez HTTP/1.1\r\nHost : keepfit\r\n\r\n", id="space before the colon"),
        pytest.param(400, b"GET /livez HTTP/1.1\r\nHost: localhost\r\n b\r\n\r\n", id="folded header"),
        pytest.param(400, b"GET /livez HTTP/1.1\r\n\r\n", id="no host"),
        pytest.param(400, b"GET /livez HTTP/1.1\r\nHost: localhost\r\nX: \0\r\n\r\n", id="NUL in a header"),
        pytest.param(400, b"GET /v1/models/\xff HTTP/1.1\r\nHost: localhost\r\n\r\n", id="bytes in the path"),
        pytest.param(400, b"GET /livez HTTP/9.9\r\nHost: localhost\r\n\r\n", id="unknown version"),
        pytest.param(400, b"\x00\x01garbage\r\n\r\n", id="garbage"),
        pytest.param(400, b"hello\r\n\r\n", id="no request line"),
        pytest.param(400, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", id="TLS"),
        pytest.param(
            431, b"GET /livez HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 20_000 + b"\r\n\r\n", id="20 KB header"
        ),
        pytest.param(431, b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n", id="20 KB path"),
    ],
)
async def test_invalid_http(api: Api, status: int, data: bytes) -> None:
    """Invalid HTTP gets a problem document and closes the connection; the gateway still serves."""
    Reply.parse(await exchange(api.url, data)).problem(status)
    assert (await api.get("/livez")).status == 200


async def test_chunked_framing_that_breaks_midway(api: Api, metadata: dict[str, Any]) -> None:
    """A body whose framing becomes invalid while it is read answers 400, and none of its rows is learned."""
    path = await api.make(metadata, REGRESSOR)
    head = f"POST {path}/partial_fit HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    head += "Expect: 100-continue\r\n"
    async with connected(api.url) as (reader, writer):
        writer.write(head.encode() + b"Transfer-Encoding: chunked\r\n\r\n")
        # After the 100 Continue the handler is reading the body.
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(b"%x\r\n%s\r\nzz\r\n" % (len(GOOD), GOOD))
        Reply.parse(await reader.read()).problem(400)
    assert (await api.model(path))["inbox"] == 0


async def test_a_body_that_ends_early(api: Api, metadata: dict[str, Any]) -> None:
    """If a client ends its body early, it gets a 400 and nothing is accepted, even if the bytes are valid JSON."""
    path = await api.make(metadata, REGRESSOR)
    head = f"POST {path}/partial_fit HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    async with connected(api.url) as (reader, writer):
        writer.write(head.encode() + b"Content-Length: %d\r\n\r\n%s" % (len(GOOD) + 1, GOOD))
        writer.write_eof()
        assert "incomplete" in Reply.parse(await reader.read()).problem(400)["detail"]
    model = await api.model(path)
    assert (model["inbox"], model["rows_seen"]) == (0, 0)
