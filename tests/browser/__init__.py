"""Headless Chromium for tests of pages: installed, started, and driven over its DevTools protocol."""
