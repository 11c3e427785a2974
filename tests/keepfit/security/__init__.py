"""Tests of envelopes and API keys."""
