r"""Text of users, made safe for a terminal.

Pure. Owns which characters are shown as escapes: control characters (a label with ESC could recolour or clear the
screen), line breaks (a reason could print a line of its own), and characters that reverse the direction of text or have
no width (a type could look like another one). Used by every table, message, progress bar and plain log line.
"""

import json
from typing import Any


def printable(text: str) -> str:
    r"""Return `text` with each character that a terminal obeys or hides written as an escape.

    >>> printable("red \x1b[31m shoe\n"), printable("a\u202eb"), printable("Zürich 東京 👟")
    ('red \\x1b[31m shoe\\n', 'a\\u202eb', 'Zürich 東京 👟')
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def printable_json(value: Any) -> str:
    r"""Return `value` as JSON on one line, in which only characters that a terminal obeys or hides are escaped.

    What JSON has no form for is written as text.

    >>> printable_json({"type": "größe", "note": "\x1b\x7f\u202e"})
    '{"type": "größe", "note": "\\u001b\\u007f\\u202e"}'
    """
    text = json.dumps(value, ensure_ascii=False, default=str)
    if text.isprintable():
        return text
    # Outside of strings JSON is printable ASCII, and in a string \uXXXX is what JSON reads back as this character.
    return "".join(c if c.isprintable() else json.dumps(c)[1:-1] if c != "\x7f" else "\\u007f" for c in text)
