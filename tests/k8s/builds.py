"""What `kubectl apply -k` sends: of the folders in k8s/, and of overlays that the tests compose of them.

Owns how the tests render and look up documents. Never changes a document, with one exception: names of generated
ConfigMaps and Secrets lose the hash of their content (:func:`raw` keeps it).
"""

import base64
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

Document = dict[str, Any]

ROOT = Path(__file__).parents[2]
K8S = ROOT / "k8s"
KIND = {"apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization"}


@dataclass(frozen=True, slots=True)
class Build:
    """A folder of k8s/, with components that are added to it, and another image of keepfit."""

    name: str
    folder: str
    components: tuple[str, ...] = ()
    image: str = ""

    def __str__(self) -> str:
        return self.name


COMPONENTS = tuple(sorted(folder.name for folder in (K8S / "components").iterdir()))
BASE = Build("base", "base")
SERVED = Build("served", "base", ("servers",))
DEV = Build("dev", "overlays/dev")
PRODUCTION = Build("production", "overlays/production")
FULL = Build("full", "overlays/production", tuple(name for name in COMPONENTS if name != "servers"))
EVERY = (BASE, SERVED, DEV, PRODUCTION, FULL)


@cache
def raw(build: Build) -> str:
    """Return the documents as text, as `kubectl kustomize` prints them.

    Components and images are added to the kustomization of an overlay, whose namespace and images are theirs too; the
    base gets an overlay.
    """
    if not build.components and not build.image:
        return _kustomize(K8S / build.folder)
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "k8s"
        shutil.copytree(K8S, copy)
        overlay = copy / (build.folder if "/" in build.folder else "overlays/composed")
        overlay.mkdir(exist_ok=True)
        file = overlay / "kustomization.yaml"
        if not file.exists():
            file.write_text(yaml.safe_dump({**KIND, "resources": [f"../../{build.folder}"]}))
        document = yaml.safe_load(file.read_text())
        added = [f"../../components/{name}" for name in build.components]
        document["components"] = [*document.get("components", []), *added]
        if build.image:
            name, _, digest = build.image.partition("@")
            document["images"] = [{"name": "keepfit", "newName": name, "digest": digest}]
        file.write_text(yaml.safe_dump(document))
        return _kustomize(overlay)


def _kustomize(folder: Path) -> str:
    kubectl = Path(sys.executable).with_name("kubectl")
    done = subprocess.run([kubectl, "kustomize", folder], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@cache
def documents(build: Build) -> tuple[Document, ...]:
    """Return the documents; generated names are those of the sources."""
    return tuple(yaml.safe_load_all(re.sub(r"(?<=: keepfit)-[a-z0-9]{10}$", "", raw(build), flags=re.MULTILINE)))


def one(build: Build, kind: str, name: str) -> Document:
    """Return the one document of this kind and name."""
    (found,) = [doc for doc in documents(build) if (doc["kind"], doc["metadata"]["name"]) == (kind, name)]
    return found


def names(build: Build, kind: str) -> set[str]:
    """Return the names of the documents of this kind."""
    return {doc["metadata"]["name"] for doc in documents(build) if doc["kind"] == kind}


def pod_template(document: Document) -> Document:
    """Return the pod template of `document`, empty if it has none."""
    spec = document.get("spec", {})
    template: Document = spec.get("jobTemplate", {}).get("spec", spec).get("template", {})
    return template


def templates(build: Build) -> dict[str, Document]:
    """Return the pod template of every workload by its name."""
    return {doc["metadata"]["name"]: pod_template(doc) for doc in documents(build) if pod_template(doc)}


def pods(build: Build) -> list[tuple[str, Document]]:
    """Return the name and pod spec of every workload."""
    return [(name, template["spec"]) for name, template in templates(build).items()]


def container(build: Build, kind: str, name: str) -> Document:
    """Return the one container of a workload."""
    only: Document
    (only,) = pod_template(one(build, kind, name))["spec"]["containers"]
    return only


def keepfit_containers(build: Build) -> dict[str, Document]:
    """Return the containers that run the image of keepfit, by the name of their workload."""
    return {
        name: only
        for name, pod in pods(build)
        for only in pod["containers"]
        if re.fullmatch(r"(.*/)?keepfit[:@].*", only["image"])
    }


def secret_values(build: Build, name: str = "keepfit") -> dict[str, str]:
    """Return the decoded values of a Secret."""
    secret = one(build, "Secret", name)
    decoded = {key: base64.b64decode(value).decode() for key, value in secret.get("data", {}).items()}
    return {**decoded, **secret.get("stringData", {})}
