"""The snapshotter: passes over the changed bundles."""
