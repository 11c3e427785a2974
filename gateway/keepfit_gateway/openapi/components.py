"""The schemas of the document: those of msgspec, in the form that generators of clients understand.

Owns the differences between the two. What a generator needs and msgspec leaves out: `items` of every array,
`additionalProperties` of every open object, a type for every enum. What misleads a generator: `default`, which makes an
optional field required in TypeScript (the description names it instead), and discriminators of unions that have other
members too. A schema with a `title` becomes a component of that name, so that generated code has a good name for it.
"""

import inspect
import json
from collections.abc import Iterable
from typing import Any

import msgspec

from keepfit.recipe.recipe import Recipe
from keepfit_gateway.schemas.values import COMPONENTS, REFERENCE

Schema = dict[str, Any]


def schemas_of(forms: Iterable[Any]) -> tuple[dict[str, Schema], dict[str, Schema]]:
    """Return the schemas of `forms`, by their representation, and the components to which they refer."""
    # Forms refer to the recipe by its name only.
    types = [Recipe, *forms]
    schemas, from_classes = msgspec.json.schema_components(types, ref_template=REFERENCE)
    components: dict[str, Schema] = {}
    for name, schema in {**COMPONENTS, **from_classes}.items():
        components[name] = simplify(schema, components)
    by_type = {repr(form): _part(schema, components) for form, schema in zip(types, schemas, strict=True)}
    return by_type, dict(sorted(components.items()))


def simplify(schema: Schema, components: dict[str, Schema]) -> Schema:
    """Return a schema in the form that generators understand; it accepts the same values. May add `components`.

    >>> simplify({"type": "array", "default": []}, {})
    {'items': {}, 'type': 'array', 'description': 'Default: []'}
    >>> simplify({"anyOf": [{"enum": ["a", None]}, {"type": "integer"}]}, {})["anyOf"]
    [{'type': 'string', 'const': 'a'}, {'type': 'null'}, {'type': 'integer'}]
    """

    if "$ref" in schema:
        return {"$ref": schema["$ref"]} | _description(schema)
    result = {name: value for name, value in schema.items() if name not in ("default", "discriminator")}
    result |= _description(schema)
    if not result.get("required", True):
        del result["required"]
    if "enum" in result:
        result = _enum(result)
    if "prefixItems" in result:
        # A pair of equal types.
        result["items"] = result.pop("prefixItems")[0]
    result = _open(result)
    for name in ("items", "additionalProperties"):
        if isinstance(result.get(name), dict):
            result[name] = _part(result[name], components)
    if "properties" in result:
        result["properties"] = {name: _part(value, components) for name, value in result["properties"].items()}
    if "anyOf" in result:
        members = [_part(member, components) for member in result["anyOf"]]
        result["anyOf"] = [one for each in members for one in (each["anyOf"] if _is_plain_union(each) else [each])]
    return result


def _part(schema: Schema, components: dict[str, Schema]) -> Schema:
    """Return a part of a schema: by reference if it has a name."""
    simple = simplify(schema, components)
    name = simple.get("title")
    if name is None:
        return simple
    components.setdefault(name, simple)
    return {"$ref": REFERENCE.format(name=name)} | _description(simple)


def _open(schema: Schema) -> Schema:
    """Return an array or an object of any values with a schema of the values."""
    if schema.get("type") == "array":
        return {"items": {}, **schema}
    if schema.get("type") == "object" and "properties" not in schema:
        return {"additionalProperties": {}, **schema}
    return schema


def _description(schema: Schema) -> Schema:
    """Return the description as plain paragraphs, with the default value; empty if there is none."""
    paragraphs = inspect.cleandoc(schema.get("description", "")).replace("``", "`").split("\n\n")
    text = "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)
    if schema.get("default") is not None:
        text = f"{text} Default: {json.dumps(schema['default'])}".strip()
    return {"description": text} if text else {}


def _enum(schema: Schema) -> Schema:
    """Return an enum of strings with its type; null as a member of a union."""
    values = [value for value in schema["enum"] if value is not None]
    rest = {name: value for name, value in schema.items() if name != "enum"}
    member: Schema = {"type": "string", **({"const": values[0]} if len(values) == 1 else {"enum": values})}
    if len(values) == len(schema["enum"]):
        return {**rest, **member}
    return {**rest, "anyOf": [member, {"type": "null"}]}


def _is_plain_union(schema: Schema) -> bool:
    return set(schema) == {"anyOf"}
