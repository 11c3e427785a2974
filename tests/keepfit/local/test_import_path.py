"""A user starts keepfit in a folder with modules of their own; keepfit's processes run none of them."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import redis

from tests.conftest import SHOES_RECIPE, start_stack, stop_stack

METADATA = {"type": "shoes", "session": "import path"}
# Names of keepfit's services, of packages that they use, and of every module of the standard library.
PACKAGES = ("gateway", "workers", "snapshotter", "redis", "rq", "numpy", "sklearn", "typer", "aiohttp", "secantus")
BIN = Path(sys.executable).parent


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder whose modules, when they are run, leave a file named after them and fail."""
    made, ran = tmp_path / "cwd", tmp_path / "ran"
    ran.mkdir()
    made.mkdir()
    stdlib = {name for name in sys.stdlib_module_names if name not in sys.builtin_module_names and name[0] != "_"}
    for name in stdlib - {"this", "antigravity"} | set(PACKAGES):
        code = f"open({str(ran / name)!r}, 'w').close()\nraise ImportError('a module of the user: {name}')\n"
        (made / f"{name}.py").write_text(code)
    return made


def modules_run(folder: Path) -> list[str]:
    """Return the names of the folder's modules that were run."""
    return sorted(path.name for path in (folder.parent / "ran").iterdir())


@pytest.mark.parametrize("command", [[sys.executable, "-m", "keepfit"], [str(BIN / "keepfit")]], ids=["-m", "script"])
def test_the_command_runs_no_module_of_the_working_directory(folder: Path, command: list[str]) -> None:
    """`keepfit` and `python -m keepfit` use installed modules in a folder that has others of the same names."""
    done = subprocess.run(
        [*command, "key", "signing"], cwd=folder, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert modules_run(folder) == []


@pytest.mark.timeout(240)
async def test_no_process_of_a_stack_runs_a_module_of_the_working_directory(folder: Path, tmp_path: Path) -> None:
    """Servers, services, workers, the recipe checker and the process that replays requests run installed modules."""
    log = (tmp_path / "log").as_uri()
    stack = start_stack(tmp_path / "data", workers=1, environment={"KEEPFIT_ROW_LOG_URL": log}, cwd=folder)
    try:
        async with aiohttp.ClientSession(stack.url) as session:

            async def call(path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
                async with session.post(path, json=body, headers={"Prefer": "wait=30"}) as response:
                    assert response.status < 300, await response.text()
                    answer: dict[str, Any] = await response.json()
                    return answer

            model_hash = (await call("/v1/models", {"metadata": METADATA, "recipe": SHOES_RECIPE}))["hash"]
            rows = {"metadata": METADATA, "X": [["nike", 2001], ["puma", 2010]], "y": [4, 2]}
            await call("/v1/partial_fit", rows)
            await call(f"/v1/models/{model_hash}/snapshot")
            await call("/v1/partial_fit", rows)
            with redis.Redis.from_url(stack.environment()["KEEPFIT_STORE_URL"]) as store:
                store.delete(*store.keys(f"kf:{{{model_hash}}}:*"))
            found = await call("/v1/predict", {"metadata": METADATA, "X": [["nike", 2003]]})
            # The last two rows are in the row log alone: a process replayed them.
            assert found["rows_seen"] == 4
    finally:
        assert stop_stack(stack) == 0
    assert modules_run(folder) == []
