"""YAML with JSON's values.

Owns how YAML is read: plain words have the types of YAML 1.2's core schema, as far as JSON has them, and everything
else is text, so that `no`, `2026-11-20` and `01067` stay what they are (PyYAML's own loaders follow YAML 1.1, where
they are false, a date and 567). Tags, aliases, merge keys and repeated keys are errors. Never runs code of a file.
"""

import math
import re
from collections.abc import Callable, Hashable
from typing import Any, ClassVar

import yaml

from keepfit.errors import MalformedError

TAG = "tag:yaml.org,2002:"
NULL = re.compile(r"(?:~|null|Null|NULL|)$")
BOOLEAN = re.compile(r"(?:true|True|TRUE|false|False|FALSE)$")
INTEGER = re.compile(r"[-+]?(?:0|[1-9][0-9]*)$")
FLOAT = re.compile(r"[-+]?(?:(?:0|[1-9][0-9]*)(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?$")


class Loader(yaml.SafeLoader):
    """Reads a stream of documents into dicts, lists, texts, numbers, booleans and None."""

    # PyYAML copies what it inherits into tables of the class when something is added; these begin empty.
    yaml_implicit_resolvers: Any = {}  # noqa: RUF012 - as PyYAML declares it
    yaml_constructors: ClassVar[dict[Any, Any]] = {}

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Refuse aliases: one may contain itself, and a few of them stand for gigabytes."""
        if self.check_event(yaml.AliasEvent):
            raise _problem("aliases (*name) are not read", self.peek_event().start_mark)  # type: ignore[no-untyped-call]
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """Return an object of JSON, whose keys are texts, each once."""
        found: dict[Hashable, Any] = {}
        for key_node, value_node in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise _problem(f"a key is text, and {key!r} is not: write it in quotes", key_node.start_mark)
            if key == "<<" and key_node.style is None:
                raise _problem("merge keys (<<) are not read", key_node.start_mark)
            if key in found:
                raise _problem(f"the key {key!r} occurs twice", key_node.start_mark)
            found[key] = self.construct_object(value_node, deep=True)
        return found

    def construct_tagged(self, node: yaml.Node) -> None:
        """Refuse a tag that JSON has no value for."""
        raise _problem(f"the tag {node.tag.replace(TAG, '!!')} is not read", node.start_mark)

    def construct_null(self, node: yaml.ScalarNode) -> None:
        """Return None."""

    def construct_boolean(self, node: yaml.ScalarNode) -> bool:
        """Return a boolean."""
        return self._matching(node, BOOLEAN).lower() == "true"

    def construct_integer(self, node: yaml.ScalarNode) -> int:
        """Return an integer."""
        return int(self._matching(node, INTEGER))

    def construct_float(self, node: yaml.ScalarNode) -> float:
        """Return a float."""
        number = float(self._matching(node, FLOAT))
        if not math.isfinite(number):
            raise _problem(f"{node.value} is too large for a number", node.start_mark)
        return number

    def construct_items(self, node: yaml.SequenceNode) -> list[Any]:
        """Return a list."""
        return self.construct_sequence(node, deep=True)

    def _matching(self, node: yaml.ScalarNode, form: re.Pattern[str]) -> str:
        """Return the text of a scalar; one with a tag may have another form than its type."""
        text = str(self.construct_scalar(node))
        if not form.match(text):
            raise _problem(f"{text!r} is not of the type {node.tag.replace(TAG, '!!')}", node.start_mark)
        return text


def _problem(text: str, mark: yaml.Mark) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=text, problem_mark=mark)


# In the order in which a plain word is compared with them.
for _name, _form in (("null", NULL), ("bool", BOOLEAN), ("int", INTEGER), ("float", FLOAT)):
    Loader.add_implicit_resolver(TAG + _name, _form, None)
CONSTRUCTORS: dict[str | None, Callable[[Any, Any], Any]] = {
    f"{TAG}null": Loader.construct_null,
    f"{TAG}bool": Loader.construct_boolean,
    f"{TAG}int": Loader.construct_integer,
    f"{TAG}float": Loader.construct_float,
    f"{TAG}str": Loader.construct_scalar,
    f"{TAG}seq": Loader.construct_items,
    f"{TAG}map": Loader.construct_mapping,
    # Any other tag.
    None: Loader.construct_tagged,
}
for _tag, _construct in CONSTRUCTORS.items():
    Loader.add_constructor(_tag, _construct)


def parse_yaml(text: str, source: str) -> list[Any]:
    """Return the documents of a YAML text; empty ones are left out.

    >>> parse_yaml("a: no\\nb: [1, 1e-3, 01067, true]", "x.yaml")
    [{'a': 'no', 'b': [1, 0.001, '01067', True]}]

    Raises
    ------
    MalformedError
        If it is not YAML, has something that JSON has not, or is empty; the message names `source` and the line.
    """
    found = []
    try:
        loader = Loader(text)
        while loader.check_data():  # type: ignore[no-untyped-call]
            found.append(loader.get_data())
    except yaml.MarkedYAMLError as error:
        line = "" if error.problem_mark is None else f" in line {error.problem_mark.line + 1}"
        raise MalformedError(f"{source} is not YAML{line}: {error.problem or error.context}.") from None
    except yaml.YAMLError as error:
        raise MalformedError(f"{source} is not YAML: {' '.join(str(error).split())}.") from None
    except ValueError as error:
        # An integer of more than 4,300 digits.
        raise MalformedError(f"{source} is not YAML with JSON's values: {error}.") from None
    except RecursionError:
        raise MalformedError(f"{source} is nested too deeply.") from None
    documents = [document for document in found if document is not None]
    if not documents:
        raise MalformedError(f"{source} is empty.")
    return documents
