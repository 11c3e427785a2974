"""What the documentation site has in addition to the pages of the repository, generated at each build from the source.

Owns three additions, each with one source: the navigation, from the sections of `docs/index.md`; parameters, bodies and
answers of each call and the fields of its documents, from the OpenAPI document; signatures and docstrings, from the
Python code. Changes no file. Invariant: every call and every name of a page gets its addition, or the build fails.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sphinx.application import Sphinx
from sphinx.errors import ExtensionError

from keepfit_gateway.openapi import document
from keepfit_gateway.routes import ROUTES

INDEX, HTTP_API, PYTHON_API = "docs/index", "docs/reference/http-api", "docs/reference/python-api"
REFERENCE = "#/components/schemas/"
# What every call has; the conventions of the page describe it.
ALWAYS = {"X-Request-ID"}


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect the additions to Sphinx."""
    app.connect("source-read", add)
    app.connect("autodoc-skip-member", is_inherited)
    return {"parallel_read_safe": True}


def add(_app: Sphinx, name: str, source: list[str]) -> None:
    """Add to the text of a page, which is the one item of `source`, what is generated for it."""
    additions = {INDEX: with_navigation, HTTP_API: with_fields, PYTHON_API: with_docstrings}
    if name in additions:
        source[0] = additions[name](source[0])


