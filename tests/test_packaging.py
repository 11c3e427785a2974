"""The wheel that users install, and the checks that run before a commit."""

import json
import re
import subprocess
import tomllib
import zipfile
from importlib.metadata import packages_distributions
from itertools import pairwise
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from keepfit.extras import SERVER_MODULES
from tests import release
from tests.wheels import BIN, ROOT, build


def names_in(wheel: Path) -> list[str]:
    """List the files in a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        return archive.namelist()


def test_the_wheel_installs_no_generic_name(wheel: Path) -> None:
    """Every top-level name in site-packages begins with `keepfit`."""
    tops = {name.partition("/")[0] for name in names_in(wheel)}
    packages = {top for top in tops if not top.endswith(".dist-info")}
    assert packages == {"keepfit", "keepfit_gateway", "keepfit_workers", "keepfit_snapshotter"}


def test_the_wheel_holds_every_module_and_script(wheel: Path) -> None:
    """Each Python file, Lua script, file of a page and type marker of the four packages is in the wheel."""
    folders = ("keepfit", "gateway/keepfit_gateway", "workers/keepfit_workers", "snapshotter/keepfit_snapshotter")
    expected = {
        path.relative_to((ROOT / folder).parent).as_posix()
        for folder in folders
        for path in (ROOT / folder).rglob("*")
        if path.suffix in (".py", ".lua", ".html", ".js", ".css") or path.name == "py.typed"
    }
    assert expected
    assert {name for name in names_in(wheel) if ".dist-info/" not in name} == expected


def test_check_wheel_contents_finds_nothing(wheel: Path) -> None:
    """check-wheel-contents accepts the wheel: no stray file, no duplicate, no missing module."""
    command = [BIN / "check-wheel-contents", "--config", ROOT / "pyproject.toml", wheel]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert result.returncode == 0, result.stdout


def test_the_source_distribution_has_the_files_of_the_wheel(wheel: Path, tmp_path: Path) -> None:
    """A wheel that is built from it is the same, and it has no tests without the files that they read."""
    (source,) = build(tmp_path, "--sdist")
    assert release.differences(source, wheel) == []


def test_every_file_names_the_same_version() -> None:
    """The version in pyproject.toml is that of the changelog, the Node.js client, the examples and the manifests."""
    named = release.versions()
    assert len(named) == len(release.VERSIONS)
    assert {version for found in named.values() for version in found} == {release.project()["version"]}
    assert all(named.values())


def test_pre_commit_runs_what_make_lint_runs() -> None:
    """The pre-commit hooks are `make lint` and `make types`, the targets that `make test` depends on."""
    subprocess.run([BIN / "pre-commit", "validate-config"], cwd=ROOT, check=True, timeout=60)
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    makefile = (ROOT / "Makefile").read_text().splitlines()
    (target,) = (line for line in makefile if line.startswith("test:"))
    needed = target.removeprefix("test:").partition("##")[0].split()
    assert [hook["entry"] for hook in hooks] == [f"make {name}" for name in needed]


def extras() -> dict[str, list[str]]:
    """Return the requirements of each extra in pyproject.toml."""
    found: dict[str, list[str]] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    return found


def test_every_extra_that_is_named_exists() -> None:
    """Each extra that a page or a message names is in pyproject.toml, in a form that can be installed."""
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("*.md")]
    sources = [
        path for folder in ("keepfit", "gateway", "workers", "snapshotter") for path in (ROOT / folder).rglob("*.py")
    ]
    named = {
        name
        for path in pages
        for names in re.findall(r"'\.\[([a-z,]+)\]'", path.read_text())
        for name in names.split(",")
    }
    assert named >= {"river", "history", "frames"}
    for path in sources:
        for call in re.findall(r"extras\.install\(([^)]*)\)", path.read_text()):
            named |= set(re.findall(r"'([a-z]+)'", call))
    assert named <= extras().keys()
    # keepfit is installed from a copy of its repository.
    assert [path for path in (*pages, *sources) if re.search(r"keepfit\[[a-z]", path.read_text())] == []


def test_the_quickstart_lists_every_extra_for_users() -> None:
    """The table of the quickstart has each extra but those of the tests and of the documentation site."""
    page = (ROOT / "docs/getting-started/quickstart.md").read_text()
    assert set(re.findall(r"^\| `([a-z]+)` \|", page, re.MULTILINE)) == extras().keys() - {"docs", "test"}


def pins(name: str) -> dict[str, str]:
    """Return the version of each package in a file of requirements."""
    text = (ROOT / "requirements" / name).read_text()
    return {canonicalize_name(name): found for name, found in re.findall(r"^([\w.-]+)==([\w.]+)", text, re.MULTILINE)}


def test_the_pinned_versions_satisfy_the_base() -> None:
    """Each requirement of a client has a pinned version that it accepts."""
    project, pinned = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"], pins("base.txt")
    for requirement in map(Requirement, project["dependencies"]):
        assert requirement.specifier.contains(pinned[canonicalize_name(requirement.name)]), str(requirement)


@pytest.mark.parametrize("extra", extras())
def test_the_pinned_versions_satisfy_every_extra(extra: str) -> None:
    """Each requirement of an extra has a pinned version that it accepts, so that the extra can be installed."""
    pinned = pins("test.txt")
    for requirement in map(Requirement, extras()[extra]):
        if requirement.name == "keepfit":
            assert requirement.extras <= extras().keys()
            continue
        version = pinned[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version, prereleases=True), str(requirement)


def test_each_file_of_pins_has_those_of_the_files_before_it() -> None:
    """A client, a service, a whole deployment and its tests have the same versions of what they share."""
    for names in (("base.txt", "runtime.txt", "local.txt", "test.txt"), ("runtime.txt", "docs.txt", "test.txt")):
        for fewer, more in pairwise(map(pins, names)):
            assert fewer.items() < more.items()


def test_the_services_are_known_by_their_modules() -> None:
    """The services count as installed when each requirement of their extra is; none of these is in the base."""
    distributions = packages_distributions()
    known = {canonicalize_name(name) for module in SERVER_MODULES for name in distributions[module]}
    required = {canonicalize_name(one.name) for one in map(Requirement, extras()["server"]) if one.marker is None}
    assert known == required
    assert known.isdisjoint(pins("base.txt"))


def test_lock_files_of_npm_name_no_registry() -> None:
    """npm finds the pinned packages at the registry that is configured, and checks their digests."""
    listed = ["git", "ls-files", "*package-lock.json"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    assert len(names) >= 3
    for name in names:
        pinned = json.loads((ROOT / name).read_text())["packages"]
        assert all("resolved" not in entry for entry in pinned.values()), name
        assert all("integrity" in entry for package, entry in pinned.items() if package), name


def test_no_file_names_the_host_of_a_registry() -> None:
    """The settings of pip, uv and npm on a machine say where packages come from."""
    hosts = r"(pypi\.(org|io)|pythonhosted\.org|npmjs\.(org|com)|yarnpkg\.com|docker\.io|proxy\.golang\.org)"
    found = subprocess.run(["git", "grep", "-IlE", hosts], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (found.returncode, found.stdout, found.stderr) == (1, "", "")
