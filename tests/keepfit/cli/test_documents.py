"""Models and recipes in files: YAML and JSON."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from keepfit import identity
from keepfit.cli.documents import read_documents, read_models, read_recipe
from keepfit.cli.yaml_values import FLOAT, TAG, parse_yaml
from keepfit.errors import KeepfitError, MalformedError
from tests.conftest import Stack
from tests.keepfit.cli.command import error_line, keepfit

METADATA = {"type": "shoes"}
TEXTS = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=8)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)


class Writer(yaml.SafeDumper):
    """Writes YAML 1.2: texts such as `0E0`, which are numbers there and plain text in YAML 1.1, stand in quotes."""


Writer.add_implicit_resolver(f"{TAG}float", FLOAT, list("-+.0123456789"))


@given(st.dictionaries(TEXTS, VALUES, min_size=1, max_size=3))
@example({"0E0": "1e5"})
@settings(max_examples=100, deadline=None)
def test_yaml_has_the_values_that_it_was_written_from(document: dict[str, Any]) -> None:
    """What a writer of YAML 1.2 writes is read with the same values, and JSON without escapes is YAML as well."""
    written = yaml.dump(document, Dumper=Writer, allow_unicode=True, width=10_000, sort_keys=False)
    (found,) = parse_yaml(written, "a.yaml")
    # 1, 1.0 and True are equal, and have other forms.
    assert (found, repr(found)) == (document, repr(document))
    (found,) = parse_yaml(json.dumps(document, ensure_ascii=False), "a.yaml")
    assert found == document


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("no", "no"), ("on", "on"), ("2026-11-20", "2026-11-20"), ("01067", "01067"), ("1:30", "1:30"),
        ("1_000", "1_000"),
        ("0x1F", "0x1F"), (".nan", ".nan"), ("=", "="), ("True", True), ("~", None), ("", None), ("1e-3", 0.001),
        ("+5", 5), (".5", 0.5), ("5.", 5.0), ("'5'", "5"), ("!!str 5", "5"), ("!!float 1", 1.0), ("-0", 0),
    ],
)  # fmt: skip
def test_plain_words_have_the_types_of_json(text: str, value: object) -> None:
    """Numbers, booleans and null are read as in YAML 1.2; what YAML 1.1 makes of other words is text."""
    ((found,),) = (document.values() for document in parse_yaml(f"a: {text}", "a.yaml"))
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: &x 1\nb: *x", "a.yaml is not YAML in line 2: aliases (*name) are not read."),
        ("a: &x [*x]", "a.yaml is not YAML in line 1: aliases (*name) are not read."),
        ("a: 1\n5: a", "a.yaml is not YAML in line 2: a key is text, and 5 is not: write it in quotes."),
        ("[1]: a", "a.yaml is not YAML in line 1: a key is text, and [1] is not: write it in quotes."),
        ("a: 1\na: 2", "a.yaml is not YAML in line 2: the key 'a' occurs twice."),
        ("<<: {a: 1}", "a.yaml is not YAML in line 1: merge keys (<<) are not read."),
        ("a: !!python/object:os.system x", "the tag !!python/object:os.system is not read."),
        ("a: !!binary aGk=", "the tag !!binary is not read."),
        ("a: !!int x", "'x' is not of the type !!int."),
        ("a: 1e400", "1e400 is too large for a number."),
        ("a: [", "a.yaml is not YAML in line 1: expected the node content, but found '<stream end>'."),
        ("\0", "a.yaml is not YAML: unacceptable character #x0000"),
        ("a: " + "1" * 5000, "a.yaml is not YAML with JSON's values: Exceeds the limit"),
        ("[" * 5000, "a.yaml is nested too deeply."),
        ("# nothing", "a.yaml is empty."),
    ],
)
def test_what_json_has_no_value_for_is_an_error(text: str, message: str) -> None:
    """The message names the file and the line; no code runs, and no alias is followed."""
    with pytest.raises(MalformedError) as caught:
        parse_yaml(text, "a.yaml")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("recipe: {estimator: SGDRegressor}", "m.yaml: a model is an object with metadata and recipe, and noth"),
        ("metadata: {type: a}\nrecipe: {}\nx: 1", "a model is an object with metadata and recipe, and nothing else"),
        ("metadata: {type: a}\nrecipe: SGDRegressor", "m.yaml: recipe is not an object."),
        (
            "metadata: {type: a}\nrecipe: {}\n---\nmetadata: {brand: x}\nrecipe: {}",
            "m.yaml, document 2: metadata must hold a non-empty string 'type'.",
        ),
        ("- 1", "m.yaml: a model is an object with metadata and recipe"),
        ("\xff", "m.yaml is not UTF-8 text."),
    ],
)  # fmt: skip
def test_a_file_that_describes_no_model_is_an_error(
    text: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message names the file, the document and what is wrong."""
    monkeypatch.chdir(tmp_path)
    Path("m.yaml").write_bytes(text.encode("latin-1"))
    with pytest.raises(KeepfitError) as caught:
        read_models("m.yaml")
    assert message in str(caught.value)


