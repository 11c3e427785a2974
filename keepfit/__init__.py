"""keepfit hosts machine-learning models that never stop learning.

This package owns what a model *is* (identity, recipe, bundle) and what may happen to it (accept, claim, commit,
snapshot, restore). The services beside it (``keepfit_gateway``, ``keepfit_workers``, ``keepfit_snapshotter``) translate
between that and HTTP, RQ and schedules; they import this package and never each other. :class:`Client` and
:class:`AsyncClient` are for programs that use such a service, :class:`RemoteRegressor` and :class:`RemoteClassifier`
for those of scikit-learn.
"""

# The name is what type checkers look for; to import it from typing would already be an import.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from keepfit.client.clients import AsyncClient, Client
    from keepfit.remote_estimators import RemoteClassifier, RemoteRegressor

__version__: str
__all__ = ["AsyncClient", "Client", "RemoteClassifier", "RemoteRegressor"]


def __getattr__(name: str) -> "Any":
    """Return what is imported when it is asked for: the clients, and ``__version__``.

    `python -m keepfit` runs this module while the working directory is on the import path, so it imports nothing.
    """
    if name in ("AsyncClient", "Client"):
        from keepfit.client import clients  # noqa: PLC0415 - see above

        return getattr(clients, name)
    if name in ("RemoteClassifier", "RemoteRegressor"):
        try:
            from keepfit import remote_estimators  # noqa: PLC0415 - see above
        except ModuleNotFoundError as error:
            raise ImportError(f"keepfit.{name} needs scikit-learn: pip install scikit-learn.") from error
        return getattr(remote_estimators, name)
    if name == "__version__":
        from importlib.metadata import version  # noqa: PLC0415 - see above

        return version(__name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """List the public names, imported or not."""
    return [*__all__, "__version__"]
