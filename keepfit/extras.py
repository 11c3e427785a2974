"""How to install the optional packages: extras of `pyproject.toml`.

Pure. Invariant: every message and page names an extra in this form; a test compares the names with `pyproject.toml`.
"""


def install(*names: str) -> str:
    """Return the command that installs keepfit with extras.

    >>> install("river")
    "pip install -e '.[river]' in the copy of keepfit's repository"
    """
    return f"pip install -e '.[{','.join(names)}]' in the copy of keepfit's repository"
