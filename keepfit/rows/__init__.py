"""Rows: from bytes, tables and data frames to numpy."""
