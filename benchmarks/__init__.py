"""Benchmarks of keepfit and its peers under the same load on one machine.

`make bench` runs it and writes docs/operations/performance.md.
"""
