"""Check what a release needs: `make release-check`.

Owns the checks of the files that users get, which it writes to `dist/`: source distribution, wheel, and the list of
components (CycloneDX). Publishes nothing. Ends with the first check that fails.
"""

import json
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import zipfile
from pathlib import Path
from typing import Any

from tests.wheels import BIN, ROOT, build

DIST = ROOT / "dist"
TWINE = ("twine==7.0.0", "twine", "check", "--strict")
# Warnings of the tool concern dependencies between components, which a list of pins has not.
SBOM = (
    "cyclonedx-bom==7.5.0",
    "cyclonedx-py",
    "requirements",
    "--pyproject",
    "pyproject.toml",
    "--output-reproducible",
)
# Where the version of keepfit stands, each with a pattern that finds it.
VERSIONS = {
    "pyproject.toml": r'^version = "([^"]+)"',
    "CHANGELOG.md": r"^## \[([^\]]+)\]",
    "clients/node/package.json": r'^  "version": "([^"]+)"',
    "clients/node/src/version.ts": r'VERSION = "([^"]+)"',
    "docs/reference/http-api.md": r'"name":"keepfit","version":"([^"]+)"',
    "gateway/keepfit_gateway/openapi/examples.py": r'"name": "keepfit", "version": "([^"]+)"',
    "k8s/README.md": r"(?:keepfit:|newTag: )(\d[\w.]*)",
    "k8s/base/kustomization.yaml": r"newTag: (\S+)",
    "k8s/overlays/production/kustomization.yaml": r"newTag: (\S+)",
    "k8s/components/snapshotter-deployment/snapshotter.yaml": r"keepfit:(\S+)",
    "docs/guides/deploy.md": r"keepfit:(\d[\w.]*)",
    "compose.yaml": r"image: keepfit:(\S+)",
}
PACKAGES = ("keepfit", "keepfit_gateway", "keepfit_workers", "keepfit_snapshotter")


def versions() -> dict[str, set[str]]:
    """Return the versions of keepfit that each file names."""
    return {
        name: set(re.findall(pattern, text if name != "CHANGELOG.md" else text[: text.index("\n### ")], re.MULTILINE))
        for name, pattern in VERSIONS.items()
        for text in [(ROOT / name).read_text()]
    }


def project() -> dict[str, Any]:
    """Return what pyproject.toml says about the distribution."""
    found: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return found


def files_of_wheel(wheel: Path) -> set[str]:
    """Return the files of the packages in a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if ".dist-info/" not in name}


def files_of_source(source: Path) -> tuple[set[str], set[str]]:
    """Return the files of the packages in a source distribution, as a wheel names them, and its other files."""
    with tarfile.open(source) as archive:
        names = {member.name.partition("/")[2] for member in archive.getmembers() if member.isfile()}
    folder = re.compile(rf"(?:(?:gateway|workers|snapshotter)/)?((?:{'|'.join(PACKAGES)})/.+)")
    packaged = {found[1] for name in names if (found := folder.fullmatch(name))}
    return packaged, {name for name in names if not folder.fullmatch(name) and ".egg-info/" not in name}


def differences(source: Path, wheel: Path) -> list[str]:
    """Return what is wrong with the files: none of a package is missing in one of both, and no stranger is inside."""
    (of_wheel, (of_source, others)) = files_of_wheel(wheel), files_of_source(source)
    expected = {"CHANGELOG.md", "LICENSE", "MANIFEST.in", "PKG-INFO", "README.md", "pyproject.toml", "setup.cfg"}
    return [
        *(f"{name} is in the source distribution or the wheel only" for name in sorted(of_source ^ of_wheel)),
        *(f"{name} is unexpected in the source distribution, or missing" for name in sorted(others ^ expected)),
    ]


def main() -> None:
    """Run all checks, and print what is left for the person who publishes."""
    said = versions()
    version = project()["version"]
    wrong = {name: found for name, found in said.items() if found != {version}}
    if wrong:
        raise SystemExit(f"The version is {version}, but: {wrong}.")
    with tempfile.TemporaryDirectory() as folder:
        made = build(Path(folder))
        shutil.rmtree(DIST, ignore_errors=True)
        DIST.mkdir()
        source, wheel = (Path(shutil.copy(next(p for p in made if p.suffix == end), DIST)) for end in (".gz", ".whl"))
    if problems := differences(source, wheel):
        raise SystemExit("\n".join(problems))
    _run(BIN / "check-wheel-contents", "--config", "pyproject.toml", wheel)
    # It fails as well if a package index could not show the README.
    _tool(*TWINE, source, wheel)
    sbom = DIST / f"keepfit-{version}.cdx.json"
    _tool(*SBOM, "--of", "JSON", "-o", sbom, "requirements/runtime.txt")
    components = json.loads(sbom.read_text())["components"]
    pinned = re.findall(r"^[\w.-]+==", (ROOT / "requirements/runtime.txt").read_text(), re.MULTILINE)
    if len(components) != len(pinned):
        raise SystemExit(f"{sbom.name} has {len(components)} components; requirements/runtime.txt has {len(pinned)}.")
    sys.stdout.write(
        f"keepfit {version} can be released: {', '.join(path.name for path in (source, wheel, sbom))} in dist/.\n"
    )
    if "unreleased" in (ROOT / "CHANGELOG.md").read_text().partition("\n### ")[0]:
        sys.stdout.write(f"Before that: replace `unreleased` by the date in CHANGELOG.md, below [{version}].\n")
    if "urls" not in project():
        sys.stdout.write(
            "Before that: name the public address of the repository in [project.urls] of pyproject.toml.\n"
        )


def _tool(package: str, *words: str | Path) -> None:
    """Run a command of a package that is not installed for the tests."""
    _run(BIN / "uv", "tool", "run", "--quiet", "--from", package, *words)


def _run(*words: str | Path) -> None:
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, words))}:\n{done.stdout}{done.stderr}")


if __name__ == "__main__":
    main()
