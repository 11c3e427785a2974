"""The page that shows models, how they learn, and the state of the service, in a browser.

Owns which files the browser gets. The page is a client of the API and no more: whatever it shows or does is a call that
its API key permits. Invariants: only the files of a fixed list are served, each is read once; they are files of this
folder, run as they are, and need nothing from another server.
"""

from collections.abc import Mapping
from functools import cache
from pathlib import Path

from keepfit_gateway.api_page import File

PAGE = "index.html"
TYPES = {".css": "text/css", ".js": "text/javascript"}
MODULES = ("main", "api", "dom", "chart", "models", "model", "actions", "system", "traffic")
FILES = ("style.css", *(f"{name}.js" for name in MODULES))


@cache
def load() -> Mapping[str, File]:
    """Read the page and what it loads, by name."""
    folder = Path(__file__).parent
    loaded = {name: File((folder / name).read_bytes(), TYPES[Path(name).suffix]) for name in FILES}
    return {PAGE: File((folder / PAGE).read_bytes(), "text/html"), **loaded}
