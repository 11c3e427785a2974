"""The manifests of keepfit itself, compared with the settings, commands and routes that they name."""

import os
import re
from typing import get_args

import pytest
import typer
import yaml
from pydantic import SecretStr
from typer.core import TyperGroup

from keepfit.cli.main import app as cli
from keepfit.errors import SettingsError
from keepfit.security.api_keys import Keys
from keepfit.security.envelope import Keyring
from keepfit.settings import Settings, load
from keepfit_gateway.app import SHUTDOWN_S, build_app
from tests.k8s.builds import (
    BASE,
    DEV,
    FULL,
    PRODUCTION,
    SERVED,
    Build,
    container,
    documents,
    keepfit_containers,
    names,
    one,
    pod_template,
    pods,
    secret_values,
)

SECRET_FIELDS = {
    name
    for name, field in Settings.model_fields.items()
    if SecretStr in (field.annotation, *get_args(field.annotation))
}
# Settings of the S3 client, which is not part of keepfit.
FOREIGN_KEYS = {"AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL"}

each_build = pytest.mark.parametrize("build", [SERVED, DEV, PRODUCTION, FULL], ids=str)
each_with_secrets = pytest.mark.parametrize("build", [SERVED, DEV], ids=str)


@pytest.fixture(params=[SERVED, DEV], ids=str)
def settings(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Return the settings that a pod of this build reads."""
    for key in [key for key in os.environ if key.startswith("KEEPFIT_")]:
        monkeypatch.delenv(key)
    # The base has no working key by design.
    values = one(request.param, "ConfigMap", "keepfit")["data"] | secret_values(DEV)
    for key, value in values.items():
        monkeypatch.setenv(key, value)
    return load()


@each_build
def test_containers_run_the_command_of_their_service(build: Build) -> None:
    """Every container of keepfit runs the subcommand of its service."""
    commands = {name: only["command"] + only["args"] for name, only in keepfit_containers(build).items()}
    assert commands == {
        "gateway": ["keepfit", "gateway"],
        "workers": ["keepfit", "worker"],
        "snapshotter": ["keepfit", "snapshot", *(["--every", "60s"] if build == FULL else [])],
        "restore": ["keepfit", "restore"],
    }
    group = typer.main.get_command(cli)
    assert isinstance(group, TyperGroup)
    assert {words[1] for words in commands.values()} <= group.commands.keys()


@each_build
def test_containers_read_the_config_map(build: Build) -> None:
    """Every container of keepfit reads the whole ConfigMap, and single values of the Secret."""
    for only in keepfit_containers(build).values():
        assert only["envFrom"] == [{"configMapRef": {"name": "keepfit"}}]


@each_build
def test_services_reach_their_pods(build: Build) -> None:
    """Each Service selects the pods of its own workload and no others, on a port that they have."""
    workloads = [doc for doc in documents(build) if pod_template(doc)]
    for service in (doc for doc in documents(build) if doc["kind"] == "Service"):
        selector = service["spec"]["selector"].items()
        chosen = [doc for doc in workloads if selector <= pod_template(doc)["metadata"]["labels"].items()]
        assert [doc["metadata"]["name"] for doc in chosen] == [service["metadata"]["name"]]
        (only,) = pod_template(chosen[0])["spec"]["containers"]
        (port,) = service["spec"]["ports"]
        assert port["targetPort"] in {known["name"] for known in only["ports"]}


@each_build
def test_selectors_match_their_pods(build: Build) -> None:
    """The selector of each workload matches its own pods."""
    for document in documents(build):
        if document["kind"] in {"Deployment", "StatefulSet"}:
            labels = document["spec"]["selector"]["matchLabels"].items()
            assert labels <= document["spec"]["template"]["metadata"]["labels"].items()


def test_the_gateway_listens_on_the_port_of_its_service(settings: Settings) -> None:
    """The gateway listens on all addresses, on the port that its container names and its Service targets."""
    (port,) = container(SERVED, "Deployment", "gateway")["ports"]
    assert (port["name"], port["containerPort"]) == ("http", settings.port)
    assert settings.host == "0.0.0.0"
    (service_port,) = one(SERVED, "Service", "gateway")["spec"]["ports"]
    assert (service_port["port"], service_port["targetPort"]) == (80, "http")


def test_probes_are_routes(settings: Settings) -> None:
    """The probes of the gateway request existing routes."""
    gateway = container(SERVED, "Deployment", "gateway")
    paths = {name: gateway[name]["httpGet"]["path"] for name in ("startupProbe", "livenessProbe", "readinessProbe")}
    assert paths == {"startupProbe": "/livez", "livenessProbe": "/livez", "readinessProbe": "/readyz"}
    assert set(paths.values()) <= {resource.canonical for resource in build_app(settings).router.resources()}
    assert {gateway[name]["httpGet"]["port"] for name in paths} == {"http"}


@each_build
def test_config_map_holds_settings(build: Build) -> None:
    """Every key of the ConfigMap is a setting that is not secret."""
    known = {f"KEEPFIT_{name.upper()}" for name in Settings.model_fields.keys() - SECRET_FIELDS}
    assert set(one(build, "ConfigMap", "keepfit")["data"]) <= known | FOREIGN_KEYS


@each_with_secrets
def test_secrets_are_in_the_secret(build: Build) -> None:
    """Secret values come from the Secret and occur in no other document."""
    secret = secret_values(build)
    known = {f"KEEPFIT_{name.upper()}" for name in Settings.model_fields}
    assert {key for key in secret if key.startswith("KEEPFIT_")} <= known
    assert secret.keys() >= {"KEEPFIT_STORE_URL", "KEEPFIT_QUEUE_URL", "KEEPFIT_MONGO_URL", "KEEPFIT_SIGNING_KEYS"}
    rest = yaml.safe_dump_all([doc for doc in documents(build) if doc["kind"] != "Secret"])
    assert not [key for key, value in secret.items() if value and value in rest]
    for _, pod in pods(build):
        for variable in (variable for only in pod["containers"] for variable in only.get("env", [])):
            reference = variable.get("valueFrom", {}).get("secretKeyRef")
            assert reference or not re.search("PASSWORD|SECRET|SIGNING|_URL$", variable["name"])
            known_key = reference is None or reference["key"] in secret or reference.get("optional")
            assert reference is None or (reference["name"], known_key) == ("keepfit", True)


@each_build
def test_services_get_only_the_secrets_that_they_need(build: Build) -> None:
    """Gateways cannot sign bundles or open storage, snapshotters and restores have no queue, a server its password."""
    addresses = {"KEEPFIT_STORE_URL", "KEEPFIT_QUEUE_URL", "KEEPFIT_MONGO_URL"}
    keys = {"KEEPFIT_SIGNING_KEYS", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}
    received = {}
    for name, pod in pods(build):
        (only,) = pod["containers"]
        references = (variable.get("valueFrom", {}).get("secretKeyRef") for variable in only.get("env", []))
        received[name] = {reference["key"] for reference in references if reference}
    optional = {"KEEPFIT_QUEUE_URLS", "KEEPFIT_UPLOAD_KEYS"}
    assert received["gateway"] == addresses | optional
    assert received["workers"] == addresses | keys | optional
    assert received["snapshotter"] == received["restore"] == addresses - {"KEEPFIT_QUEUE_URL"} | keys
    servers = {name: secrets for name, secrets in received.items() if name in ("redis", "queue", "mongodb")}
    passwords = {"redis": {"REDIS_PASSWORD"}, "queue": {"QUEUE_PASSWORD"}, "mongodb": {"MONGO_PASSWORD"}}
    assert servers == (passwords if build in (SERVED, DEV) else {})


@each_build
def test_only_the_gateway_has_the_api_keys(build: Build) -> None:
    """The API keys are a file that only the gateway mounts, at the path of its setting, and in no variable."""
    gateway = container(build, "Deployment", "gateway")
    (path,) = (variable["value"] for variable in gateway["env"] if variable["name"] == "KEEPFIT_API_KEYS_FILE")
    users = {name for name, pod in pods(build) if "keepfit-api-keys" in str(pod)}
    assert users == {"gateway"}
    (volume,) = (volume for volume in dict(pods(build))["gateway"]["volumes"] if "secret" in volume)
    # Readable by owner and group only: the group of the pod is its own.
    assert volume["secret"] == {"secretName": "keepfit-api-keys", "defaultMode": 0o440}
    (mount,) = (mount for mount in gateway["volumeMounts"] if mount["name"] == volume["name"])
    assert mount["readOnly"] is True
    assert f"{mount['mountPath']}/{next(iter(secret_values(BASE, 'keepfit-api-keys')))}" == path


def test_api_keys_of_the_builds() -> None:
    """The placeholder of the base is not a key, so its gateway does not start; the key of dev has all scopes."""
    with pytest.raises(SettingsError, match="key 1 is not"):
        Keys.from_text(secret_values(SERVED, "keepfit-api-keys")["api-keys"])
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
    secret = secret_values(SERVED)
    with pytest.raises(SettingsError, match="KEEPFIT_SIGNING_KEYS"):
        Keyring.from_text(secret["KEEPFIT_SIGNING_KEYS"])
    assert secret["REDIS_PASSWORD"] == secret["QUEUE_PASSWORD"] == secret["MONGO_PASSWORD"] == ""


def test_dev_replaces_the_whole_secret() -> None:
    """The dev overlay has no placeholder of the base left, which would override its own value."""
    assert "stringData" not in one(DEV, "Secret", "keepfit")
    assert "REPLACE-ME" not in str(secret_values(DEV))


@each_with_secrets
def test_snapshotter_runs_every_minute(build: Build) -> None:
    """The snapshotter runs one pass per minute, one at a time, with a deadline."""
    spec = one(build, "CronJob", "snapshotter")["spec"]
    assert (spec["schedule"], spec["concurrencyPolicy"]) == ("* * * * *", "Forbid")
    assert spec["jobTemplate"]["spec"]["activeDeadlineSeconds"] > 0
    assert max(spec["successfulJobsHistoryLimit"], spec["failedJobsHistoryLimit"]) <= 3


def test_the_snapshotter_as_a_deployment() -> None:
    """The component replaces the CronJob by one pod, which has the same environment, memory and rights."""
    assert names(FULL, "CronJob") == {"restore"}
    spec = one(FULL, "Deployment", "snapshotter")["spec"]
    assert spec["replicas"] == 1
    as_job, as_loop = (
        container(build, kind, "snapshotter") for build, kind in ((PRODUCTION, "CronJob"), (FULL, "Deployment"))
    )
    differ = {key for key in as_loop if as_loop[key] != as_job.get(key)}
    assert differ == {"args", "startupProbe", "livenessProbe"}
    deadline_s = one(PRODUCTION, "CronJob", "snapshotter")["spec"]["jobTemplate"]["spec"]["activeDeadlineSeconds"]
    assert spec["template"]["spec"]["terminationGracePeriodSeconds"] >= deadline_s


@each_build
def test_a_restore_is_started_by_hand_only(build: Build) -> None:
    """The CronJob `restore` is a template: it is suspended, and has the environment of a snapshotter."""
    spec = one(build, "CronJob", "restore")["spec"]
    assert spec["suspend"] is True
    assert container(build, "CronJob", "restore")["env"] == container(SERVED, "CronJob", "snapshotter")["env"]


@each_build
def test_workers_end_after_their_batch(build: Build, settings: Settings) -> None:
    """A worker has no port but that of its metrics, and time to hand its lease over when there are to be fewer."""
    workers = one(build, "Deployment", "workers")
    ports = [port["name"] for port in container(build, "Deployment", "workers").get("ports", ())]
    assert ports == (["metrics"] if "monitoring" in build.components else [])
    # A lease that is not handed over expires, and its locks after twice as long.
    needed_s = settings.lease_slice_s + 2 * settings.lease_ttl_s
    assert workers["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] >= 2 * needed_s
    replicas = {DEV: 1, FULL: None}.get(build, 2)
    assert workers["spec"].get("replicas") == replicas


@each_build
def test_a_gateway_ends_after_its_requests(build: Build, settings: Settings) -> None:
    """The grace period has the pause before SIGTERM, the longest prediction, and what the gateway waits for answers."""
    template = pod_template(one(build, "Deployment", "gateway"))["spec"]
    pause_s = template["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert template["terminationGracePeriodSeconds"] >= pause_s + max(settings.predict_timeout_s, SHUTDOWN_S) + 5
    strategy = one(build, "Deployment", "gateway")["spec"]["strategy"]["rollingUpdate"]
    assert strategy == {"maxSurge": 1, "maxUnavailable": 0}


def test_dev_snapshots_go_to_the_shared_volume() -> None:
    """In dev, gateway, workers and snapshotter mount the claim at the path of KEEPFIT_SNAPSHOT_URL."""
    path = one(DEV, "ConfigMap", "keepfit")["data"]["KEEPFIT_SNAPSHOT_URL"].removeprefix("file://")
    running = dict(pods(DEV))
    for name, only in keepfit_containers(DEV).items():
        assert {"name": "snapshots", "mountPath": path} in only["volumeMounts"]
        claim = {"name": "snapshots", "persistentVolumeClaim": {"claimName": "snapshots"}}
        assert claim in running[name]["volumes"]
    assert one(DEV, "PersistentVolumeClaim", "snapshots")
