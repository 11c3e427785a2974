"""The prediction cache, and HTTP caching."""
