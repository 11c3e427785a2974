"""HTTP: bodies, responses, problems, and counts of requests."""
