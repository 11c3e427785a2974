"""The fault harness: a stack of its own that it harms by a schedule, and clients that count what came of their rows."""