def test_json_is_read_as_json(tmp_path: Path) -> None:
    """A file of JSON is read with JSON's escapes and errors; a recipe is one object."""
    path = tmp_path / "recipe.json"
    path.write_text('{"a": "\\ud83d\\ude00"}')
    assert read_documents(str(path)) == [{"a": "\U0001f600"}]
    path.write_text('{"a": 1')
    with pytest.raises(MalformedError, match=r"recipe\.json is not JSON"):
        read_recipe(str(path))
    path.write_text("- 1")
    with pytest.raises(MalformedError, match="a recipe is one object"):
        read_recipe(str(path))


def test_create_reads_models_from_a_file(stack: Stack, tmp_path: Path) -> None:
    """Each document is a model with its own metadata; the same file again finds them; --metadata replaces them."""
    session = identity.hash_of({"type": str(tmp_path)})
    one = f"""
    metadata: {{type: shoes, session: {session}, size: 40}}
    recipe:
      estimator: SGDRegressor
      params: {{alpha: 1e-3, penalty: l1}}
      features: {{make: category, year: number}}
      scaler: StandardScaler
    """
    two = f"metadata: {{type: boots, session: {session}}}\nrecipe: {{estimator: GaussianNB, classes: [1, 2]}}\n"
    (tmp_path / "one.yaml").write_text(one)
    (tmp_path / "both.yaml").write_text(f"{one}\n---\n{two}")
    data = ("--data", str(stack.data))
    expected = [
        identity.hash_of({"type": "shoes", "session": session, "size": 40}),
        identity.hash_of({"type": "boots", "session": session}),
    ]
    made = keepfit("create", "both.yaml", *data, cwd=tmp_path)
    assert (made.returncode, made.stderr, made.stdout.split()) == (0, "", expected)
    again = keepfit("create", "one.yaml", "--json", *data, cwd=tmp_path)
    (model,) = map(json.loads, again.stdout.splitlines())
    assert (model["hash"], model["recipe"]["params"]) == (expected[0], {"alpha": 0.001, "penalty": "l1"})
    piped = keepfit("create", "-", "--metadata", "type=other", *data, cwd=tmp_path, sent=two)
    assert piped.stdout.strip() == identity.hash_of({"type": "other"})
    (tmp_path / "wrong.yaml").write_text(f"{one}\n---\n{two.replace('GaussianNB', 'GausianNB')}")
    wrong = error_line(keepfit("create", "wrong.yaml", *data, cwd=tmp_path))
    assert wrong.startswith("keepfit: Model 2 of 2: ")
    assert wrong.endswith("Those before it are created.")
    (tmp_path / "first.yaml").write_text(f"{two.replace('GaussianNB', 'GausianNB')}\n---\n{one}")
    first = error_line(keepfit("create", "first.yaml", *data, cwd=tmp_path))
    assert first.startswith("keepfit: Model 1 of 2: ")
    assert "are created" not in first
    for words, message in (
        (("one.yaml", "--scaler", "MinMaxScaler"), "the file holds the whole recipe; leave out --scaler."),
        (("one.yaml", "--recipe", "r.json"), "The file holds the recipe; leave out --recipe."),
        (("both.yaml", "--metadata", "type=x"), "which need different metadata: leave out --metadata"),
        (("none.yaml",), "There is no file none.yaml."),
    ):
        assert message in error_line(keepfit("create", *words, *data, cwd=tmp_path))
