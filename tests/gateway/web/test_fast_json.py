"""Fast decoding: it gives what the strict parser gives, or leaves the request to it."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from keepfit import identity
from keepfit.errors import KeepfitError
from keepfit.recipe.recipe import parse
from keepfit.rows.shaping import shape
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
    """Texts with commas between them and space around them."""
    return st.tuples(st.lists(items, max_size=4), spaces).map(lambda p: begin + f"{p[1]},".join(p[0]) + p[1] + end)


def objects(keys: Any, values: Any) -> Any:
    """Texts of objects whose keys may repeat."""
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
# Most requests are good ones but for a thing or two, or they would not get past their first field.
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
    """Texts with the fields of a form, now and then one more."""
    wanted = [USUAL_FIELDS[name] for name in form.__struct_fields__]
    more = st.lists(fields, max_size=1) | st.just([])
    return (
        st.tuples(st.tuples(*wanted).map(list), more)
        .flatmap(lambda pair: st.permutations(pair[0] + pair[1]))
        .map(lambda parts: "{" + ",".join(parts) + "}")
    )


def requests(forms_taken: list[type[Form]]) -> Any:
    """A form, and bytes that may be a request of it."""
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
    """What the strict parser gives: everything of the request, or the class of its error."""
    try:
        found = schemas.convert(identity.parse_json(body), form)
        named = identity.hash_of(identity.check_metadata(found.metadata)) if hasattr(found, "metadata") else None
    except KeepfitError as error:
        return type(error)
    return written(found, named)


def written(found: Any, named: str | None) -> str:
    """Everything of a request as text, which tells 1 from 1.0, 0.0 from -0.0, and the order of keys."""
    optional = [getattr(found, name, default) for name, default in (("y", None), ("sample_weight", None))]
    return repr((found.X, *optional, getattr(found, "proba", False), named))


@settings(deadline=None, max_examples=200)
@given(requests(FORMS))
def test_what_is_decoded_fast_is_what_the_strict_parser_gives(request: tuple[type[Form], bytes]) -> None:
    """Whatever the text, the fast way gives the strict parser's values and hash, or nothing."""
    form, body = request
    found = fast_json.decode(body, form)
    if found is not None:
        assert written(found, found.model_hash or None) == strictly(body, form)


@pytest.mark.parametrize("body", EXAMPLES)
@pytest.mark.parametrize("form", FORMS)
def test_doubtful_texts(form: type[Form], body: bytes) -> None:
    """Repeated keys in all spellings, brackets in strings, what is no UTF-8: read as the strict parser does."""
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
def test_ordinary_requests_take_the_fast_way(form: type[Form], body: bytes) -> None:
    """Requests as clients write them need no strict parser."""
    for _ in range(2):
        found = fast_json.decode(body, form)
        assert found is not None
        assert written(found, found.model_hash or None) == strictly(body, form)


def outcome(function: Any) -> Any:
    """What a function returns, or the class of the error it raises."""
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
def test_large_bodies_become_the_same_rows_part_by_part(
    request: tuple[type[Form], bytes], recipe: Any, step: int
) -> None:
    """Split and cut anywhere, a body gives the rows, or the kind of error, that it gives as a whole."""
    form, body = request
    split = fast_json.split(bytearray(body), form)
    if split is None:
        return
    learning = form is not schemas.Predict

    def as_a_whole() -> Any:
        found: Any = schemas.convert(identity.parse_json(body), form)
        optional = [getattr(found, name, None) for name in ("y", "sample_weight")]
        return shape(recipe, found.X, *optional, learning=learning)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fast_json, "STEP_BYTES", step)
        by_parts = outcome(lambda: rows_body._shape_chunks(body, form, split, recipe, learning=learning))
    assert by_parts == outcome(as_a_whole)


def test_parts_are_many_and_hold_all_rows() -> None:
    """Rows come in parts of about the step's size, none lost."""
    rows_sent = [[float(i), i] for i in range(1000)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fast_json, "STEP_BYTES", 500)
        parts = list(fast_json.row_chunks(msgspec.Raw(json.dumps(rows_sent).encode())))
    assert len(parts) > 20
    assert [row for part in parts for row in part] == rows_sent


def test_a_wrong_row_far_in_is_named_by_its_place_in_the_request() -> None:
    """Faults of a later part carry the row counted from the request's first."""
    X = [[float(i)] for i in range(1000)] + [[1e300]]
    body = bytearray(json.dumps({"X": X}).encode())
    split = fast_json.split(body, schemas.Predict)
    assert split is not None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fast_json, "STEP_BYTES", 500)
        with pytest.raises(KeepfitError, match=r"column 0: 1e\+300 .* \(row 1000\)\.") as caught:
            rows_body._shape_chunks(body, schemas.Predict, split, RECIPES[0], learning=False)
    assert [(fault.row, fault.column) for fault in caught.value.faults] == [(1000, 0)]  # type: ignore[attr-defined]
