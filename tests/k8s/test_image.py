"""The Dockerfile, compared with the manifests, the packages and the pins that it names."""

import re
import tomllib

from keepfit.settings import Settings
from tests.k8s.builds import BASE, ROOT, keepfit_containers, pods
from tests.k8s.image import final_stage, instructions


def test_image_tag_is_the_version() -> None:
    """The manifests and k8s/README.md name the image of this version."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert {only["image"] for only in keepfit_containers(BASE).values()} == {f"keepfit:{version}"}
    assert set(re.findall(r"keepfit:(\d[\w.]*)", (ROOT / "k8s/README.md").read_text())) == {version}


def test_image_runs_as_the_user_of_the_manifests() -> None:
    """The user of the image is the numeric, non-root user of the manifests."""
    users = {pod["securityContext"]["runAsUser"] for _, pod in pods(BASE)}
    assert {f"{user}:{user}" for user in users} == {final_stage()["USER"]} == {"10001:10001"}


def test_the_entry_point_of_the_image_is_keepfit() -> None:
    """The image starts `keepfit` without a default subcommand and exposes the port of the gateway."""
    stage = final_stage()
    assert stage["ENTRYPOINT"] == '["keepfit"]'
    assert "CMD" not in stage
    assert stage["EXPOSE"] == str(Settings.model_fields["port"].default)
    assert "PYTHONUNBUFFERED=1" in stage["ENV"].split()


def test_image_sources_exist() -> None:
    """The Dockerfile copies existing files that .dockerignore allows, among them every package of the wheel."""
    copied = [words.split()[:-1] for name, words in instructions() if name == "COPY" and "--from" not in words]
    sources = {source.rstrip("/") for words in copied for source in words}
    assert not [source for source in sources if not (ROOT / source).exists()]
    ignore = (ROOT / ".dockerignore").read_text().splitlines()
    assert {line[1:] for line in ignore if line.startswith("!")} == sources
    included = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]["find"]["include"]
    assert {pattern.rstrip("*") for pattern in included} <= sources


def test_the_image_takes_extras_and_a_digest() -> None:
    """Both stages are based on the image of the argument, and only the extras' pinned versions are installed."""
    bases = [words.split()[0] for name, words in instructions() if name == "FROM"]
    assert bases == ["${PYTHON}", "${PYTHON}"]
    assert instructions()[0] == ("ARG", "PYTHON=python:3.11-slim")
    (line,) = (words for name, words in instructions() if name == "RUN" and "EXTRAS" in words)
    assert '-c requirements/extras.txt ".${EXTRAS:+[$EXTRAS]}"' in line
    pins = {
        name: set((ROOT / f"requirements/{name}.txt").read_text().splitlines())
        for name in ("runtime", "extras", "test")
    }
    assert pins["runtime"] <= pins["extras"] <= pins["test"]
    assert {name.partition("==")[0] for name in pins["extras"]} >= {"river", "pandas", "pyarrow", "dateparser"}
