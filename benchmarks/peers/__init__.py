"""Servers of the peers, each run in an environment of its own and written as its project's documentation recommends."""
