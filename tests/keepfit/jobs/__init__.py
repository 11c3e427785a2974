"""Tests of jobs, run queue and messages."""
