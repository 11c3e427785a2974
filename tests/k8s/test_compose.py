"""compose.yaml, compared with the manifests: the same commands, settings, rights and limits; its servers started."""

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import redis
import typer
import yaml
from typer.core import TyperGroup

from keepfit.cli.main import app as cli
from keepfit.security.api_keys import Keys
from keepfit.security.envelope import Keyring
from keepfit.settings import Settings, load
from tests.conftest import SIGNING_KEYS
from tests.k8s.builds import DEV, FULL, ROOT, SERVED, container, keepfit_containers, one, secret_values
from tests.k8s.test_manifests import SECRET_FIELDS
from tests.k8s.test_servers import QUEUE, STORE, RedisServer, started_words
from tests.servers import wait_until

COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OWN = {"gateway": "gateway", "workers": "workers", "snapshotter": "snapshotter"}
# What `.env` holds (docs/guides/deploy.md).
SECRETS = {
    "KEEPFIT_SIGNING_KEYS": SIGNING_KEYS,
    "KEEPFIT_API_KEYS": secret_values(DEV, "keepfit-api-keys")["api-keys"],
    "REDIS_PASSWORD": "dev-only",
    "QUEUE_PASSWORD": "dev-only",
    "MONGO_PASSWORD": "dev-only",
}
KNOWN = {
    "image", "build", "restart", "init", "read_only", "cap_drop", "security_opt", "user", "tmpfs", "networks",
    "command", "environment", "ports", "healthcheck", "stop_grace_period", "mem_limit", "pids_limit", "volumes",
    "depends_on",
}  # fmt: skip


def interpolated(text: str) -> str:
    """Return a value as Compose does: `$$` is a dollar, `${NAME:?}` must be in `.env`, `${NAME:-default}` may be."""

    def value(found: re.Match[str]) -> str:
        name, kind, default = found.groups()
        return "$" if found[0] == "$$" else SECRETS[name] if kind == ":?" else SECRETS.get(name, default)

    return re.sub(r"\$\$|\$\{(\w+)(:\?|:-)([^}]*)\}", value, text)


def environment(name: str) -> dict[str, str]:
    """Return the variables of a service."""
    return {key: interpolated(value) for key, value in SERVICES[name]["environment"].items()}


def seconds(text: str) -> int:
    """Return the seconds of a duration such as 30s or 10m."""
    return int(text[:-1]) * {"s": 1, "m": 60}[text[-1]]


@pytest.mark.parametrize("name", SERVICES)
def test_containers_are_restricted(name: str) -> None:
    """Each container has no right that it does not need, a read-only image, limits, a check of its health."""
    service = SERVICES[name]
    assert service.keys() <= KNOWN
    assert (service["read_only"], service["cap_drop"]) == (True, ["ALL"])
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert int(service["user"].partition(":")[0]) > 0
    assert service["mem_limit"]
    assert service["pids_limit"]
    assert service["healthcheck"]["test"]
    assert re.search(r":\d[\w.]*$", service["image"])
    volumes = {volume.partition(":")[0] for volume in service.get("volumes", [])}
    assert volumes <= COMPOSE["volumes"].keys()
    assert set(service["networks"]) <= COMPOSE["networks"].keys()


def test_only_the_gateway_is_open() -> None:
    """The gateway alone has a port, on loopback, and a network that leads outside."""
    assert {name for name, service in SERVICES.items() if "ports" in service} == {"gateway"}
    assert SERVICES["gateway"]["ports"][0].startswith("127.0.0.1:")
    assert {name for name, service in SERVICES.items() if "outside" in service["networks"]} == {"gateway"}
    assert COMPOSE["networks"]["inside"]["internal"] is True


