"""The hash table in Redis: models, inboxes, commits, retained requests, dead letters."""
