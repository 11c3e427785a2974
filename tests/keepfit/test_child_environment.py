"""Which secrets each child process gets."""

from pathlib import Path

import pytest
import yaml
from pydantic import SecretStr

from keepfit import child_environment
from keepfit.child_environment import KEYS
from keepfit.client_settings import variable_of
from keepfit.settings import Settings

MANIFESTS = Path(__file__).parents[2] / "k8s" / "base"
SECRETS = {name for name, field in Settings.model_fields.items() if "SecretStr" in str(field.annotation)}


def test_each_setting_with_keys_has_its_services() -> None:
    """Each secret setting that is not an address is in the table, so that a new one has to be."""
    assert {name for name in SECRETS if not name.endswith(("_url", "_urls"))} == set(KEYS)


@pytest.mark.parametrize("service", ["gateway", "workers", "snapshotter"])
def test_pods_and_processes_have_the_same_keys(service: str) -> None:
    """A service of `keepfit up` gets the keys that its pod gets; the pods' API keys are in a file."""
    manifest = (MANIFESTS / f"{service}.yaml").read_text()
    of_pod = {name for name in KEYS if f"- name: {variable_of(name)}\n" in manifest}
    every = {variable_of(name): "secret" for name in KEYS} | {"keepfit_signing_keys": "secret"}
    of_process = child_environment.of_service(service, every, Settings())
    assert {name for name in KEYS if variable_of(name) in of_process} - {"api_keys"} == of_pod
    assert ("keepfit_signing_keys" in of_process) is ("signing_keys" in of_pod)
    assert list(yaml.safe_load_all(manifest))


def test_keys_of_the_folder_do_not_reach_other_services() -> None:
    """The file of the data folder has all keys; a service keeps only those that it needs."""
    everything = Settings(**{name: SecretStr(f"{name}-secret") for name in KEYS})
    kept = child_environment.without_other_keys(everything, "gateway")
    assert {name for name in KEYS if getattr(kept, name).get_secret_value()} == {"upload_keys", "api_keys"}


@pytest.mark.parametrize(
    ("urls", "expected"),
    [
        ({"snapshot_url": "s3://bucket"}, {"workers", "snapshotter"}),
        ({"snapshot_url": "file:///x", "row_log_url": "s3://bucket"}, {"gateway", "workers", "snapshotter"}),
        ({"snapshot_url": "file:///x"}, set()),
    ],
)
def test_credentials_of_the_storage_go_where_it_is_used(urls: dict[str, str], expected: set[str]) -> None:
    """Credentials of S3 reach the services that use a storage there."""
    services = ("gateway", "workers", "snapshotter")
    found = {"AWS_SECRET_ACCESS_KEY": "secret"}
    settings = Settings(**urls)  # type: ignore[arg-type]
    assert {name for name in services if child_environment.of_service(name, found, settings)} == expected
