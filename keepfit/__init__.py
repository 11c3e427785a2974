"""keepfit hosts machine-learning models that never stop learning.

This package owns what a model *is* (identity, recipe, bundle) and what may happen to it (accept, claim, commit,
snapshot, restore). The services beside it (``keepfit_gateway``, ``keepfit_workers``, ``keepfit_snapshotter``) translate
between that and HTTP, RQ and schedules; they import this package and never each other.
"""

from importlib.metadata import version

__version__ = version("keepfit")
