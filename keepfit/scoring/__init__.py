"""Scorers: what a model has learned as plain data, and predictions computed from it with numpy alone."""
