"""Fixtures: a worker's context and the gateway's side of the store, as the workers' own tests have them."""

from tests.workers.conftest import client, process, store

__all__ = ["client", "process", "store"]
