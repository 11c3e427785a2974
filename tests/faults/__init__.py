"""The fault harness: injects scheduled faults into its own stack under load, and verifies what was learned."""
