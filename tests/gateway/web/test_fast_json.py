"""Fast decoding: it returns what the strict parser returns, or leaves the request to it."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from keepfit import identity
from keepfit.errors import KeepfitError
from keepfit.recipe.recipe import parse
from keepfit.rows.shaping import pack_row, shape
from keepfit_gateway import schemas
from keepfit_gateway.schemas import Form
from keepfit_gateway.web import fast_json, rows_body

FORMS: list[type[Form]] = [
    schemas.PartialFit,
    schemas.Predict,
    schemas.Score,
    schemas.PartialFitByMetadata,
    schemas.PredictByMetadata,
    schemas.ScoreByMetadata,
]
RECIPES = [
    parse({"estimator": "SGDRegressor"}),
    parse({"estimator": "SGDRegressor", "features": {"a": "category", "X": "number"}}),
    parse({"estimator": "SGDClassifier", "classes": ["a", "b"]}),
    parse(
        {
            "estimator": "SGDRegressor",
            "features": {"a": {"type": "category", "missing": "zero"}, "X": {"type": "number", "missing": "mean"}},
        }
    ),
]
# Its columns are numbers only.
NAMED = parse({"estimator": "SGDRegressor", "features": {"a": "number", "X": "number"}})

numbers = st.one_of(
    st.floats().map(json.dumps),
    st.integers().map(str),
    st.from_regex(r"-?(0|[1-9][0-9]{0,25})(\.[0-9]{1,25})?([eE][+-]?[0-9]{1,3})?", fullmatch=True),
    st.sampled_from(["-0", "1" * 5000, "9007199254740992", "1e400", "01", "1.", "+1", ".5", "NaN", "-Infinity"]),
)
strings = st.one_of(
    st.sampled_from(
        ["a", "b", "X", "y", "é", "],", "},", "\\u0061", "\\u0058", '\\"', "\\\\", "\\ud800", "\\ud83d\\ude00"]
    ),
    st.text(max_size=4).map(lambda text: json.dumps(text)[1:-1]),
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters='"\\'), max_size=3),
).map(lambda text: f'"{text}"')
spaces = st.sampled_from(["", "", "", " ", "\n", "\t", "\f"])


def listed(items: Any, begin: str = "[", end: str = "]") -> Any:
    """Generate JSON lists of the items, with white space."""
    return st.tuples(st.lists(items, max_size=4), spaces).map(lambda p: begin + f"{p[1]},".join(p[0]) + p[1] + end)


def objects(keys: Any, values: Any) -> Any:
    """Generate JSON objects whose keys may repeat."""
    return listed(st.tuples(keys, spaces, values).map(lambda pair: f"{pair[0]}:{pair[1]}{pair[2]}"), "{", "}")


simple = st.one_of(numbers, numbers, strings, st.sampled_from(["true", "false", "null", "nul"]))
anything = st.recursive(simple, lambda inner: listed(inner) | objects(strings, inner), max_leaves=6)
rows = st.one_of(listed(simple), objects(st.sampled_from(['"a"', '"X"', '"\\u0061"']), simple), anything)
metadata = objects(st.sampled_from(['"type"', '"brand"', '"timestamp"', '"t\\u0079pe"']), simple | anything)
fields = st.one_of(
    listed(rows).map('"X":{}'.format),
    listed(simple).map('"y":{}'.format),
    listed(simple).map('"sample_weight":{}'.format),
    anything.map('"proba":{}'.format),
    metadata.map('"metadata":{}'.format),
    st.tuples(strings, anything).map(":".join),
)
# Most requests are valid except for one or two values: otherwise decoding would end at their first field.
usual = st.one_of(
    st.floats(allow_nan=False, allow_infinity=False).map(json.dumps),
    st.floats(-1e30, 1e30).map(json.dumps),
    st.integers(-(2**53), 2**53).map(str),
    strings,
    simple,
)
usual_row = st.one_of(
    st.lists(st.floats(-1e30, 1e30).map(json.dumps) | usual, min_size=2, max_size=2).map(lambda p: f"[{','.join(p)}]"),
    st.tuples(usual, usual).map(lambda pair: f'{{"a":{pair[0]},"X":{pair[1]}}}'),
    st.tuples(usual, usual, usual).map(lambda p: f'{{"a":{p[0]},"X":{p[1]},"a":{p[2]}}}'),
)
USUAL_FIELDS = {
    "X": st.lists(usual_row, min_size=1, max_size=2).map(lambda p: f'"X":[{", ".join(p)}]'),
    "y": st.lists(st.sampled_from(['"a"', '"b"', "true", "1", "2.5"]), max_size=3).map(
        lambda p: f'"y":[{",".join(p)}]'
    ),
    "sample_weight": st.sampled_from(["[1]", "[0.5,2]", "[]"]).map('"sample_weight":{}'.format),
    "proba": st.sampled_from(['"proba":true', '"proba": false']),
    "metadata": st.sampled_from(['"metadata":{"type":"é","n":[1.0,{}]}', '"metadata":{"type":"a"}'])
    | metadata.map('"metadata":{}'.format),
}


def usual_bodies(form: type[Form]) -> Any:
    """Generate requests with the fields of a form, sometimes with one field more."""
    members = [USUAL_FIELDS[name] for name in form.__struct_fields__ if name in USUAL_FIELDS]
    more = st.lists(fields, max_size=1) | st.just([])
    return (
        st.tuples(st.tuples(*members).map(list), more)
        .flatmap(lambda pair: st.permutations(pair[0] + pair[1]))
        .map(lambda parts: "{" + ",".join(parts) + "}")
    )


def requests(forms_taken: list[type[Form]]) -> Any:
    """Generate pairs of a form and bytes that may be a request of that form."""
    return st.sampled_from(forms_taken).flatmap(
        lambda form: st.tuples(
            st.just(form),
            st.one_of(usual_bodies(form), usual_bodies(form), listed(fields, "{", "}"), anything).map(
                lambda text: text.encode("utf-8", "surrogatepass")
            ),
        )
    )


EXAMPLES = [
    b'{"X":[[1]],"X":[[2]]}',
    b'{"X":[[1]],"\\u0058":[[2]]}',
    b'{"X":[{"a":1,"a":2}]}',
    b'{"X":[{"a":1,"\\u0061":"\\""}]}',
    b'{"X":[["],","},"]]}',
    b'{"X":[[1],[2],],"y":[1,2]}',
    b'{"X":[["\xff"]]}',
    b'{"metadata":{"type":"a","type":"b"},"X":[[1]]}',
    b'{"metadata":{"type":"a"},"metadata":{"type":"b"},"X":[[1]]}',
    b'{"metadata":{"type":"\\""},"X":[[1]]}',
    b'{"X":[[1]],"y":null,"proba":false}',
]


def strictly(body: bytes, form: type[Form]) -> Any:
    """Return the request as read by the strict parser, or the class of its error."""
    try:
        found = schemas.convert(identity.parse_json(body), form)
        named = identity.hash_of(identity.check_metadata(found.metadata)) if hasattr(found, "metadata") else None
    except KeepfitError as error:
        return type(error)
    return written(found, named)


def written(found: Any, named: str | None) -> str:
    """Return a request as text, which distinguishes 1 from 1.0, 0.0 from -0.0, and the order of keys."""
    optional = [getattr(found, name, default) for name, default in (("y", None), ("sample_weight", None))]
    return repr((found.X, *optional, getattr(found, "proba", False), named))


@settings(deadline=None, max_examples=200)
@given(requests(FORMS))
def test_fast_decoding_equals_the_strict_parser(request: tuple[type[Form], bytes]) -> None:
    """For any text, fast decoding returns the values and the hash of the strict parser, or None."""
    form, body = request
    found = fast_json.decode(body, form)
    if found is not None:
        assert written(found, found.model_hash or None) == strictly(body, form)


@pytest.mark.parametrize("body", EXAMPLES)
@pytest.mark.parametrize("form", FORMS)
def test_ambiguous_texts(form: type[Form], body: bytes) -> None:
    """Repeated keys in any spelling, brackets in strings and invalid UTF-8 are read as by the strict parser."""
    found = fast_json.decode(body, form)
    assert found is None or written(found, found.model_hash or None) == strictly(body, form)


@pytest.mark.parametrize(
    ("form", "body"),
    [
        (schemas.Predict, b'{"X":[[0.1,2,-3e5]]}'),
        (schemas.Predict, b'{"X":[[null,"a"],{"a":null}]}'),
        (schemas.Predict, b' { "proba" : false , "X" : [ { "a" : "nike" , "b" : 1 } , ["\\u00e9", 2 ] ] } '),
        (schemas.PartialFit, b'{"X":[["a"],["b"]],"y":["no",true],"sample_weight":[1,0.5]}'),
        (schemas.PredictByMetadata, b'{"X":[[1]],"metadata":{"type":"shoes","sizes":[1,{"a":null}]},"proba":true}'),
    ],
)
def test_typical_requests_are_decoded_fast(form: type[Form], body: bytes) -> None:
    """Requests as clients write them do not need the strict parser."""
    for _ in range(2):
        found = fast_json.decode(body, form)
        assert found is not None
        assert written(found, found.model_hash or None) == strictly(body, form)


@settings(deadline=None, max_examples=200)
@given(requests([schemas.Predict]), st.sampled_from([RECIPES[0], NAMED]))
@example((schemas.Predict, b'{"X":[[1,2.5]]}'), RECIPES[0])
@example((schemas.Predict, b' {"X" : [ {"X":-0.0 , "a":1e30} ] } '), NAMED)
@example((schemas.Predict, b'{"X":[{"a":1,"X":2,"a":3}]}'), NAMED)
@example((schemas.Predict, b'{"X":[{"\\u0061":1,"X":2,"a":3}]}'), NAMED)
@example((schemas.Predict, b'{"X":[[1,2]],"X":[[3,4]]}'), RECIPES[0])
@example((schemas.Predict, b'{"X":[[9007199254740993]]}'), RECIPES[0])
@example((schemas.Predict, b'{"X":[[1,2]],"id":"a"}'), RECIPES[0])
def test_a_single_row_is_packed_as_it_is_shaped(request: tuple[type[Form], bytes], recipe: Any) -> None:
    """A single row of numbers gives the bytes that the strict parser and shaping give, or none."""
    _, body = request
    row = fast_json.decode_row(body)
    numbers = None if row is None else pack_row(recipe, row)
    # The caller checks the width.
    if numbers and len(numbers) == 8 * len(recipe.features or row or ()):
        found: Any = schemas.convert(identity.parse_json(body), schemas.Predict)
        shaped = shape(recipe, found.X, learning=False)
        assert (shaped.n, shaped.numbers, shaped.categories, found.proba) == (1, numbers, [], False)


@pytest.mark.parametrize("body", [b'{"X":[[0.1,2,-3e5]]}', b' { "X" : [ { "a" : 1 , "X" : 2.5 } ] } '])
def test_typical_rows_are_packed(body: bytes) -> None:
    """Rows by position and by name, as clients write them."""
    row = fast_json.decode_row(body)
    assert row is not None
    assert pack_row(NAMED if isinstance(row, dict) else RECIPES[0], row) is not None


def outcome(function: Any) -> Any:
    """Return the result of a function, or the class of the error that it raises."""
    try:
        return function()
    except KeepfitError as error:
        return type(error)


@settings(deadline=None, max_examples=150)
@given(requests(FORMS[:3]), st.sampled_from(RECIPES), st.integers(1, 40))
@example((schemas.Score, b'{"X":[["],",1],["},",2],["a",3]],"y":[1,2,3]}'), RECIPES[1], 8)
@example((schemas.Score, b'{"X":[[1],[2,3]],"y":[1,2]}'), RECIPES[0], 4)
@example((schemas.Score, b'{"X":[[1], [1,2,3]\n,[4]],"y":[1,2,3]}'), RECIPES[0], 1)
@example((schemas.Score, b'{"X":[{"a":null,"X":1},[null,null],{}],"y":[1,2,3]}'), RECIPES[3], 8)
@example((schemas.Predict, b'{"X":[{"a":"x","X":1},{"X":2,"a":"y"},{"a":"x","X":3,"X":4}]}'), RECIPES[1], 20)
def test_large_bodies_give_the_same_rows_in_chunks(request: tuple[type[Form], bytes], recipe: Any, step: int) -> None:
    """A body that is split into chunks anywhere gives the rows, or the class of error, of the whole body."""
    form, body = request
    split = fast_json.split(bytearray(body), form)
    if split is None:
        return
    learning = form is not schemas.Predict

    def parse_whole() -> Any:
        found: Any = schemas.convert(identity.parse_json(body), form)
        optional = [getattr(found, name, None) for name in ("y", "sample_weight")]
        return shape(recipe, found.X, *optional, learning=learning)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fast_json, "STEP_BYTES", step)
        by_chunks = outcome(lambda: rows_body._shape_chunks(body, form, split, recipe, learning=learning))
    assert by_chunks == outcome(parse_whole)


def test_chunks_contain_all_rows() -> None:
    """Chunks have about the size of a step, and no row is lost."""
    rows_sent = [[float(i), i] for i in range(1000)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fast_json, "STEP_BYTES", 500)
        chunks = list(fast_json.row_chunks(msgspec.Raw(json.dumps(rows_sent).encode())))
    assert len(chunks) > 20
    assert [row for chunk in chunks for row in chunk] == rows_sent


def test_a_fault_in_a_later_chunk_has_the_row_number_of_the_request() -> None:
    """Faults in a later chunk have the row number counted from the first row of the request."""
    X = [[float(i)] for i in range(1000)] + [[1e300]]
    body = bytearray(json.dumps({"X": X}).encode())
    split = fast_json.split(body, schemas.Predict)
    assert split is not None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fast_json, "STEP_BYTES", 500)
        with pytest.raises(KeepfitError, match=r"column 0: 1e\+300 .* \(row 1000\)\.") as caught:
            rows_body._shape_chunks(body, schemas.Predict, split, RECIPES[0], learning=False)
    assert [(fault.row, fault.column) for fault in caught.value.faults] == [(1000, 0)]  # type: ignore[attr-defined]
