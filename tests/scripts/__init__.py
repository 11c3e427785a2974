"""The scripts in `keepfit/lua` against plain models of what they should do, mutants of them, and files cut short."""
