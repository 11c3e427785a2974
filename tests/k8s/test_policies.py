"""What holds for every object of every build: valid, restricted, limited, disruptable, and closed to the network."""

import copy
import itertools
import re
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from kubernetes_validate import utils as validator

from tests.k8s.builds import (
    BASE,
    COMPONENTS,
    DEV,
    EVERY,
    FULL,
    K8S,
    PRODUCTION,
    SERVED,
    Build,
    Document,
    container,
    documents,
    keepfit_containers,
    names,
    one,
    pods,
    raw,
    templates,
)
from tests.k8s.custom_resources import SCHEMAS, is_custom

NEWEST = int(kubernetes_validate.latest_version().split(".")[1])
# The oldest version that k8s/README.md promises, and the newest three that the validator knows.
KUBERNETES_VERSIONS = ("1.30", *(f"1.{minor}" for minor in range(NEWEST - 2, NEWEST + 1)))
OF_BASE = {
    ("ConfigMap", "keepfit"),
    ("Deployment", "gateway"),
    ("Service", "gateway"),
    ("PodDisruptionBudget", "gateway"),
    ("Deployment", "workers"),
    ("PodDisruptionBudget", "workers"),
    ("CronJob", "snapshotter"),
    ("CronJob", "restore"),
    ("NetworkPolicy", "keepfit-closed"),
    ("NetworkPolicy", "keepfit-dns"),
    ("NetworkPolicy", "keepfit-gateway"),
    ("NetworkPolicy", "keepfit-storage"),
}
SECRETS = {("Secret", "keepfit"), ("Secret", "keepfit-api-keys")}
OF_SERVERS = {
    ("StatefulSet", "redis"),
    ("Service", "redis"),
    ("NetworkPolicy", "redis"),
    ("Deployment", "queue"),
    ("Service", "queue"),
    ("NetworkPolicy", "queue"),
    ("StatefulSet", "mongodb"),
    ("Service", "mongodb"),
    ("NetworkPolicy", "mongodb"),
    ("NetworkPolicy", "keepfit-to-store-and-history"),
    ("NetworkPolicy", "keepfit-to-queue"),
}
OF_PRODUCTION = OF_BASE | {("NetworkPolicy", "keepfit-to-external-store-and-history")}
CONTENTS = {
    BASE: OF_BASE | SECRETS,
    SERVED: OF_BASE | SECRETS | OF_SERVERS,
    DEV: OF_BASE - {("NetworkPolicy", "keepfit-storage")}
    | SECRETS
    | OF_SERVERS
    | {("Namespace", "keepfit-dev"), ("PersistentVolumeClaim", "snapshots")},
    PRODUCTION: OF_PRODUCTION,
    FULL: OF_PRODUCTION - {("CronJob", "snapshotter")}
    | {
        ("Deployment", "snapshotter"),
        ("HorizontalPodAutoscaler", "gateway"),
        ("ScaledObject", "workers"),
        ("Ingress", "gateway"),
        ("ServiceMonitor", "keepfit"),
        ("PodMonitor", "keepfit-workers"),
        ("NetworkPolicy", "keepfit-workers-metrics"),
        ("PrometheusRule", "keepfit"),
        ("ConfigMap", "keepfit-dashboard"),
    },
}

each_build = pytest.mark.parametrize("build", EVERY, ids=str)


def test_every_folder_is_built() -> None:
    """The builds of these tests have every overlay and every component."""
    overlays = {f"overlays/{folder.name}" for folder in (K8S / "overlays").iterdir()}
    assert {"base", *overlays} == {build.folder for build in EVERY}
    assert set(COMPONENTS) == {name for build in EVERY for name in build.components}


@pytest.mark.parametrize("name", COMPONENTS)
def test_a_component_needs_no_other(name: str) -> None:
    """Each component can be added to the base alone."""
    build = Build(name, "base", (name,))
    assert names(build, "Deployment") >= {"gateway", "workers"}
    assert {only["image"] for only in keepfit_containers(build).values()} == {
        container(BASE, "Deployment", "gateway")["image"]
    }


