"""Settings of Sphinx for the documentation site: `make docs`.

The sources are the pages of the repository as they are, also those outside `docs/`, so that links between them are the
same in the site and in the repository. Invariant: the site loads nothing from another host, and its search needs no
server.
"""

import gc
import sys
from pathlib import Path

# A build makes millions of objects that stay until its end: looking for garbage among them is a quarter of its time.
gc.set_threshold(200_000, 20, 100)

HERE = Path(__file__).parent
# The pages that are generated in part, and the packages whose docstrings are shown.
sys.path[:0] = [str(HERE), *(str(HERE.parents[1] / name) for name in (".", "gateway"))]

import keepfit  # noqa: E402 - from the path above

project = "keepfit"
author = "the keepfit developers"
version = release = keepfit.__version__
language = "en"

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton", "generated"]
root_doc = "docs/index"
include_patterns = [
    "docs/**.md",
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "k8s/README.md",
    "clients/node/README.md",
    "examples/*/README.md",
]
exclude_patterns = [".*", "build", "tests", "benchmarks", "**/node_modules"]
# Headings have the anchors that they have where the repository is browsed.
myst_heading_anchors = 6
smartquotes = False

# `make linkcheck`: what a reader's own machine serves is not asked, and a slow host is asked again.
linkcheck_ignore = [r"https?://(127\.0\.0\.1|localhost|\[::1\])\b"]
linkcheck_anchors = False
linkcheck_timeout, linkcheck_retries = 20, 2

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_class_signature = "mixed"
napoleon_numpy_docstring = True
napoleon_google_docstring = False

html_theme = "furo"
html_title = f"keepfit {version}"
# A page at the root of the site leads to the index, which is below `docs/`.
html_extra_path = ["root"]
html_copy_source = False
html_show_sourcelink = False
html_show_sphinx = False
copybutton_prompt_text = "$ "
