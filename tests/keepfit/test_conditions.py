"""Conditions on metadata: what they match, their stored form, and which of them are refused."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keepfit import conditions
from keepfit.errors import InvalidError, MalformedError
from keepfit.identity import check_metadata

TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12)
ALLOWED = re.compile(r"[\w.~%+=-]*", re.ASCII)


def is_possible(key: str, value: str) -> bool:
    """Return whether metadata can have this value under this key."""
    try:
        check_metadata({"type": "x", key: value})
    except InvalidError:
        return False
    return True


@given(st.lists(st.tuples(TEXT, TEXT).filter(lambda pair: "=" not in pair[0] and is_possible(*pair)), max_size=6))
def test_the_stored_form_holds_every_condition(pairs: list[tuple[str, str]]) -> None:
    """Whatever metadata may hold, its condition is parsed, stored without a separator, read again, and matches."""
    parsed = conditions.parse([f"{key}={value}" for key, value in pairs])
    stored = conditions.encode(parsed)
    assert ALLOWED.fullmatch(stored)
    assert (conditions.decode(stored) if stored else ()) == parsed
    for choice in (dict(pairs), dict(reversed(pairs))):
        assert conditions.matches(choice, parsed)
        for key in choice:
            assert (
                not conditions.matches({**choice, key: choice[key] + "."}, parsed)
                or (
                    key,
                    choice[key] + ".",
                )
                in pairs
            )
            assert not conditions.matches({name: choice[name] for name in choice if name != key}, parsed)


def test_all_keys_must_match_and_one_value_of_each() -> None:
    """Conditions on several keys must all hold, of several values of one key one; order and repeats do not matter."""
    where = conditions.parse(["type=shoes", "brand=nike", "brand=puma", "type=shoes"])
    assert where == conditions.parse(["brand=puma", "type=shoes", "brand=nike"])
    for brand, expected in (("nike", True), ("puma", True), ("asics", False), (["nike"], False), (None, False)):
        assert conditions.matches({"type": "shoes", "brand": brand}, where) is expected
    assert not conditions.matches({"type": "hats", "brand": "nike"}, where)
    assert conditions.matches({}, ())


@pytest.mark.parametrize(
    ("text", "matching", "others"),
    [
        ("2001", ["2001", 2001, 2001.0], [2001.5, True, [2001], {"a": 2001}]),
        ("1", ["1", 1, 1.0], [True]),
        ("true", ["true", True], [1, "True"]),
        ("0", [0, -0.0, "0"], [False, "", None]),
        ("null", ["null"], [None]),
        ("", [""], [None, 0]),
        ("1e400", ["1e400"], [10**15]),
        ("9" * 20, ["9" * 20], []),
    ],
)
def test_a_value_is_compared_by_what_it_may_stand_for(text: str, matching: list[object], others: list[object]) -> None:
    """Text matches the string, and the number or boolean that it is written as, never another type."""
    where = conditions.parse([f"a={text}"])
    assert [value for value in matching if not conditions.matches({"a": value}, where)] == []
    assert [value for value in others if conditions.matches({"a": value}, where)] == []


@pytest.mark.parametrize(
    ("argument", "error", "message"),
    [
        ("type", MalformedError, "'type' is not key=value, as type=shoes is"),
        ("=shoes", InvalidError, "'' is no key of metadata"),
        ("$where=1", InvalidError, "'$where' is no key of metadata"),
        ("fit.size=1", InvalidError, "Values inside other values cannot be compared"),
        ("timestamp=1", InvalidError, "'timestamp' is no key of metadata"),
        ("type=", InvalidError, "the type of a model is never empty"),
        ("a=\0", InvalidError, "the value of the condition on 'a' holds something that is not text"),
        ("a=\ud800", InvalidError, "the value of the condition on 'a' holds something that is not text"),
        ("a=e\u0301", InvalidError, "the value of the condition on 'a' is not in Unicode normal form C"),
        ("a=" + "x" * conditions.TEXT_MAX, InvalidError, "longer than 4096 characters"),
    ],
)
def test_a_condition_that_never_matches_is_refused(argument: str, error: type[Exception], message: str) -> None:
    """A condition that is none, that no metadata can fulfil, or that is too long is refused with the reason."""
    with pytest.raises(error, match=re.escape(message)):
        conditions.parse([argument])


@pytest.mark.parametrize(
    "stored", ["", "a", "a=b+", "a=%", "a=%zz", "a=b c", "a=b:c", "a=b=c", "a=é", "a=%ff", "%2Ea=b"]
)
def test_a_malformed_stored_form_is_refused(stored: str) -> None:
    """A stored form that :func:`encode` does not write, and that has no certain meaning, is refused."""
    with pytest.raises((MalformedError, InvalidError)):
        conditions.decode(stored)
