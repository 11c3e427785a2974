"""Environments of the benchmarks: pinned, without hosts, one per peer; and the doctests of the benchmarks."""

import doctest
import importlib
import re
from pathlib import Path

import pytest

from benchmarks.systems import SYSTEMS

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "benchmarks" / "requirements").glob("*.txt"))
PIN = re.compile(r"[a-z0-9][a-z0-9._-]*(\[[a-z0-9,_-]+\])?==[0-9][^ ;]*( ; .+)?")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_requirements_are_pinned_and_name_no_host(path: Path) -> None:
    """Each line is one package in one version, without ranges, options, addresses or files."""
    lines = path.read_text().splitlines()
    assert lines
    assert [line for line in lines if not PIN.fullmatch(line)] == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_requirements_pin_every_direct_dependency(path: Path) -> None:
    """Every package of the .in file is pinned in the .txt file."""
    pinned = {line.partition("==")[0].partition("[")[0] for line in path.read_text().splitlines()}
    assert set(path.with_suffix(".in").read_text().split()) <= pinned


def test_every_peer_has_requirements_and_is_installed_by_make() -> None:
    """The systems, the requirement files and the Makefile name the same peers."""
    peers = {system.name for system in SYSTEMS} - {"keepfit"}
    assert {path.stem for path in FILES} == peers | {"harness"}
    peers_of_make = re.search(r"^PEERS := (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert peers_of_make is not None
    assert set(peers_of_make[1].split()) == peers


def test_versions_of_the_measured_packages_are_found() -> None:
    """The versions of keepfit's packages are found in the environment that runs it."""
    versions = next(system for system in SYSTEMS if system.name == "keepfit").versions()
    assert re.search(r"keepfit \d.*aiohttp \d.*scikit-learn \d", versions)


@pytest.mark.parametrize("name", ["load", "model", "pacer", "profile", "report"])
def test_doctests_of_the_benchmarks_pass(name: str) -> None:
    """Every doctest of the module passes."""
    result = doctest.testmod(importlib.import_module(f"benchmarks.{name}"))
    assert result.attempted > 0
    assert result.failed == 0
