"""Server-sent events: one reader of the stream of events in each gateway process, and the clients that it serves."""
