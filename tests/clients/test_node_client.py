"""The Node.js client: its own tests on a real stack, its types, its package, its guide."""

import json
import re
import shutil
import tomllib
import uuid
from pathlib import Path

import pytest

from tests.clients.node import CLIENT, NODE, NPM, PATH, ROOT, client_node, compiled, run, schemas
from tests.conftest import Stack

GUIDE = ROOT / "docs/guides/nodejs-client.md"
VECTORS = ROOT / "tests/fixtures/metadata_hashes.json"

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def client() -> Path:
    """Return a folder with the compiled client."""
    return compiled()


@pytest.fixture(scope="module")
def package(client: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder into which the packed client is installed, as npm unpacks it."""
    folder = tmp_path_factory.mktemp("user")
    run(NODE, NPM, "pack", "--ignore-scripts", "--pack-destination", folder, cwd=client, PATH=PATH)
    (archive,) = folder.glob("*.tgz")
    assert archive.stat().st_size < 100_000
    shutil.unpack_archive(archive, folder, filter="data")
    (folder / "node_modules").mkdir()
    (folder / "package").rename(folder / "node_modules/keepfit")
    return folder


def test_the_types_are_those_of_the_openapi_document(tmp_path: Path) -> None:
    """The generated types are up to date: `make client` writes them."""
    assert (CLIENT / "src/schemas.ts").read_text() == schemas(tmp_path), "run `make client`, and commit what it writes"


def test_the_tests_of_the_client_pass(client: Path, stack: Stack) -> None:
    """The client's own tests pass against a running stack, and none is skipped."""
    environment = {"KEEPFIT_TEST_URL": stack.url, "KEEPFIT_TEST_VECTORS": str(VECTORS)}
    output = run(client_node(), "--test", "--test-reporter", "tap", cwd=client, **environment)
    counts = {name: int(number) for name, number in re.findall(r"^# (\w+) (\d+)$", output, re.MULTILINE)}
    assert counts["fail"] == counts["skipped"] == counts["cancelled"] == counts["todo"] == 0
    assert counts["pass"] == counts["tests"] >= 90


def test_the_types_refuse_what_is_wrong(client: Path) -> None:
    """A program in TypeScript, for `import` and `require`, has the types that the client promises."""
    run(NODE, "node_modules/typescript/bin/tsc", "--project", "tests", cwd=client)


def test_the_package_holds_the_compiled_client_alone(package: Path) -> None:
    """The package has the modules, their types, the licence and the readme: no source, no test, no dependency."""
    sources = [path.relative_to(CLIENT / "src").with_suffix("") for path in (CLIENT / "src").rglob("*.ts")]
    modules = {f"dist/{source}{suffix}" for source in sources for suffix in (".js", ".d.ts")}
    expected = {"LICENSE", "README.md", "package.json", "dist/index.mjs", "dist/index.d.mts", *modules}
    unpacked = package / "node_modules/keepfit"
    assert {str(path.relative_to(unpacked)) for path in unpacked.rglob("*") if path.is_file()} == expected
    described = json.loads((CLIENT / "package.json").read_text())
    assert "dependencies" not in described
    assert described["engines"] == {"node": ">=18"}
    assert (CLIENT / "LICENSE").read_text() == (ROOT / "LICENSE").read_text()


def test_the_version_is_that_of_keepfit() -> None:
    """The package, its lock file and the module of its version have the version of the Python package."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert json.loads((CLIENT / "package.json").read_text())["version"] == version
    assert json.loads((CLIENT / "package-lock.json").read_text())["version"] == version
    assert f'VERSION = "{version}"' in (CLIENT / "src/version.ts").read_text()


def test_import_and_require_give_the_same_classes(package: Path) -> None:
    """An installed package works by `import` and `require`, with one copy of every class and without any dependency."""
    program = """
        import { createRequire } from "node:module";
        import * as imported from "keepfit";
        const required = createRequire(import.meta.url)("keepfit");
        const names = Object.keys(required);
        console.log(JSON.stringify({
          names,
          same: names.every((name) => imported[name] === required[name]),
          hash: new required.Keepfit().model({ type: "shoes" }).hash === imported.hashOf({ type: "shoes" }),
        }));
    """
    got = json.loads(run(client_node(), "--input-type=module", "--eval", program, cwd=package))
    assert got["same"] is got["hash"] is True
    assert {"Keepfit", "Model", "KeepfitError", "InvalidError", "TimeoutError", "hashOf", "canonical"} <= set(
        got["names"]
    )


def test_the_programs_of_the_guide_run(package: Path, stack: Stack) -> None:
    """The blocks of the guide are one program, which prints what the page shows."""
    page = GUIDE.read_text()
    blocks = re.findall(r"^```js\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    program = "\n".join(blocks).replace("http://127.0.0.1:8000", stack.url)
    session = uuid.uuid4().hex
    (package / "guide.mjs").write_text(program.replace('session: "guide"', f"session: {json.dumps(session)}"))
    printed = run(client_node(), "guide.mjs", cwd=package).splitlines()
    shown = [
        line
        for text in re.findall(r"^```text\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
        for line in text.splitlines()
    ]
    assert len(blocks) >= 5
    for line, expected in zip(printed, shown, strict=True):
        # … stands for what differs each time.
        assert re.fullmatch(".*".join(map(re.escape, expected.split("…"))), line), (line, expected)


def test_the_program_of_the_readme_runs(package: Path, stack: Stack) -> None:
    """The block of the package's readme prints one prediction."""
    (block,) = re.findall(r"^```js\n(.*?)^```$", (CLIENT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    program = block.replace("http://127.0.0.1:8000", stack.url).replace('"shoes"', json.dumps(uuid.uuid4().hex))
    (package / "readme.mjs").write_text(program)
    assert re.fullmatch(r"\[ -?[0-9.e-]+ \]\n", run(client_node(), "readme.mjs", cwd=package))
