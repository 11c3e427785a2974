"""The files of the API page, in memory.

Owns where they are read from, and their bodies in each coding. Never answers a request.
"""

import hashlib
import threading
from collections.abc import Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from keepfit.errors import UnavailableError
from keepfit_gateway.web import codings

# Distribution and package with the files of Swagger UI. Importing it would import what a build of documents needs.
DISTRIBUTION, PACKAGE = "mkdocs-swagger-ui-tag", "mkdocs_swagger_ui_tag"
OWN = Path(__file__).parent
PAGE = "page.html"
STYLE, CODE, START = "swagger-ui.css", "swagger-ui-bundle.js", "page.js"
# What the page loads, by name: the file in the package or in this folder, and its media type.
FILES = {
    STYLE: (f"swagger-ui/stylesheets/{STYLE}", "text/css"),
    CODE: (f"swagger-ui/javascripts/{CODE}", "text/javascript"),
    START: (START, "text/javascript"),
}
# In hexadecimal digits.
DIGEST_LENGTH = 32


class File:
    """One file: its media type, the digest of its content, and its body in each coding that was asked for."""

    def __init__(self, content: bytes, media_type: str) -> None:
        self.media_type = media_type
        self.digest = hashlib.sha256(content).hexdigest()[:DIGEST_LENGTH]
        self.size_bytes = len(content)
        self._bodies = {"identity": content}
        self._lock = threading.Lock()

    def body(self, coding: str) -> bytes:
        """Return the content in a coding of :func:`~keepfit_gateway.web.codings.negotiate`; each is made once.

        It may take a tenth of a second, so call it in a thread.
        """
        with self._lock:
            if coding not in self._bodies:
                self._bodies[coding] = codings.encode(coding, self._bodies["identity"])
            return self._bodies[coding]


@cache
def load() -> Mapping[str, File]:
    """Read the page and what it loads, by name.

    Raises
    ------
    UnavailableError
        If the package with Swagger UI is not installed, or lacks a file.
    """
    files = {name: File(_read(name, path), media_type) for name, (path, media_type) in FILES.items()}
    # With its digest in the address, a browser may keep a file for ever.
    addresses = {name: f"/docs/{name}?v={file.digest}" for name, file in files.items()}
    text = (OWN / PAGE).read_text()
    for name, address in addresses.items():
        text = text.replace(f'"{name}"', f'"{address}"')
    return {PAGE: File(text.encode(), "text/html"), **files}


def _read(name: str, path: str) -> bytes:
    if name == START:
        return (OWN / path).read_bytes()
    spec = find_spec(PACKAGE)
    file = None if spec is None or spec.origin is None else Path(spec.origin).parent / path
    if file is None or not file.is_file():
        raise UnavailableError(
            f"The API page needs {name} of the package {DISTRIBUTION}, in the version that keepfit requires.",
            "The API page needs files of a package that is not installed; the gateway's log names it.",
        )
    return file.read_bytes()
