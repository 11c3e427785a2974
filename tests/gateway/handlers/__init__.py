"""Tests of groups of routes."""