@pytest.mark.parametrize("version", KUBERNETES_VERSIONS)
def test_every_document_is_valid(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every document of all folders and components follows its schema and has no unknown field."""
    # The validator reads a file of two megabytes for each document.
    monkeypatch.setattr(validator, "schema_contents", cache(validator.schema_contents))
    for document in (*documents(DEV), *documents(FULL)):
        if is_custom(document):
            jsonschema.validate(document, SCHEMAS[document["kind"]])
        else:
            kubernetes_validate.validate(document, version, strict=True)


def test_an_unknown_field_is_refused() -> None:
    """The validation is strict: a misspelt field of a pod is an error."""
    document = copy.deepcopy(one(DEV, "Deployment", "workers"))
    document["spec"]["template"]["spec"]["terminationGraceSeconds"] = 60
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(document, KUBERNETES_VERSIONS[-1], strict=True)


@pytest.mark.parametrize("kind", SCHEMAS)
def test_the_schemas_of_custom_resources_refuse(kind: str) -> None:
    """A misspelt field of a custom resource is refused, at the top and below."""
    name = {"ScaledObject": "workers", "PodMonitor": "keepfit-workers"}.get(kind, "keepfit")
    text = yaml.safe_dump(one(FULL, kind, name))
    for field in ("spec", "interval", "expr", "minReplicaCount", "threshold", "credentials"):
        if f"{field}:" in text:
            with pytest.raises(jsonschema.ValidationError):
                jsonschema.validate(yaml.safe_load(text.replace(f"{field}:", f"{field}x:")), SCHEMAS[kind])


@each_build
def test_a_build_has_exactly_the_services_of_the_design(build: Build) -> None:
    """A build has exactly the services of the design and what they need."""
    assert {(doc["kind"], doc["metadata"]["name"]) for doc in documents(build)} == CONTENTS[build]


@each_build
def test_everything_is_in_the_namespace_of_the_overlay(build: Build) -> None:
    """The base names no namespace; an overlay puts every document into its own."""
    expected = {DEV: "keepfit-dev", PRODUCTION: "keepfit", FULL: "keepfit"}.get(build)
    found = {doc["metadata"].get("namespace") for doc in documents(build) if doc["kind"] != "Namespace"}
    assert found == {expected}


# Names with a hash.


@each_build
def test_a_changed_setting_replaces_the_pods(build: Build) -> None:
    """The ConfigMap has a hash in its name, by which every pod refers to it; the Secret too, where a build has it."""
    (settings,) = set(re.findall(r"^  name: (keepfit-[a-z0-9]{10})$", _of_kind(build, "ConfigMap"), re.MULTILINE))
    assert set(re.findall(r"configMapRef:\n +name: (\S+)", raw(build))) == {settings}
    secrets = re.findall(r"^  name: (keepfit-[a-z0-9]{10})$", _of_kind(build, "Secret"), re.MULTILINE)
    # Production refers to the Secrets that its operator creates.
    expected = set(secrets) or {"keepfit"}
    assert set(re.findall(r"secretKeyRef:\n(?: +key: .*\n)? +name: (\S+)", raw(build))) == expected
    assert bool(secrets) is (build not in (PRODUCTION, FULL))


@each_build
def test_a_changed_api_key_replaces_no_pod(build: Build) -> None:
    """The Secret of the API keys has no hash: a gateway reads the file again."""
    assert re.findall(r"secretName: (keepfit-api-keys\S*)", raw(build)) == ["keepfit-api-keys"]


def _of_kind(build: Build, kind: str) -> str:
    return "\n".join(text for text in raw(build).split("\n---\n") if re.search(rf"^kind: {kind}$", text, re.MULTILINE))


# The restricted Pod Security Standard, and more.


@each_build
def test_pods_are_restricted(build: Build) -> None:
    """Every pod meets the restricted Pod Security Standard, has limits, no token and a read-only image."""
    for name, pod in pods(build):
        assert pod["automountServiceAccountToken"] is pod["enableServiceLinks"] is False, name
        assert not pod.keys() & {"hostNetwork", "hostPID", "hostIPC", "serviceAccountName"}, name
        assert pod["securityContext"]["runAsNonRoot"] is True, name
        assert pod["securityContext"]["runAsUser"] > 0, name
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
        kinds = {kind for volume in pod["volumes"] for kind in volume if kind != "name"}
        assert kinds <= {"emptyDir", "secret", "configMap", "persistentVolumeClaim"}, name
        assert "initContainers" not in pod, name
        for only in pod["containers"]:
            assert only["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }, name
            assert not [port for port in only.get("ports", []) if "hostPort" in port], name
            for bound in ("requests", "limits"):
                assert only["resources"][bound].keys() == {"cpu", "memory"}, name


@each_build
def test_no_image_changes_by_itself(build: Build) -> None:
    """Every image has a tag or a digest, and none is `latest`: a restarted pod runs the same image."""
    for name, pod in pods(build):
        for only in pod["containers"]:
            assert re.search(r"(:\d[\w.]*|@sha256:[0-9a-f]{64})$", only["image"]), name


def test_namespaces_enforce_the_standard() -> None:
    """The cluster refuses pods in the namespace of dev that do not meet the standard."""
    labels = one(DEV, "Namespace", "keepfit-dev")["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"


# Disruption.


@each_build
def test_pods_of_a_service_are_spread(build: Build) -> None:
    """Gateways and workers are spread over nodes and zones, and a drained node evicts one of them at a time."""
    for name in ("gateway", "workers"):
        template = templates(build)[name]
        labels = template["metadata"]["labels"].items()
        spread = template["spec"]["topologySpreadConstraints"]
        assert {one["topologyKey"] for one in spread} == {"kubernetes.io/hostname", "topology.kubernetes.io/zone"}
        assert all(rule["labelSelector"]["matchLabels"].items() <= labels for rule in spread)
        budget = one(build, "PodDisruptionBudget", name)["spec"]
        assert budget["maxUnavailable"] == 1
        assert chosen(build, budget["selector"]) == {name}


@each_build
def test_a_pod_that_hangs_is_replaced(build: Build) -> None:
    """Every pod that runs for long has a probe of liveness; one of keepfit is given time to start before that."""
    for name, pod in pods(build):
        for only in pod["containers"]:
            is_job = pod.get("restartPolicy") == "Never"
            assert ("livenessProbe" in only) is not is_job, name
            if name in keepfit_containers(build) and not is_job:
                start = only["startupProbe"]
                assert start["periodSeconds"] * start["failureThreshold"] >= 60, name


# Network policies.


def matches(selector: Document, labels: Mapping[str, str]) -> bool:
    """Return whether a label selector matches labels; an empty one matches all."""
    fits = bool(selector.get("matchLabels", {}).items() <= labels.items())
    for expression in selector.get("matchExpressions", []):
        assert expression["operator"] == "In"
        fits = fits and labels.get(expression["key"]) in expression["values"]
    return fits


def chosen(build: Build, selector: Document) -> set[str]:
    """Return the workloads whose pods a selector matches."""
    found = templates(build).items()
    return {name for name, template in found if matches(selector, template["metadata"]["labels"])}


def rules(build: Build, name: str, direction: str) -> list[dict[str, Any]]:
    """Return the rules of all policies that select the pods of a workload; `direction` is Ingress or Egress."""
    labels = templates(build)[name]["metadata"]["labels"]
    policies = [doc["spec"] for doc in documents(build) if doc["kind"] == "NetworkPolicy"]
    selecting = [p for p in policies if direction in p["policyTypes"] and matches(p["podSelector"], labels)]
    # Pods that no policy selects are open.
    assert selecting, name
    return [rule for policy in selecting for rule in policy.get(direction.lower(), [])]


def ports(build: Build, rule: Document, name: str = "") -> set[int]:
    """Return the numbers of the ports of a rule; names are those of the container of the workload `name`."""
    named = {}
    if name:
        (only,) = templates(build)[name]["spec"]["containers"]
        named = {port["name"]: port["containerPort"] for port in only.get("ports", [])}
    found = {named.get(port["port"], port["port"]) for port in rule["ports"]}
    return {port for port in found if isinstance(port, int)}


def reached(build: Build, rule: Document, side: str, other: str, target: str) -> set[int]:
    """Return the ports of the pods of `target` that a rule opens for the workload `other`; `side` is from or to."""
    labels = templates(build)[other]["metadata"]["labels"]
    is_open = side == "from" and side not in rule
    if is_open or any(matches(peer["podSelector"], labels) for peer in rule.get(side, [])):
        return ports(build, rule, target)
    return set()


def connections(build: Build) -> Iterator[tuple[str, str, int]]:
    """Yield who may connect to which pod at which port: both their policies must allow it."""
    for source, target in itertools.product(templates(build), repeat=2):
        out = [reached(build, rule, "to", target, target) for rule in rules(build, source, "Egress")]
        into = [reached(build, rule, "from", source, target) for rule in rules(build, target, "Ingress")]
        yield from ((source, target, port) for port in set().union(*out) & set().union(*into))


def outside(build: Build) -> dict[str, set[int]]:
    """Return the ports of addresses outside that the pods of each workload may connect to."""
    return {
        name: {port for rule in rules(build, name, "Egress") if "to" not in rule for port in ports(build, rule)}
        for name in templates(build)
    }


@each_build
def test_every_pod_is_closed(build: Build) -> None:
    """A policy without rules selects every pod, in both directions."""
    closed = one(build, "NetworkPolicy", "keepfit-closed")["spec"]
    assert closed.keys() == {"podSelector", "policyTypes"}
    assert closed["policyTypes"] == ["Ingress", "Egress"]
    assert chosen(build, closed["podSelector"]) == set(templates(build))


@pytest.mark.parametrize("build", [SERVED, DEV], ids=str)
def test_only_pods_that_need_a_server_reach_it(build: Build) -> None:
    """All of keepfit reach store and history, gateways and workers the queue, and servers nothing."""
    users = {"gateway", "workers", "snapshotter", "restore"}
    expected = {(user, server, port) for user in users for server, port in (("redis", 6379), ("mongodb", 27017))}
    assert set(connections(build)) == expected | {("gateway", "queue", 6379), ("workers", "queue", 6379)}


@each_build
def test_only_pods_that_need_an_address_outside_reach_it(build: Build) -> None:
    """Every pod reaches the DNS; where there is S3 what reads it; where the servers are outside what uses them."""
    s3 = set() if build == DEV else {443}
    servers = {6379, 6380, 26379, 27017} if build in (PRODUCTION, FULL) else set()
    readers = {"workers", "snapshotter", "restore"}
    for name, found in outside(build).items():
        own = (s3 if name in readers else set()) | (servers if name in {*readers, "gateway"} else set())
        assert found == {53} | own, name


@each_build
def test_only_gateways_are_open_to_clients(build: Build) -> None:
    """Only the port of the gateways takes connections from any address."""
    is_open = {
        (name, port)
        for name in templates(build)
        for rule in rules(build, name, "Ingress")
        if "from" not in rule
        for port in ports(build, rule, name)
    }
    assert is_open == {("gateway", container(build, "Deployment", "gateway")["ports"][0]["containerPort"])}


# Components.


def test_the_ingress_reaches_the_gateway() -> None:
    """The ingress sends each path to the port of the Service of the gateway, over TLS, with bodies of the limit."""
    ingress = one(FULL, "Ingress", "gateway")
    (rule,) = ingress["spec"]["rules"]
    (path,) = rule["http"]["paths"]
    (port,) = one(FULL, "Service", path["backend"]["service"]["name"])["spec"]["ports"]
    assert path["path"] == "/"
    assert path["backend"]["service"]["port"]["name"] == port["name"]
    assert ingress["spec"]["tls"] == [{"hosts": [rule["host"]], "secretName": "keepfit-tls"}]
    size = ingress["metadata"]["annotations"]["nginx.ingress.kubernetes.io/proxy-body-size"]
    body_bytes_max = int(one(FULL, "ConfigMap", "keepfit")["data"]["KEEPFIT_BODY_BYTES_MAX"])
    assert int(size.removesuffix("m")) * 2**20 == body_bytes_max


def test_the_autoscalers_set_the_numbers() -> None:
    """With the component the Deployments have no number that an apply would set back, and each has one autoscaler."""
    for kind, name in (("HorizontalPodAutoscaler", "gateway"), ("ScaledObject", "workers")):
        target = one(FULL, kind, name)["spec"]["scaleTargetRef"]
        assert (target["kind"], target["name"]) == ("Deployment", name)
        assert "replicas" not in one(FULL, "Deployment", name)["spec"]


def test_the_service_monitor_scrapes_the_gateways() -> None:
    """The ServiceMonitor selects the Service of the gateway, by a port and a path that exist."""
    spec = one(FULL, "ServiceMonitor", "keepfit")["spec"]
    services = {doc["metadata"]["name"]: doc for doc in documents(FULL) if doc["kind"] == "Service"}
    found = {name for name, doc in services.items() if matches(spec["selector"], doc["metadata"]["labels"])}
    assert found == {"gateway"}
    (endpoint,) = spec["endpoints"]
    assert (endpoint["port"], endpoint["path"]) == (services["gateway"]["spec"]["ports"][0]["name"], "/metrics")


def test_the_pod_monitor_scrapes_the_workers() -> None:
    """The PodMonitor selects the pods of workers, by the port that their setting names, which Prometheus may reach."""
    spec = one(FULL, "PodMonitor", "keepfit-workers")["spec"]
    template = one(FULL, "Deployment", "workers")["spec"]["template"]
    assert matches(spec["selector"], template["metadata"]["labels"])
    assert not matches(spec["selector"], one(FULL, "Deployment", "gateway")["spec"]["template"]["metadata"]["labels"])
    (endpoint,), (port,) = spec["podMetricsEndpoints"], container(FULL, "Deployment", "workers")["ports"]
    assert (endpoint["port"], endpoint["path"]) == (port["name"], "/metrics")
    settings = one(FULL, "ConfigMap", "keepfit")["data"]
    assert settings["KEEPFIT_WORKER_METRICS_PORT"] == str(port["containerPort"])
    assert settings["KEEPFIT_WORKER_METRICS_HOST"] == "0.0.0.0"
    (allowed,) = one(FULL, "NetworkPolicy", "keepfit-workers-metrics")["spec"]["ingress"]
    assert [one["port"] for one in allowed["ports"]] == [port["name"]]
    assert "ports" not in container(PRODUCTION, "Deployment", "workers")


def test_a_digest_in_place_of_the_tag() -> None:
    """The image that an overlay names by its digest is that of all pods of keepfit."""
    image = f"registry.example.com/keepfit@sha256:{'5e' * 32}"
    found = keepfit_containers(Build("digest", "base", image=image))
    assert len(found) == 4
    assert {only["image"] for only in found.values()} == {image}
