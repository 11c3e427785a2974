"""The reference pages list what the code has, and nothing else: calls, commands, log events, metrics, errors."""

import ast
import json
import re
import shlex
import urllib.error
import urllib.request
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest
import typer.main
from aiohttp import web
from sklearn.linear_model import SGDRegressor

from keepfit.cli.main import app
from keepfit.errors import KeepfitError
from keepfit.objects import dump_trained
from keepfit.security.api_keys import OPEN
from keepfit.security.envelope import UPLOAD_KEYS
from keepfit_gateway.routes import ROUTES
from keepfit_gateway.web.problems import problem_of, problem_of_http, status_of
from keepfit_workers import metrics as worker_metrics
from tests.conftest import Stack
from tests.examples_in_docs import assert_same_form

ROOT = Path(__file__).parents[1]
REFERENCE = ROOT / "docs/reference"
PACKAGES = ("keepfit", "gateway", "workers", "snapshotter")
LOCAL = "http://127.0.0.1:8000"
# Methods of structlog's loggers, with the level that each writes.
LEVELS = {"debug": "debug", "info": "info", "warning": "warning", "error": "error", "exception": "error"}


def rows_of(page: str) -> list[list[str]]:
    """Return the rows of all tables of a page whose first cell is code, as lists of cells without markup."""
    lines = [line for line in (REFERENCE / page).read_text().splitlines() if line.startswith("| `")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def codes(cell: str) -> list[str]:
    """Return what is marked as code in a cell."""
    return re.findall(r"`([^`]+)`", cell)


def calls(name: str) -> Iterator[ast.Call]:
    """Yield the calls of methods of objects with this name in the source of the services and the library."""
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                match node:
                    case ast.Call(func=ast.Attribute(value=ast.Name(id=found))) if found == name:
                        yield node


# HTTP API.


def test_the_page_lists_every_call_with_its_scope() -> None:
    """The table of the HTTP API has each route once, with the scope that it needs, and each has a section."""
    listed = {codes(row[0])[0]: row[1].replace("`", "") for row in rows_of("http-api.md")}
    routes = {f"{r.method} {r.path}": "none" if r.needs == OPEN else ", ".join(r.scopes) for r in ROUTES}
    assert listed == routes
    sections = re.findall(r"^### `(.+)`$", (REFERENCE / "http-api.md").read_text(), re.MULTILINE)
    assert sorted(sections) == sorted(routes)


def test_a_section_names_the_parameters_of_its_call() -> None:
    """Each query parameter and header of a route is named in its section, or the section says that it is the same.

    The conventions name what every route has.
    """
    sections = dict(
        re.findall(
            r"^### `([^`\n]+)`\n(.*?)(?=^##|\Z)", (REFERENCE / "http-api.md").read_text(), re.MULTILINE | re.DOTALL
        )
    )
    for route in ROUTES:
        text = sections[f"{route.method} {route.path}"]
        if "The same, for the model that `metadata` names." in text:
            continue
        missing = [p["name"] for p in route.own_parameters if p["in"] != "path" and p["name"] not in text]
        assert missing == [], route.path


def call(command: str, url: str, file: bytes = b"") -> Any:
    """Do what a `curl -s …` does on `url`, with one file; return the JSON of the answer, None if it has none."""
    words = shlex.split(command.replace(LOCAL, url))[2:]
    options: dict[str, list[str]] = {"-H": [], "-d": [], "-X": [], "-o": [], "--data-binary": []}
    addresses = []
    while words:
        word = words.pop(0)
        addresses.append(word) if word not in options else options[word].append(words.pop(0))
    headers = dict(header.split(": ", 1) for header in options["-H"])
    data = options["-d"][0].encode() if options["-d"] else None
    if options["--data-binary"] == ["@estimator.pickle"]:
        data = file
    method = options["-X"][0] if options["-X"] else None
    request = urllib.request.Request(addresses[0], data, headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            is_json = response.headers.get_content_type() == "application/json"
            return json.loads(response.read()) if is_json else None
    except urllib.error.HTTPError as problem:
        return json.load(problem)


def test_the_examples_of_calls_give_the_answers_shown(stack: Stack) -> None:
    """The examples, run in their order, give answers of the form that is shown, and each call has one."""
    blocks = re.findall(r"```console\n\$ (curl [^\n]*)\n(.*?)```", (REFERENCE / "http-api.md").read_text(), re.DOTALL)
    assert len(blocks) == len(ROUTES)
    file = dump_trained(SGDRegressor().partial_fit([[1.0]], [1.0]), stack.environment()[UPLOAD_KEYS])
    for command, shown in blocks:
        answer = call(command, stack.url, file)
        if shown:
            assert_same_form(answer, json.loads(shown))


# Commands.


def commands() -> dict[str, Any]:
    """Return the commands that the help shows, by their full names."""

    def walk(name: str, command: Any) -> Iterator[tuple[str, Any]]:
        yield name, command
        for sub, below in getattr(command, "commands", {}).items():
            if not below.hidden:
                yield from walk(f"{name} {sub}", below)

    return dict(walk("keepfit", typer.main.get_command(app)))


def default_of(parameter: Any) -> str:
    """Return a parameter's default as the page writes it."""
    if parameter.required:
        return "required"
    is_unset = parameter.default is None or parameter.default == "" or callable(parameter.default)
    return "" if is_unset or parameter.default is False else f"`{parameter.default}`"


def table_of(command: Any) -> str:
    """Return the table of a command's arguments and options."""
    lines = ["| option | default | meaning |", "|---|---|---|"]
    for parameter in command.params:
        if parameter.name == "help":
            continue
        name = max(parameter.opts, key=len) if parameter.param_type_name == "option" else parameter.name.upper()
        lines.append(f"| `{name}` | {default_of(parameter)} | {getattr(parameter, 'help', '')} |")
    return "\n".join(lines)


def test_the_page_has_every_command() -> None:
    """Each command has a section on the page of the command line, and each section a command."""
    text = (REFERENCE / "cli.md").read_text()
    assert re.findall(r"^## `(.+)`$", text, re.MULTILINE) == list(commands())


@pytest.mark.parametrize("name", commands())
def test_a_section_has_every_option(name: str) -> None:
    """The section of a command has its help text and exactly its arguments and options, with defaults and help."""
    sections = dict(
        re.findall(r"^## `([^`\n]+)`\n(.*?)(?=^## |\Z)", (REFERENCE / "cli.md").read_text(), re.MULTILINE | re.DOTALL)
    )
    command, section = commands()[name], sections[name]
    assert (command.help or "").strip() in section
    tables = re.findall(r"^\| option .*?(?:\n(?=[^|])|\Z)", section, re.MULTILINE | re.DOTALL)
    expected = table_of(command)
    assert [table.strip() for table in tables] == ([expected] if expected.count("\n") > 1 else [])


# Log events.


def events() -> dict[str, tuple[set[str], set[str]]]:
    """Return the events in the code with their levels and fields; fields that are computed are left out."""
    found: dict[str, tuple[set[str], set[str]]] = {}
    for node in calls("log"):
        assert isinstance(node.func, ast.Attribute)
        if node.func.attr not in LEVELS:
            continue  # a file named `log`
        (name,) = node.args
        assert isinstance(name, ast.Constant), ast.unparse(node)
        levels, fields = found.setdefault(name.value, (set(), set()))
        levels.add(LEVELS[node.func.attr])
        fields |= {keyword.arg for keyword in node.keywords if keyword.arg not in (None, "exc_info")}  # type: ignore[arg-type]
    return found


def test_the_page_lists_every_log_event() -> None:
    """Event, level and fields of each log call are on the page, and the page lists no others."""
    listed = {codes(row[0])[0]: ({row[1]}, set(codes(row[2]))) for row in rows_of("log-events.md")}
    assert listed == events()


# Metrics.


def metrics() -> set[str]:
    """Return the names of metrics in the code of gateway and workers, as a scrape shows them."""
    found = {f"{one.name}_total" if isinstance(one, worker_metrics.Counter) else one.name for one in worker_metrics.ALL}
    found |= {"keepfit_worker_processes", worker_metrics.MODELS_HELD}
    for path in (ROOT / "gateway").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call) or not node.args:
                continue
            kind, name = ast.unparse(node.func).rpartition(".")[2], node.args[0]
            if kind in ("GaugeMetricFamily", "HistogramMetricFamily", "Gauge", "Histogram"):
                assert isinstance(name, ast.Constant)
                found.add(name.value)
            elif kind in ("CounterMetricFamily", "Counter"):
                prefix = name.value if isinstance(name, ast.Constant) else "keepfit_cache_*"
                found.add(f"{prefix}_total")
    if "keepfit_cache_*_total" in found:
        found.remove("keepfit_cache_*_total")
        found |= {f"keepfit_cache_{what}_total" for what in ("hits", "misses", "dropped")}
    return found


def test_the_page_lists_every_metric() -> None:
    """Each metric in the code is on the page, and the page lists no others."""
    assert {codes(row[0])[0] for row in rows_of("metrics.md")} == metrics()


def test_the_page_lists_what_a_scrape_shows(stack: Stack) -> None:
    """A real scrape has no metric and no label that the page does not name."""
    with urllib.request.urlopen(f"{stack.url}/metrics", timeout=30) as response:
        text = response.read().decode()
    listed = {codes(row[0])[0]: set(codes(row[2])) for row in rows_of("metrics.md")}
    for name, labels in re.findall(r"^(keepfit_[a-z_]+?)(?:_bucket|_sum|_count)?(?:\{(.*)\})? ", text, re.MULTILINE):
        words = {word for pair in re.findall(r'(\w+)="([^"]*)"', labels) for word in pair[:1]} - {"le"}
        assert words <= listed[name], name
        if name in ("keepfit_dependency_up", "keepfit_backlog"):
            assert set(re.findall(r'"([^"]*)"', labels)) <= listed[name]


# Errors.


def errors() -> dict[str, int]:
    """Return the problem types that the gateway can answer, with their statuses."""

    def walk(cls: type[KeepfitError]) -> Iterator[type[KeepfitError]]:
        yield cls
        for below in cls.__subclasses__():
            yield from walk(below)

    found = {}
    for cls in walk(KeepfitError):
        if cls.__module__ == KeepfitError.__module__:
            error = cls("")
            found[type_of(problem_of(error))] = status_of(error)
    return found


def type_of(response: web.Response) -> str:
    """Return the problem type of an answer, without its prefix."""
    assert isinstance(response.body, bytes)
    return str(json.loads(response.body)["type"]).removeprefix("urn:keepfit:problem:")


def http_errors() -> dict[str, int]:
    """Return the problem types of aiohttp's errors that the gateway raises or answers, with their statuses."""
    raised = {node.func.attr for node in calls("web") if isinstance(node.func, ast.Attribute)}
    found = {}
    for name in raised | {"HTTPMethodNotAllowed"}:
        cls = getattr(web, name)
        if isinstance(cls, type) and issubclass(cls, web.HTTPException):
            status = HTTPStatus(cls.status_code)
            found[status.phrase.lower().replace(" ", "-")] = status.value
    # What never reached a handler, and what no handler foresaw.
    unseen = (HTTPStatus.BAD_REQUEST, HTTPStatus.EXPECTATION_FAILED, HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
    for status in unseen:
        found[status.phrase.lower().replace(" ", "-")] = status.value
    return found | {"internal-server-error": 500, "internal": 500}


def test_the_page_lists_every_error() -> None:
    """Each problem type has a row with its status, and the page lists no others."""
    rows = rows_of("errors.md")
    listed = {codes(row[0])[0]: int(row[1]) for row in rows}
    assert len(listed) == len(rows)
    assert listed == errors() | http_errors()
    assert callable(problem_of_http)
