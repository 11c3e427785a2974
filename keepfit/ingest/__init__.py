"""Pull: learn the rows of large sources, chunk by chunk, in a process of its own."""
