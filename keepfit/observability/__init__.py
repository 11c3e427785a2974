"""What operators see: outages, request ids, and the points at which tests harm a process."""
