"""The environment of child processes: each gets the secrets that it needs, and no others.

Owns which service needs which secret, as the manifests in `k8s/` do for pods, and which variables a process gets that
needs none. Pure. Invariants: only processes that sign or verify bundles have signing keys; servers and the process that
checks recipes have no secret at all.
"""

from collections.abc import Mapping

from pydantic import SecretStr

from keepfit.client_settings import variable_of
from keepfit.settings import Settings

GATEWAY, WORKERS, SNAPSHOTTER = "gateway", "workers", "snapshotter"
# Settings that hold keys, and the services that need them. Client commands need the others.
KEYS: Mapping[str, frozenset[str]] = {
    "signing_keys": frozenset({WORKERS, SNAPSHOTTER}),
    "upload_keys": frozenset({GATEWAY, WORKERS}),
    "api_keys": frozenset({GATEWAY}),
    "import_keys": frozenset(),
    "api_key": frozenset(),
}
# Services that read or write each storage; credentials of S3 are in the variables of the AWS SDK.
STORAGES: Mapping[str, frozenset[str]] = {
    "snapshot_url": frozenset({WORKERS, SNAPSHOTTER}),
    "row_log_url": frozenset({GATEWAY, WORKERS, SNAPSHOTTER}),
}
AWS = "AWS_"
# Variables that a program may need to start and to show text: none of them holds a secret.
BASIC_NAMES = frozenset({"PATH", "HOME", "USER", "LANG", "LANGUAGE", "TZ", "TMPDIR", "TEMP", "TMP", "VIRTUAL_ENV"})
BASIC_PREFIXES = ("LC_", "LD_", "DYLD_", "PYTHON", "COVERAGE_", "OMP_", "OPENBLAS_", "MKL_")


def of_service(service: str, variables: Mapping[str, str], settings: Settings) -> dict[str, str]:
    """Return the variables that a service gets: all but the keys, and credentials of S3, that it does not need.

    `settings` are those of `variables`, as far as they name storages.

    >>> found = {"KEEPFIT_SIGNING_KEYS": "id:hex", "KEEPFIT_UPLOAD_KEYS": "id:hex", "AWS_PROFILE": "a", "PATH": "/bin"}
    >>> sorted(of_service("gateway", found, Settings(snapshot_url="s3://bucket")))
    ['KEEPFIT_UPLOAD_KEYS', 'PATH']
    >>> sorted(of_service("snapshotter", found, Settings(snapshot_url="s3://bucket")))
    ['AWS_PROFILE', 'KEEPFIT_SIGNING_KEYS', 'PATH']
    """
    hidden = {variable_of(name) for name, services in KEYS.items() if service not in services}
    uses_s3 = any(
        service in services and getattr(settings, name).startswith("s3://") for name, services in STORAGES.items()
    )
    return {
        name: value
        for name, value in variables.items()
        if name.upper() not in hidden and (uses_s3 or not name.upper().startswith(AWS))
    }


def basic(variables: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that a process gets that needs no settings: a server, or the process that checks recipes.

    >>> basic({"PATH": "/bin", "LC_ALL": "C", "KEEPFIT_SIGNING_KEYS": "id:hex", "GITHUB_TOKEN": "x"})
    {'PATH': '/bin', 'LC_ALL': 'C'}
    """
    return {name: value for name, value in variables.items() if name in BASIC_NAMES or name.startswith(BASIC_PREFIXES)}


def without_other_keys(settings: Settings, service: str) -> Settings:
    """Return the settings without the keys that a service does not need: the data folder's file has all of them."""
    return settings.model_copy(
        update={name: SecretStr("") for name, services in KEYS.items() if service not in services}
    )
