"""The peers' servers, each run in an environment of its own and written as its project's documentation has it."""
