"""Tests of classifiers that grow."""
