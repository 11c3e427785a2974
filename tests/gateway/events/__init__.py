"""Tests of server-sent events."""
