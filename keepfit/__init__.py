"""keepfit hosts machine-learning models that never stop learning.

This package owns what a model *is* (identity, recipe, bundle) and what may happen to it (accept, claim, commit,
snapshot, restore). The services beside it (``keepfit_gateway``, ``keepfit_workers``, ``keepfit_snapshotter``) translate
between that and HTTP, RQ and schedules; they import this package and never each other.
"""

__version__: str


def __getattr__(name: str) -> str:
    """Return ``__version__`` when it is asked for.

    `python -m keepfit` runs this module while the working directory is on the import path, so it imports nothing.
    """
    if name != "__version__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib.metadata import version  # noqa: PLC0415

    return version(__name__)
