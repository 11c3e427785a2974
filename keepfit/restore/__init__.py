"""Restore: models brought back from snapshots, with the rows since then learned again."""
