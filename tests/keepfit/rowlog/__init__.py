"""Tests of the row log."""
