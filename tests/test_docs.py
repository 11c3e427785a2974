"""The documentation names nothing that does not exist, and every page can be found from the index."""

import ast
import importlib
import re
import shlex
import subprocess
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import typer.main

from keepfit.cli.main import app
from keepfit.settings import Settings

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
INDEX = DOCS / "index.md"
PAGES = [
    *sorted(DOCS.rglob("*.md")),
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    ROOT / "k8s/README.md",
    ROOT / "clients/node/README.md",
    *sorted((ROOT / "examples").glob("*/README.md")),
]
# The changelog tells of names that are gone.
CURRENT = [page for page in PAGES if page.name != "CHANGELOG.md"]
# Read by the command line and by tests, and no settings of a service.
OTHER_VARIABLES = {"KEEPFIT_FAULT_POINT"}
# Files that are written at run time, or that a reader makes.
MADE = ("benchmarks/.venvs/",)
LOOPBACK = re.compile(r"127\.0\.0\.\d+|localhost|::1")
HOST = re.compile(r"([a-z0-9]([a-z0-9-]*[a-z0-9])?\.)+[a-z]{2,}")
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


def name_of(path: Path) -> str:
    """Return a page's path as tests are named after it."""
    return str(path.relative_to(ROOT))


def prose(page: Path) -> str:
    """Return the text of a page without its blocks of code."""
    return re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


