"""Fixtures: a worker's context and the gateway's side of the store, as the workers' own tests have them."""

from tests.workers.conftest import client, context, store

__all__ = ["client", "context", "store"]
