"""Clients of the Open Inference Protocol, unmodified: tritonclient and kserve, in an environment of their own."""
