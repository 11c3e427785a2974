"""Tests of the gateway through HTTP."""