@cache
def code(page: Path) -> list[str]:
    """Return what a page marks as code: spans, and the lines of blocks."""
    text = page.read_text()
    blocks = re.findall(r"^```[^\n]*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return [*re.findall(r"`([^`\n]+)`", prose(page)), *(line for block in blocks for line in block.splitlines())]


def anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub makes from the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    plain = (re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading) for heading in headings)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in plain}


def links(page: Path) -> list[tuple[Path, str]]:
    """Return the files that a page links to, each with the anchor or an empty string."""
    found = (link.partition("#") for link in LINK.findall(prose(page)) if "://" not in link)
    return [((page.parent / path).resolve() if path else page, anchor) for path, _, anchor in found]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_to_files_and_headings(page: Path) -> None:
    """Every relative link names a file that exists, and every anchor a heading of that file."""
    missing = [str(path) for path, _ in links(page) if not path.exists()]
    assert missing == []
    wrong = [(str(path), anchor) for path, anchor in links(page) if anchor and anchor not in anchors(path)]
    assert wrong == []


def address_fault(address: str) -> str | None:
    """Return what is wrong with the address of another host; None if nothing is.

    >>> address_fault("https://example.org/a"), address_fault("http://example.org")
    (None, 'not https')
    """
    parts = urlsplit(address)
    host = parts.hostname or ""
    if LOOPBACK.fullmatch(host) or host.endswith((".example", ".local", ".svc", ".internal")):
        return None
    if parts.scheme != "https":
        return "not https"
    if not HOST.fullmatch(host) or parts.username is not None:
        return "no host"
    return "characters that belong to the sentence" if address.endswith((".", ",", ")", ";", "'")) else None


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_to_other_hosts_are_well_formed(page: Path) -> None:
    """Each has https and a host, and no character of the sentence around it; `make linkcheck` asks the hosts."""
    addresses = re.findall(r"\]\(([a-z+]+://[^)\s]+)\)|<([a-z+]+://[^>\s]+)>", prose(page))
    found = {one or other for one, other in addresses}
    assert {address: fault for address in found if (fault := address_fault(address))} == {}


def test_every_page_is_two_links_from_the_index() -> None:
    """A reader reaches every page from docs/index.md in at most two steps."""
    first = {path for path, _ in links(INDEX) if path.suffix == ".md"}
    second = {path for page in first for path, _ in links(page)}
    assert [name_of(page) for page in PAGES if page not in first | second | {INDEX}] == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_a_page_says_whom_it_is_for(page: Path) -> None:
    """The first paragraph after the title says whom the page is for."""
    paragraphs = [block.strip() for block in prose(page).split("\n\n") if block.strip()]
    assert re.search(r"\bfor\b", paragraphs[1], re.IGNORECASE), paragraphs[1]
    if page.is_relative_to(DOCS):
        assert re.match(r"For |This page is for ", paragraphs[1]), paragraphs[1]


@cache
def files() -> frozenset[str]:
    """Return the files of the repository."""
    found = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    return frozenset(found.stdout.split())


@pytest.mark.parametrize("page", CURRENT, ids=name_of)
def test_files_that_a_page_names_exist(page: Path) -> None:
    """Every path and file name that a page marks as code is in the repository."""
    known, names = files(), {Path(path).name for path in files()}
    folders = {str(parent) + "/" for path in known for parent in Path(path).parents}
    missing = []
    for text in code(page):
        for path in re.findall(r"(?<![\w./{<*-])((?:[\w.-]+/)*[\w-]+\.(?:py|lua|md|js|yaml|toml|txt|svg|ini))\b", text):
            local = (page.parent / path).resolve()
            is_known = path in known or local.is_file() or ("/" not in path and path in names)
            if not is_known and not path.startswith(MADE):
                missing.append(path)
        named = re.findall(r"^((?:keepfit|gateway|workers|snapshotter|tests|benchmarks|docs|k8s)/[\w./-]*/)$", text)
        missing += [folder for folder in named if folder not in folders and not folder.startswith(MADE)]
    assert missing == []


def resolve(name: str) -> Any:
    """Return what a dotted name of this project names.

    Raises
    ------
    AttributeError, ModuleNotFoundError
        If there is nothing of that name.
    """
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        try:
            found: Any = importlib.import_module(".".join(parts[:end]))
        except ModuleNotFoundError:
            continue
        for part in parts[end:]:
            found = getattr(found, part)
        return found
    raise ModuleNotFoundError(name)


@pytest.mark.parametrize("page", CURRENT, ids=name_of)
def test_symbols_that_a_page_names_exist(page: Path) -> None:
    """Every dotted name of keepfit, of its services, tests and benchmarks is a module or a part of one."""
    pattern = r"(?<![\w./-])((?:keepfit|keepfit_gateway|keepfit_workers|keepfit_snapshotter)(?:\.[A-Za-z_]\w*)+)"
    wrong, names = [], {Path(path).name for path in files()}
    for text in code(page):
        for name in re.findall(pattern, text):
            if name in names:
                continue
            try:
                resolve(name)
            except (AttributeError, ModuleNotFoundError):
                wrong.append(name)
        for module in re.findall(r"python -m ((?:tests|benchmarks)[\w.]*)", text):
            path = ROOT / module.replace(".", "/")
            if not (path.with_suffix(".py").exists() or (path / "__main__.py").exists()):
                wrong.append(module)
    assert wrong == []


@pytest.mark.parametrize("page", CURRENT, ids=name_of)
def test_variables_that_a_page_names_exist(page: Path) -> None:
    """Every KEEPFIT_ variable is a setting, or one that an example reads."""
    known = {f"KEEPFIT_{name.upper()}" for name in Settings.model_fields} | OTHER_VARIABLES
    sources = [path for path in (ROOT / "examples").glob("*/*") if path.suffix in (".js", ".py")]
    known |= {name for path in sources for name in re.findall(r"KEEPFIT_[A-Z_]+", path.read_text())}
    named = set(re.findall(r"\bKEEPFIT_[A-Z_]*[A-Z]\b(?!_\*)", page.read_text()))
    assert {name for name in named - known if not any(other.startswith(f"{name}_") for other in known)} == set()


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_make_targets_that_a_page_names_exist(page: Path) -> None:
    """Every `make X` is a target of the Makefile."""
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {name for text in code(page) for name in re.findall(r"(?:^|\$ |=\w+ )make ([a-z-]+)", text)}
    assert named <= targets


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_that_a_page_names_exist(page: Path) -> None:
    """Every `keepfit X` is a command, and every option after it one of its options."""
    group: Any = typer.main.get_command(app)
    wrong = []
    for text in code(page):
        for line in re.findall(r"(?:^|\$ |bin/|-- )keepfit ((?:--data \S+ )?[a-z][^#|;&]*)", text):
            words, command = shlex.split(line.replace("'", '"').replace("…", "x")), group
            while words and hasattr(command, "commands"):
                if words[0] == "--data":
                    words = words[2:]
                    continue
                if words[0].startswith("--"):
                    # A group may do something itself, as `keepfit history` does.
                    break
                command = command.commands.get(words.pop(0))
            options = {option for parameter in getattr(command, "params", ()) for option in parameter.opts}
            unknown = [w for w in words if w.startswith("--") and w.partition("=")[0] not in options | {"--help"}]
            if command is None or unknown:
                wrong.append(line)
    assert wrong == []


@pytest.mark.parametrize("page", CURRENT, ids=name_of)
def test_metrics_and_events_that_a_page_names_exist(page: Path) -> None:
    """Every metric named in prose is on the page of metrics."""
    listed = set(re.findall(r"^\| `(keepfit_\w+)`", (DOCS / "reference/metrics.md").read_text(), re.MULTILINE))
    packages = {"keepfit_gateway", "keepfit_workers", "keepfit_snapshotter"}
    named = {name for text in code(page) for name in re.findall(r"(?<![\w/.])(keepfit_[a-z_]+)\b", text)}
    # The series of a histogram that expressions read.
    named = {name.removesuffix("_bucket") for name in named}
    assert named - packages - {"keepfit_part_up"} <= listed


def test_the_checks_read_code() -> None:
    """The checks above see what they are for: this file's own functions have tests of names among them."""
    assert {"test_links_lead_to_files_and_headings"} <= {
        node.name for node in ast.walk(ast.parse(Path(__file__).read_text())) if isinstance(node, ast.FunctionDef)
    }
    with pytest.raises(ModuleNotFoundError):
        resolve("keepfits.nothing")
    with pytest.raises(AttributeError):
        resolve("keepfit.errors.NoSuchError")
    assert resolve("keepfit.errors.InvalidError").__name__ == "InvalidError"
