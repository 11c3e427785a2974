"""Snapshots: saving, retention, and garbage collection."""
