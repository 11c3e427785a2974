"""Tests of pull: readers, sources, and the job itself."""