def with_navigation(text: str) -> str:
    """Add a part of the navigation for each section of the index: its links to pages, in their order.

    >>> print(with_navigation("## Guides: how to\\n\\n- [Send rows](guides/send.md), [on k8s](../k8s/README.md)\\n"))
    ## Guides: how to
    <BLANKLINE>
    - [Send rows](guides/send.md), [on k8s](../k8s/README.md)
    <BLANKLINE>
    ```{toctree}
    :hidden:
    :titlesonly:
    :caption: Guides
    <BLANKLINE>
    Send rows <guides/send.md>
    on k8s <../k8s/README.md>
    ```
    <BLANKLINE>
    """
    trees = []
    for title, section in re.findall(r"^## ([^\n]+)\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL):
        links = dict.fromkeys(re.findall(r"\[([^\]]+)\]\(([^)#]+\.md)\)", section))
        entries = "\n".join(f"{name} <{page}>" for name, page in links)
        trees.append(f"```{{toctree}}\n:hidden:\n:titlesonly:\n:caption: {title.partition(':')[0]}\n\n{entries}\n```\n")
    return "\n".join([text, *trees])


# The HTTP API.


def with_fields(text: str) -> str:
    """Add to each call its parameters, body and answers, and to the end of the page the fields of all documents.

    Raises
    ------
    ExtensionError
        If a call has no section.
    """
    described = document(ROUTES)
    for path, calls in described["paths"].items():
        for method, call in calls.items():
            heading = f"### `{method.upper()} {path}`\n"
            if heading not in text:
                raise ExtensionError(f"{HTTP_API}.md has no section for {method.upper()} {path}.")
            start, _, rest = text.partition(heading)
            section = re.match(r".*?(?=^##|\Z)", rest, re.MULTILINE | re.DOTALL)
            assert section is not None  # noqa: S101 - the pattern matches everything
            added = "\n".join(_call(call))
            text = f"{start}{heading}{section[0].rstrip()}\n\n{added}\n\n{rest[section.end() :]}"
    return "\n".join(
        [text.rstrip(), "", "## Fields of bodies and answers", "", *_schemas(described["components"]["schemas"])]
    )


def _call(call: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines of one call, folded until a reader opens them."""
    yield from ("<details>", "<summary>Parameters, body and answers</summary>", "")
    if parameters := [each for each in call.get("parameters", ()) if each["name"] not in ALWAYS]:
        yield from _table(
            ("parameter", "in", "type", "meaning"),
            [(f"`{p['name']}`", p["in"], type_of(p["schema"]), p.get("description", "")) for p in parameters],
        )
    if body := call.get("requestBody"):
        yield from _table(("body", "form"), [(f"`{name}`", _content(of)) for name, of in body["content"].items()])
    answers = []
    for status, answer in call["responses"].items():
        forms = ", ".join(dict.fromkeys(map(_content, answer.get("content", {}).values())))
        answers.append((f"`{status}`", forms, answer["description"]))
    yield from _table(("answer", "form", "when"), answers)
    yield "</details>"


def _schemas(schemas: Mapping[str, Any]) -> Iterator[str]:
    for name, schema in sorted(schemas.items()):
        yield from (f"(fields-{name.lower()})=", f"**`{name}`** {schema.get('description', '')}", "")
        if fields := schema.get("properties"):
            required = schema.get("required", ())
            yield from _table(
                ("field", "type", "meaning"),
                [
                    (
                        f"`{field}`",
                        type_of(of),
                        f"{'Required. ' if field in required else ''}{of.get('description', '')}",
                    )
                    for field, of in fields.items()
                ],
            )
        else:
            yield from (f"Type: {type_of(schema)}", "")


def _table(titles: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    yield _row(titles)
    yield _row(("---",) * len(titles))
    yield from map(_row, rows)
    yield ""


def _row(cells: tuple[str, ...]) -> str:
    return f"| {' | '.join(' '.join(cell.split()).replace('|', chr(92) + '|') for cell in cells)} |"


def _content(content: Mapping[str, Any]) -> str:
    return type_of(content["schema"]) if "schema" in content else "bytes"


def type_of(schema: Mapping[str, Any]) -> str:
    """Return the type of a value in words, with links to the fields of documents.

    >>> type_of({"type": "array", "items": {"$ref": "#/components/schemas/Step"}})
    'list of [Step](#fields-step)'
    >>> type_of({"anyOf": [{"type": "integer", "minimum": 1}, {"type": "null"}]})
    'integer ≥ 1, or null'
    """
    match schema:
        case {"$ref": reference}:
            name = reference.removeprefix(REFERENCE)
            found = f"[{name}](#fields-{name.lower()})"
        case {"anyOf": schemas} | {"oneOf": schemas}:
            found = ", or ".join(dict.fromkeys(map(type_of, schemas)))
        case {"const": value}:
            found = f"`{value}`"
        case {"enum": values}:
            found = ", ".join(f"`{'null' if value is None else value}`" for value in values)
        case {"type": "array"}:
            found = f"list of {type_of(schema.get('items', {}))}"
        case {"type": "object", "additionalProperties": dict(values)} if values:
            found = f"object of {type_of(values)}"
        case {"type": [*names]}:
            found = ", or ".join(names)
        case {"type": name}:
            found = f"{name}{_bounds(schema)}"
        case _:
            found = "any value"
    return found


def _bounds(schema: Mapping[str, Any]) -> str:
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    bounds = " and ".join(f"{sign} {schema[key]}" for key, sign in signs.items() if key in schema)
    return f" {bounds}" if bounds else ""


# The Python API.


def is_inherited(_app: Sphinx, _what: str, _name: str, value: object, _skip: bool, _options: object) -> bool | None:
    """Return True for what scikit-learn defines, whose docstrings refer to its own documentation, else None."""
    return True if str(getattr(value, "__module__", "")).startswith("sklearn.") else None


def with_docstrings(text: str) -> str:
    """Add to each section whose title is a name of Python the signature and the docstring of what it names."""

    def documented(found: "re.Match[str]") -> str:
        name, kind = found[2], "class" if found[2].rpartition(".")[2][:1].isupper() else "function"
        options = ["   :members:", "   :inherited-members: BaseEstimator"] if kind == "class" else []
        directive = "\n".join([f".. auto{kind}:: {name}", *options])
        return f"{found[0].rstrip()}\n\n```{{eval-rst}}\n{directive}\n```\n\n"

    return re.sub(r"^(##+) `([\w.]+)`\n(.*?)(?=^##|\Z)", documented, text, flags=re.MULTILINE | re.DOTALL)
