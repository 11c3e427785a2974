"""The registry of models and the history of their snapshots."""
