"""Tests of the gateway's cache."""
