"""The HTTP gateway (the I/O proxy): routes, validation, replies."""
