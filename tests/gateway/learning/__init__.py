"""Tests of rows that come in."""
