"""The Lua scripts against plain models of what they should do, mutants of them, and files cut short."""
