"""The optional packages, extras of `pyproject.toml`: which there are, how to install them, whether the services are.

Imports nothing of them. Invariants: every message and page names an extra in the form of :func:`install`; a test
compares the names, and the modules of the services, with `pyproject.toml`.
"""

from importlib.util import find_spec

# What the services import, of the distributions of the extra `server`. On Windows there is no uvloop.
SERVER_MODULES = (
    "aiohttp",
    "aiohttp_sse",
    "fsspec",
    "hiredis",
    "mkdocs_swagger_ui_tag",
    "mmh3",
    "motor",
    "prometheus_client",
    "pydantic_settings",
    "redis",
    "rq",
    "s3fs",
    "sklearn",
    "skops",
    "structlog",
)


def install(*names: str) -> str:
    """Return the command that installs keepfit with extras.

    >>> install("river")
    "pip install -e '.[river]' in the copy of keepfit's repository"
    """
    return f"pip install -e '.[{','.join(names)}]' in the copy of keepfit's repository"


def has_services() -> bool:
    """Return whether the packages of the extra `server` are installed, without importing them."""
    return all(find_spec(name) is not None for name in SERVER_MODULES)
