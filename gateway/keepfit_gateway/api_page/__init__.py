"""The page that shows the OpenAPI document in a browser and sends requests from it: Swagger UI.

Owns which files a browser gets, their types and the policy under which they run. Never reads the document, which the
browser loads from ``/openapi.json``. Invariants: only the files of a fixed list are served, each is read once; a page
needs nothing from another server, and its policy permits nothing from there. Swagger UI comes from an installed
package; the page and its start are files of this folder.
"""

from keepfit_gateway.api_page.files import FILES, PAGE, File, load

__all__ = ["FILES", "PAGE", "File", "load"]
