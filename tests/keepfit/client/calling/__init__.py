"""Tests of one call: repeats, joined predictions, events, errors."""
