"""The OpenAPI 3.1 document of the API.

Owns how routes and forms are described to tools that generate clients. Never decides what a call does: everything in
the document comes from the entry of a route, its forms and its examples.
"""

from keepfit_gateway.openapi.document import document

__all__ = ["document"]
