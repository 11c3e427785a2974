"""API keys of requests, and rate limits."""
