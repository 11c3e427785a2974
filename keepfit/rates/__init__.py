"""Rates of API keys that all gateways share: buckets in Redis, and the script that takes tokens from them."""