@pytest.mark.parametrize("name", OWN)
def test_services_run_with_valid_settings(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command of each service exists, and its settings load, with the secrets that it needs and no others."""
    group = typer.main.get_command(cli)
    assert isinstance(group, TyperGroup)
    command, *options = SERVICES[name]["command"]
    parsed = group.commands[command].make_context(command, list(options))
    assert parsed.params.get("every") == ("60s" if name == "snapshotter" else None)
    variables = environment(name)
    assert variables.keys() <= {f"KEEPFIT_{field.upper()}" for field in Settings.model_fields}
    for key, value in variables.items():
        monkeypatch.setenv(key, value)
    settings = load()
    secrets = {field for field in SECRET_FIELDS if f"KEEPFIT_{field.upper()}" in variables}
    expected = {variable["name"] for variable in keepfit_containers(SERVED)[OWN[name]]["env"]}
    of_pod = {field for field in SECRET_FIELDS if f"KEEPFIT_{field.upper()}" in expected}
    # One server of the queue is enough for one machine.
    assert secrets == of_pod - {"queue_urls"} | ({"api_keys"} if name == "gateway" else set())
    if name == "gateway":
        assert (settings.host, settings.port) == ("0.0.0.0", 8000)
        assert Keys.from_text(settings.api_keys.get_secret_value()).find("dev-only")
    else:
        assert Keyring.from_text(settings.signing_keys.get_secret_value()).keys


@pytest.mark.parametrize("name", OWN)
def test_limits_are_those_of_the_manifests(name: str) -> None:
    """Memory, settings in bytes and the time to end are those of the pods, whose arithmetic is tested."""
    kind = "CronJob" if name == "snapshotter" else "Deployment"
    limit = container(SERVED, kind, name)["resources"]["limits"]["memory"]
    assert SERVICES[name]["mem_limit"] == limit.removesuffix("i").lower()
    of_pods = one(SERVED, "ConfigMap", "keepfit")["data"]
    variables = environment(name)
    in_bytes = {key: value for key, value in of_pods.items() if "BYTES" in key}
    assert {key: value for key, value in variables.items() if "BYTES" in key} == in_bytes
    assert variables.get("KEEPFIT_WORKERS") == (of_pods["KEEPFIT_WORKERS"] if name == "workers" else None)
    template = one(FULL, "Deployment", name)["spec"]["template"]["spec"]
    assert seconds(SERVICES[name]["stop_grace_period"]) == template["terminationGracePeriodSeconds"]


@pytest.mark.parametrize("name", ["workers", "snapshotter"])
def test_the_check_is_the_probe_of_the_pod(name: str, tmp_path: Path) -> None:
    """The health check is the command of the probe, and looks at the file of the setting."""
    shell, text = SERVICES[name]["healthcheck"]["test"]
    probe = container(FULL, "Deployment", name)["livenessProbe"]["exec"]["command"]
    assert (shell, interpolated(text)) == ("CMD-SHELL", probe[2])
    file = tmp_path / "alive"
    assert environment(name)["KEEPFIT_ALIVE_FILE"].startswith("/tmp/")
    words, variables = ["sh", "-c", interpolated(text)], {"PATH": "/usr/bin:/bin", "KEEPFIT_ALIVE_FILE": str(file)}
    assert subprocess.run(words, env=variables, stderr=subprocess.DEVNULL, check=False).returncode != 0
    file.touch()
    assert subprocess.run(words, env=variables, check=False).returncode == 0


@pytest.mark.parametrize("server", [STORE, QUEUE], ids=["store", "queue"])
def test_redis_starts_with_a_safe_configuration(server: RedisServer, tmp_path: Path) -> None:
    """Each Redis starts with its command, requires its password, and has the configuration of its pod."""
    service = SERVICES[server.name]
    password = environment(server.name)["REDISCLI_AUTH"]
    words = [interpolated(word) for word in service["command"]]
    with started_words(words, server.folder, {"REDISCLI_AUTH": password}, tmp_path) as (process, port):
        with redis.Redis(port=port, password=password) as client:

            def is_up() -> bool:
                try:
                    return bool(client.ping())
                except redis.ConnectionError:
                    return process.poll() is not None

            wait_until(is_up, "Redis")
            memory = int(service["mem_limit"].removesuffix("g")) * 2**30
            share = {"redis": memory // 2, "queue": memory // 4 * 3}[server.name]
            assert client.config_get(*server.expected) == server.expected | {"maxmemory": str(share)}
        with redis.Redis(port=port) as stranger, pytest.raises(redis.AuthenticationError):
            stranger.ping()


def test_addresses_are_the_services() -> None:
    """The URLs name the services, with the passwords that these get."""
    for name in OWN:
        variables = environment(name)
        assert variables["KEEPFIT_STORE_URL"] == "redis://:dev-only@redis:6379/0"
        assert variables["KEEPFIT_MONGO_URL"] == secret_values(DEV)["KEEPFIT_MONGO_URL"]
        assert variables.get("KEEPFIT_QUEUE_URL") == (
            None if name == "snapshotter" else "redis://:dev-only@queue:6379/0"
        )
    assert environment("mongodb")["MONGO_INITDB_ROOT_PASSWORD"] == "dev-only"
