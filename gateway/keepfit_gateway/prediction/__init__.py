"""Predictions that go out: cached, and HTTP's own caching."""
