"""Tests of rows as a caller gives them."""
