"""Fixtures of the workers' tests: a worker's context, and the store as a gateway uses it."""

from tests.workers.conftest import client, context, store

__all__ = ["client", "context", "store"]
