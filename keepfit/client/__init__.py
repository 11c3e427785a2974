"""The client side of the HTTP API: calls of a gateway, and files of rows that are learned or predicted through it.

Used by programs as `keepfit.Client` and `keepfit.AsyncClient`, by the commands that call a gateway, and by the demo.
Never touches Redis, MongoDB or a model: whatever it knows of a model it reads from the gateway.
"""
