"""Clients of InfluxDB 2, unmodified: influxdb-client, and bodies as Telegraf sends them."""

import asyncio
import gzip
import time
import uuid
from collections.abc import AsyncIterator
from typing import Any

import pytest
from influxdb_client import InfluxDBClient, Point, WritePrecision
from influxdb_client.client.write_api import SYNCHRONOUS, WriteOptions
from influxdb_client.rest import ApiException

from keepfit.security.api_keys import new_key
from keepfit.settings import Settings
from tests.conftest import Stack
from tests.gateway.api_client import Api, Reply, serving

START_S = 1_700_000_000
# As Telegraf's serializer `influx` writes a batch of inputs.cpu, inputs.system and inputs.disk.
OF_TELEGRAF = """\
cpu,cpu=cpu-total,host=web-1 usage_active=12.5,usage_idle=87.5 1700000000000000000
system,host=web-1 load1=0.5,load5=0.25,n_cpus=8i,n_users=2u 1700000000000000000
system,host=web-1 uptime=3600i 1700000000000000000
system,host=web-1 uptime_format=" 1:00" 1700000000000000000
disk,device=sda1,fstype=ext4,host=web-1,mode=rw,path=/srv/my\\ files free=1000i,used_percent=50.1 1700000000000000000
"""


def written(url: str, token: str, count: int, *, gzipped: bool) -> None:
    """Write points with the client of PyPI, in the background and in batches, as its manual shows."""
    with InfluxDBClient(url=url, token=token, org="keepfit", enable_gzip=gzipped) as client:
        assert client.ping()
        assert client.version() == "2.0.0"
        options = WriteOptions(batch_size=300, flush_interval=1000)
        with client.write_api(write_options=options) as api:
            for n in range(count):
                point = Point(f"load {token}").tag("host", f"web {n % 3}").field("value", n + 0.25).field("n", n)
                api.write("bucket", "keepfit", point.time(START_S + n, WritePrecision.S))


@pytest.mark.parametrize("gzipped", [False, True])
async def test_points_are_found_by_the_same_names(api: Api, stack: Stack, gzipped: bool) -> None:
    """influxdb-client writes points; measurement, tags, fields and times are found as they were written."""
    token = uuid.uuid4().hex
    await asyncio.to_thread(written, stack.url, token, 700, gzipped=gzipped)
    query = {"type": f"load {token}", "limit": "1000"}
    found = (await api.get("/v1/history", **query, host="web 1")).of(200)["documents"]
    expected = [
        {"type": f"load {token}", "timestamp": START_S + n, "host": "web 1", "value": n + 0.25, "n": n}
        for n in range(1, 700, 3)
    ]
    assert found[::-1] == expected
    counted = await api.get("/v1/history", type=f"load {token}", every="1d", stat="sum", field="n", group="host")
    assert sum(point["value"] for point in counted.of(200)["points"]) == sum(range(700))


def refused(url: str, body: str, token: str = "any", precision: Any = WritePrecision.NS) -> ApiException:
    """Return the error that the client of PyPI raises for a body."""
    with InfluxDBClient(url=url, token=token, org="keepfit") as client:
        with pytest.raises(ApiException) as error:
            client.write_api(write_options=SYNCHRONOUS).write("bucket", "keepfit", body, precision)
        return error.value


async def test_errors_as_the_client_reads_them(stack: Stack, api: Api) -> None:
    """Lines that are wrong are named, and the others are stored; the client's error has the message."""
    name = f"m{uuid.uuid4().hex}"
    body = f'{name} f=1 1\n{name} f\n{name} g="x" 1\n{name},a=1,a=2 f=1 1\n{name} f=1 x\n{name} f=y\n'
    error = await asyncio.to_thread(refused, stack.url, body, precision=WritePrecision.S)
    assert error.status == 400
    assert error.message.startswith("partial write: line 2: unable to parse")
    assert "lines that are wrong: 4; points that are stored: 2" in error.message
    assert (await api.get("/v1/history", type=name)).of(200)["documents"] == [
        {"type": name, "timestamp": 1.0, "f": 1.0, "g": "x"}
    ]
    nothing = await asyncio.to_thread(refused, stack.url, "m")
    assert (nothing.status, nothing.message.partition(":")[0]) == (400, "nothing is written")


async def write(api: Api, body: str, query: str = "org=a&bucket=b", **headers: str) -> Reply:
    """Send a body as Telegraf's output influxdb_v2 does."""
    fields = {
        "Content-Type": "text/plain; charset=utf-8", "Content-Encoding": "gzip", "User-Agent": "Telegraf/1.38.0",
        "Authorization": "Token any", **headers,
    }  # fmt: skip
    data = gzip.compress(body.encode()) if fields["Content-Encoding"] == "gzip" else body.encode()
    return await api.call("POST", f"/api/v2/write?{query}", data=data, headers=fields)


async def test_an_empty_body_is_an_error(workerless: Api) -> None:
    """It is no batch: something between the client and the gateway has lost it."""
    for encoding in ("identity", "gzip"):
        reply = await write(workerless, "", **{"Content-Encoding": encoding})
        assert reply.status == 400
        assert b"The body is empty" in reply.body


