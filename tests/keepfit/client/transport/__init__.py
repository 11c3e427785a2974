"""Tests of the connections of the clients."""
