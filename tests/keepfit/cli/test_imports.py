"""What commands import: a user waits for it each time."""

import asyncio
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

HASH = "a" * 64
MODEL = {"hash": HASH, "recipe": {"estimator": "SGDRegressor", "features": {"x": "number"}}, "rows_seen": 1}
# Prints the modules that the command has imported.
SCRIPT = """
import atexit, sys
atexit.register(lambda: print(*sys.modules, file=sys.stderr))
from keepfit.cli.main import main
main()
"""
SERVERS = {
    "aiohttp", "numpy", "sklearn", "scipy", "pandas", "pymongo", "motor", "redis", "rq", "fsspec", "structlog", "rich",
    "pydantic_settings",
}  # fmt: skip
CLIENT = {"keepfit.client.transport.http1"}


async def imported(*words: str, cwd: Path) -> tuple[str, set[str]]:
    """Run a command; return its output and the modules that it has imported."""
    command = [sys.executable, "-c", SCRIPT, *words]
    done = await asyncio.to_thread(subprocess.run, command, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout, set(done.stderr.split())


@pytest.mark.parametrize("words", [("key", "signing"), ("--version",)])
async def test_commands_without_a_deployment_import_no_client(tmp_path: Path, words: tuple[str, ...]) -> None:
    """Commands that neither call a gateway nor read settings import nothing that does."""
    _, modules = await imported(*words, cwd=tmp_path)
    assert modules & (SERVERS | CLIENT) == set()
    assert "keepfit.cli.main" in modules


async def test_commands_about_rows_import_an_http_client_only(tmp_path: Path) -> None:
    """`keepfit predict` imports neither numerical libraries nor clients of servers nor what draws on terminals."""
    (tmp_path / "a.csv").write_text("x\n1\n")

    async def answer(request: web.Request) -> web.Response:
        document: dict[str, Any] = {"predictions": [2.5]} if request.method == "POST" else MODEL
        return web.json_response(document)

    app = web.Application()
    app.router.add_route("*", "/v1/models/{path:.*}", answer)
    async with TestServer(app) as server:
        words = ("predict", "a.csv", "--hash", HASH, "--url", str(server.make_url("/")))
        output, modules = await imported(*words, cwd=tmp_path)
    assert output == "x,prediction\n1,2.5\n"
    assert modules & SERVERS == set()
    assert modules >= CLIENT