async def test_batches_of_telegraf(workerless: Api) -> None:
    """A batch that is sent again is stored once; metrics of one series and time are one document."""
    for _ in range(2):
        reply = await write(workerless, OF_TELEGRAF)
        assert (reply.status, reply.body) == (204, b"")
    for type_, expected in {
        "cpu": {"cpu": "cpu-total", "host": "web-1", "usage_active": 12.5, "usage_idle": 87.5},
        "system": {
            "host": "web-1", "load1": 0.5, "load5": 0.25, "n_cpus": 8, "n_users": 2, "uptime": 3600,
            "uptime_format": " 1:00",
        },
        "disk": {
            "device": "sda1", "fstype": "ext4", "host": "web-1", "mode": "rw", "path": "/srv/my files", "free": 1000,
            "used_percent": 50.1,
        },
    }.items():  # fmt: skip
        found = (await workerless.get("/v1/history", type=type_)).of(200)["documents"]
        assert found == [{"type": type_, "timestamp": START_S, **expected}]


async def test_parameters(workerless: Api) -> None:
    """Precisions, points without a time, names that a document has itself, and what is refused."""
    before = time.time()
    for precision, unit in (("s", 1), ("ms", 1_000), ("us", 10**6), ("ns", 10**9)):
        assert (await write(workerless, f"{precision},type=x f=1 7", f"precision={precision}")).status == 204
        found = (await workerless.get("/v1/history", type=precision, **{"metadata.type": "x"})).of(200)["documents"]
        assert found == [{"type": precision, "timestamp": 7 / unit, "metadata": {"type": "x"}, "f": 1.0}]
    assert (await write(workerless, "now f=1")).status == 204
    (now,) = (await workerless.get("/v1/history", type="now")).of(200)["documents"]
    assert before - 1 <= now["timestamp"] <= time.time()
    for query, body, status in (
        ("precision=m", "m f=1", 400), ("x=1", "m f=1", 400), ("", "m f=1 9223372036854775807", 204),
        ("precision=s", "m f=1 99999999999999", 400), ("", "# no point", 204),
    ):  # fmt: skip
        assert (await write(workerless, body, query)).status == status
    unsupported = await write(workerless, "m f=1", **{"Content-Encoding": "br"})
    assert (unsupported.status, unsupported.json()["code"]) == (415, "invalid")
    corrupt = await workerless.call("POST", "/api/v2/write", data=b"x", headers={"Content-Encoding": "gzip"})
    assert (corrupt.status, corrupt.json()["code"]) == (400, "invalid")
    assert (await workerless.get("/health")).of(200)["status"] == "pass"
    assert (await workerless.get("/ping")).status == 204
    long = f'm f="{"x" * (1 << 20)}" 1\nlong f=2 1'
    refused = await write(workerless, long)
    assert "line 1: the line is longer than 1048576 bytes" in refused.json()["message"]
    assert len((await workerless.get("/v1/history", type="long")).of(200)["documents"]) == 1


@pytest.fixture
async def keys(settings: Settings) -> AsyncIterator[tuple[Api, dict[str, str]]]:
    """Run a gateway with keys."""
    made = {
        "writer": new_key("writer", ["learn"]),
        "reader": new_key("reader", ["read"]),
        "bound": new_key("bound", ["learn"], where=["host=web-1"]),
    }
    keys = type(settings.api_keys)(",".join(line for _, line in made.values()))
    tokens = {name: token for name, (token, _) in made.items()}
    async with serving(settings.model_copy(update={"api_keys": keys}), tuple(tokens.values())) as api:
        yield api, tokens


async def test_tokens(keys: tuple[Api, dict[str, str]]) -> None:
    """The API key is sent as a token; scopes and conditions hold, and refusals have the form of InfluxDB."""
    api, tokens = keys

    async def as_key(token: str, body: str) -> Reply:
        return await write(api, body, Authorization=f"Token {token}")

    assert (await as_key(tokens["writer"], "cpu,host=web-2 f=1 1")).status == 204
    unknown = await as_key("guessed", "cpu f=1")
    assert (unknown.status, unknown.json()["code"]) == (401, "unauthorized")
    scope = await as_key(tokens["reader"], "cpu f=1")
    assert (scope.status, scope.json()["code"]) == (403, "forbidden")
    foreign = await as_key(tokens["bound"], "cpu,host=web-1 f=1 1\ncpu,host=web-2 f=2 1")
    assert foreign.status == 400
    assert "line 2: The API key is for documents with host=web-1" in foreign.json()["message"]
    reader = {"Authorization": f"Bearer {tokens['reader']}"}
    found = (await api.call("GET", "/v1/history?type=cpu", headers=reader)).of(200)["documents"]
    assert sorted((one["host"], one["f"]) for one in found) == [("web-1", 1.0), ("web-2", 1.0)]
    assert (await api.get("/ping")).status == 204
    # The scheme is InfluxDB's: other paths have one scheme.
    token = {"Authorization": f"Token {tokens['reader']}"}
    assert (await api.call("GET", "/v1/history?type=cpu", headers=token)).status == 401
