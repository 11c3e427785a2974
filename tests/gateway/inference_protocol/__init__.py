"""Tests of the inference protocol without a server."""
