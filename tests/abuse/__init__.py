"""Clients that misbehave, and what a well-behaved client of another model notices of them."""
