"""Rows that come in: accepted, recorded, and their commits heard of."""
