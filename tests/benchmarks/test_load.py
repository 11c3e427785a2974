"""What the load generators print, and what is made of it."""

import asyncio
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web

from benchmarks import load
from benchmarks.load import Call, Load, LoadError, parse

CALL = Call("/predict", '{"X":[[%.6f,%.6f,%.6f,%.6f]]}')

WRK_SAID = """Running 4s test @ http://127.0.0.1:19001/predict
  1 threads and 32 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency     6.44ms    8.15ms  63.43ms   87.71%
    Req/Sec     7.69k     4.59k   14.97k    46.67%
  20000 requests in 4.00s, 3.66MB read
Requests/sec:   5000.00
RESULT {"requests": 20000, "duration_us": 4000000, "p50_us": 2612.0, "p99_us": 39229.0, "max_us": 63427.0, \
"bad_status": 0, "connect": 0, "read": 0, "write": 0, "timeout": 0}
"""


def test_a_clean_run_is_a_rate_and_two_latencies() -> None:
    """Requests by duration, and microseconds as milliseconds."""
    sample = parse(WRK_SAID)
    assert (sample.rate, sample.p50_ms, sample.p99_ms) == (5000.0, 2.612, 39.229)
    assert not sample.failed


@pytest.mark.parametrize("kind", ["bad_status", "connect", "read", "write", "timeout"])
def test_any_error_makes_a_failed_run(kind: str) -> None:
    """One answer that is no 2xx, or one broken connection, is kept under its name."""
    sample = parse(WRK_SAID.replace(f'"{kind}": 0', f'"{kind}": 1'))
    assert sample.failed
    assert sample.errors == {kind.replace("_", " "): 1}


def test_a_run_without_any_answer_failed() -> None:
    """A server that accepts and never answers is no server with a rate of nought."""
    assert parse(WRK_SAID.replace('"requests": 20000', '"requests": 0')).failed


def test_a_generator_that_broke_off_is_told_with_its_words() -> None:
    """Without a result line there is an error that says what the generator complained of."""
    with pytest.raises(LoadError, match="unable to connect"):
        parse("Running 4s test", "unable to connect to 127.0.0.1:1 Connection refused")


def test_wrk_missing_is_said_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the package to install."""
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(LoadError, match="apt-get install wrk"):
        load.require_wrk()


def test_a_body_has_as_many_numbers_as_its_envelope() -> None:
    """Numbers left over, such as a target where nothing learns, are dropped."""
    assert CALL.body(1, 2, 3, 4, 5) == '{"X":[[1.000000,2.000000,3.000000,4.000000]]}'


# The generator at a fixed rate, on a server in this process.


@asynccontextmanager
async def serving(handler: object) -> AsyncIterator[str]:
    """Serve POST / and POST /other on a free port of loopback."""
    app = web.Application()
    app.router.add_post("/{name:.*}", handler)  # type: ignore[arg-type]
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    try:
        yield f"http://{host}:{port}"
    finally:
        await runner.cleanup()


async def paced(url: str, wanted: Load) -> load.Sample:
    """Run the pacer beside the event loop."""
    return await asyncio.to_thread(load.run, url, CALL, wanted, 7)


async def test_a_fixed_rate_sends_what_was_asked_for(tmp_path: Path) -> None:
    """Requests come at about the rate, no two alike, to the paths of the file, the first most often."""
    paths = tmp_path / "paths"
    paths.write_text("/first\n/second\n")
    bodies: set[str] = set()
    asked: dict[str, int] = {"first": 0, "second": 0}

    async def answer(request: web.Request) -> web.Response:
        bodies.add(await request.text())
        asked[request.match_info["name"]] += 1
        return web.json_response({})

    async with serving(answer) as url:
        sample = await paced(url, Load(4, 0.5, rate=200.0, paths=paths, exponent=2.0))
    assert not sample.failed
    assert len(bodies) == sum(asked.values()) == pytest.approx(sample.rate * 0.5)
    assert 10 < len(bodies) < 200
    assert asked["first"] > asked["second"] > 0


async def test_a_fixed_rate_counts_bad_answers() -> None:
    """Answers that are no 2xx are errors, not requests."""

    async def answer(request: web.Request) -> web.Response:
        await request.read()
        return web.json_response({}, status=503)

    async with serving(answer) as url:
        sample = await paced(url, Load(2, 0.2, rate=100.0))
    assert sample.errors["bad status"] > 0


async def test_waiting_for_a_connection_counts() -> None:
    """A server slower than the rate shows in the latency, although each single answer takes 20 ms."""

    async def answer(request: web.Request) -> web.Response:
        await request.read()
        await asyncio.sleep(0.02)
        return web.json_response({})

    async with serving(answer) as url:
        sample = await paced(url, Load(1, 0.4, rate=150.0))
    assert sample.p99_ms > 100


def test_the_harness_explains_itself_without_measuring() -> None:
    """`python -m benchmarks --help` names its options, wherever matplotlib and the peers are missing."""
    root = Path(__file__).parents[2]
    said = subprocess.run(
        [sys.executable, "-m", "benchmarks", "--help"], cwd=root, capture_output=True, text=True, check=True
    )
    assert "--quick" in said.stdout
