"""The Dockerfile, compared with the manifests, the packages and the pins that it names."""

import re
import tomllib

from keepfit.settings import Settings
from tests.k8s.builds import BASE, ROOT, keepfit_containers, pods


def test_image_tag_is_the_version() -> None:
    """The manifests and k8s/README.md name the image of this version."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert {only["image"] for only in keepfit_containers(BASE).values()} == {f"keepfit:{version}"}
    assert set(re.findall(r"keepfit:(\d[\w.]*)", (ROOT / "k8s/README.md").read_text())) == {version}


def instructions() -> list[tuple[str, str]]:
    """Return the instructions of the Dockerfile in order, each with its arguments."""
    text = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(line.split(None, 1)[0], line.split(None, 1)[1]) for line in lines]


def final_stage() -> dict[str, str]:
    """Return the last instruction of each kind in the last stage of the Dockerfile."""
    stage: dict[str, str] = {}
    for name, value in instructions():
        stage = {name: value} if name == "FROM" else stage | {name: value}
    return stage


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
