"""Signed envelopes and API keys."""
