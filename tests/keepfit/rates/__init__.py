"""Tests of :mod:`keepfit.rates`."""
