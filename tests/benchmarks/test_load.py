"""Load generators: their output, and the samples parsed from it."""

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

WRK_OUTPUT = """Running 4s test @ http://127.0.0.1:19001/predict
  1 threads and 32 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency     6.44ms    8.15ms  63.43ms   87.71%
    Req/Sec     7.69k     4.59k   14.97k    46.67%
  20000 requests in 4.00s, 3.66MB read
Requests/sec:   5000.00
RESULT {"requests": 20000, "duration_us": 4000000, "p50_us": 2612.0, "p99_us": 39229.0, "max_us": 63427.0, \
"bad_status": 0, "connect": 0, "read": 0, "write": 0, "timeout": 0}
"""


def test_a_run_without_errors_gives_a_rate_and_two_latencies() -> None:
    """The rate is requests divided by duration; microseconds become milliseconds."""
    sample = parse(WRK_OUTPUT)
    assert (sample.rate, sample.p50_ms, sample.p99_ms) == (5000.0, 2.612, 39.229)
    assert not sample.failed


@pytest.mark.parametrize("kind", ["bad_status", "connect", "read", "write", "timeout"])
def test_any_error_fails_the_run(kind: str) -> None:
    """One answer that is not a 2xx, or one broken connection, is counted under its kind."""
    sample = parse(WRK_OUTPUT.replace(f'"{kind}": 0', f'"{kind}": 1'))
    assert sample.failed
    assert sample.errors == {kind.replace("_", " "): 1}


def test_a_run_without_answers_failed() -> None:
    """A server that accepts connections and never answers failed; its rate is not zero."""
    assert parse(WRK_OUTPUT.replace('"requests": 20000', '"requests": 0')).failed


def test_a_generator_without_a_result_raises_its_error_output() -> None:
    """Without a result line, the error contains the error output of the generator."""
    with pytest.raises(LoadError, match="unable to connect"):
        parse("Running 4s test", "unable to connect to 127.0.0.1:1 Connection refused")


def test_missing_wrk_raises_an_error_with_the_package_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without wrk, the error names the package to install."""
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(LoadError, match="apt-get install wrk"):
        load.require_wrk()


def test_a_body_uses_as_many_numbers_as_its_template() -> None:
    """Surplus numbers, such as the target of a predict call, are dropped."""
    assert CALL.body(1, 2, 3, 4, 5) == '{"X":[[1.000000,2.000000,3.000000,4.000000]]}'


# The generator of a fixed rate, against a server in this process.


@asynccontextmanager
async def serving(handler: object) -> AsyncIterator[str]:
    """Serve all paths with `handler` on a free port of the loopback interface; yield the URL."""
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


async def run_paced(url: str, parameters: Load) -> load.Sample:
    """Run the pacer in a thread."""
    return await asyncio.to_thread(load.run, url, CALL, parameters, 7)


async def test_a_fixed_rate_is_kept(tmp_path: Path) -> None:
    """Requests arrive at about the rate, all different, on the paths of the file, most often on the first."""
    paths = tmp_path / "paths"
    paths.write_text("/first\n/second\n")
    bodies: set[str] = set()
    requests_by_name: dict[str, int] = {"first": 0, "second": 0}

    async def answer(request: web.Request) -> web.Response:
        bodies.add(await request.text())
        requests_by_name[request.match_info["name"]] += 1
        return web.json_response({})

    async with serving(answer) as url:
        sample = await run_paced(url, Load(4, 0.5, rate=200.0, paths=paths, exponent=2.0))
    assert not sample.failed
    assert len(bodies) == sum(requests_by_name.values()) == pytest.approx(sample.rate * 0.5)
    assert 10 < len(bodies) < 200
    assert requests_by_name["first"] > requests_by_name["second"] > 0


async def test_a_fixed_rate_counts_error_answers() -> None:
    """Answers that are not a 2xx count as errors."""

    async def answer(request: web.Request) -> web.Response:
        await request.read()
        return web.json_response({}, status=503)

    async with serving(answer) as url:
        sample = await run_paced(url, Load(2, 0.2, rate=100.0))
    assert sample.errors["bad status"] > 0


async def test_waiting_for_a_connection_counts_as_latency() -> None:
    """A server slower than the rate has a high latency, although each answer takes 20 ms."""

    async def answer(request: web.Request) -> web.Response:
        await request.read()
        await asyncio.sleep(0.02)
        return web.json_response({})

    async with serving(answer) as url:
        sample = await run_paced(url, Load(1, 0.4, rate=150.0))
    assert sample.p99_ms > 100


def test_the_harness_prints_its_help() -> None:
    """`python -m benchmarks --help` prints its options, also without matplotlib and the peers."""
    root = Path(__file__).parents[2]
    completed = subprocess.run(
        [sys.executable, "-m", "benchmarks", "--help"], cwd=root, capture_output=True, text=True, check=True
    )
    assert "--quick" in completed.stdout
