"""Clients that generators make from the OpenAPI document.

`program.py` and `program.ts` call each operation through the generated clients. The generators are pinned in
`requirements.txt` and `package-lock.json`.
"""
