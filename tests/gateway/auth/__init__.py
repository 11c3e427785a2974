"""Tests of API keys and rates."""
