"""Accepting rows: into inboxes and the row log, and the feed of their commits."""
