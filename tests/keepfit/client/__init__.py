"""Tests of the client side: files of rows, their values, and calls of a gateway."""
