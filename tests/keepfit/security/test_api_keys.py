"""API keys: stored form, parsing and lookup."""

import hashlib

import pytest

from keepfit.errors import SettingsError
from keepfit.security.api_keys import OPEN, READ, Key, Keys, new_key

DIGEST = hashlib.sha256(b"token").hexdigest()


def only_key(text: str, rate_per_s: float = 0.0) -> Key:
    """Return the one key of a text."""
    key = Keys.from_text(text, rate_per_s).find("token")
    assert key is not None
    return key


def test_a_new_key_is_found_by_its_token_only() -> None:
    """The token finds its key in the stored line; the line, its digest and a changed token find nothing."""
    token, line = new_key("web", ["predict", "learn"], "50/60")
    keys = Keys.from_text(line)
    found = keys.find(token)
    assert found is not None
    assert (found.name, found.rate_per_s, found.burst) == ("web", 50.0, 60)
    assert found.scopes == {OPEN, READ, "predict", "learn"}
    assert token not in line
    for wrong in (line, line.split(":")[2], token + "0", token[:-1], token.lower(), "", "\udc80"):
        assert keys.find(wrong) is None


def test_tokens_are_long_and_all_different() -> None:
    """A token holds 256 random bits in characters that a header allows, behind the prefix of keepfit."""
    tokens = {new_key("a", ["read"])[0] for _ in range(100)}
    assert len(tokens) == 100
    assert all(token.startswith("kf_") and len(token) == 3 + 43 and token.isascii() for token in tokens)


@pytest.mark.parametrize("separator", [",", "\n", " , ", "\r\n", ",\n\n# a comment, with a comma\n"])
def test_keys_are_separated_by_commas_or_white_space(separator: str) -> None:
    """Commas and white space separate keys; comments are ignored."""
    (first, one), (second, two) = new_key("a", ["read"]), new_key("b", ["admin"])
    keys = Keys.from_text(f"{one}{separator}{two}{separator}")
    assert len(keys) == 2
    assert keys.names() == {"a", "b"}
    assert [key.name for token in (first, second) if (key := keys.find(token)) is not None] == ["a", "b"]


def test_an_empty_text_has_no_keys() -> None:
    """An empty text or a comment holds no keys, and a lookup finds nothing."""
    keys = Keys.from_text(" \n# only a comment\n")
    assert len(keys) == 0
    assert keys.find("token") is None


@pytest.mark.parametrize(
    ("rate", "default", "expected"),
    [
        ("", 0.0, (0.0, 1)),
        ("", 5.0, (5.0, 10)),
        (":0", 5.0, (0.0, 1)),
        (":2.5", 0.0, (2.5, 5)),
        (":0.1", 0.0, (0.1, 1)),
        (":10/7", 1.0, (10.0, 7)),
    ],
)
def test_rates(rate: str, default: float, expected: tuple[float, int]) -> None:
    """A key's own rate overrides the default, 0 is no limit, and the burst is twice the rate unless it is given."""
    key = only_key(f"a:predict:{DIGEST}{rate}", default)
    assert (key.rate_per_s, key.burst) == expected


@pytest.mark.parametrize(
    "stored",
    [
        "token",
        f"a:{DIGEST}",
        f"a:root:{DIGEST}",
        f"a:predict+root:{DIGEST}",
        f"a::{DIGEST}",
        f"a:predict+:{DIGEST}",
        f"a:predict:{DIGEST.upper()}",
        f"a:predict:{DIGEST[:-1]}",
        f"a:predict:{DIGEST}:fast",
        f"a:predict:{DIGEST}:-1",
        f"a:predict:{DIGEST}:1/0",
        f"a:predict:{DIGEST}:",
        f"a:predict:{DIGEST}:type=shoes:5",
        f"a:predict:{DIGEST}:5:",
        f"a:predict:{DIGEST}::type=shoes",
        f"a:predict:{DIGEST}:type=a:b",
        f"a/b:predict:{DIGEST}",
        f"é:predict:{DIGEST}",
        f"{'a' * 65}:predict:{DIGEST}",
    ],
)
def test_a_malformed_key_is_named_by_its_position(stored: str) -> None:
    """A malformed key is named by its position and never repeated: it may be a token."""
    with pytest.raises(
        SettingsError, match=r"^KEEPFIT_API_KEYS or its file: key 2 is not name:scopes:sha256"
    ) as caught:
        Keys.from_text(f"first:read:{'0' * 64},{stored}")
    assert stored not in str(caught.value)
    assert DIGEST not in str(caught.value)


def test_two_keys_may_have_one_name() -> None:
    """A client changes to a new token under its name: until the old one is removed, both find a key with that name."""
    (old, line), (new, renewed), (other, third) = (new_key("a", ["learn"], "5") for _ in range(3))
    keys = Keys.from_text(f"{line} {renewed.replace('learn', 'learn+read').removesuffix(':5')}:5/10")
    assert [(key.name, key.rate_per_s) for token in (old, new) if (key := keys.find(token)) is not None] == [
        ("a", 5)
    ] * 2
    assert keys.find(other) is None
    with pytest.raises(SettingsError, match="3 keys have the name 'a'; at most 2 may, the old and the new key"):
        Keys.from_text(f"{line} b:read:{DIGEST} {renewed} {third}")


@pytest.mark.parametrize(
    "second", ["a:admin:{}:5/9", "a:learn:{}", "a:learn:{}:5/8", "a:learn:{}:6/9", "a:learn:{}:5/9:type=shoes"]
)
def test_keys_of_one_name_have_the_same_scopes_rate_and_conditions(second: str) -> None:
    """A client has the same scopes, rate and conditions, whichever of its tokens it sends."""
    with pytest.raises(SettingsError, match="the name 'a' must have the same scopes, rate and conditions"):
        Keys.from_text(f"a:learn:{'0' * 64}:5/9 b:read:{DIGEST} {second.format('1' * 64)}")


@pytest.mark.parametrize("name", ["a", "b"])
def test_a_token_belongs_to_one_key(name: str) -> None:
    """Two keys with the same token are refused, so that a rate limit and a log line belong to one name."""
    with pytest.raises(SettingsError, match="two keys have the same token"):
        Keys.from_text(f"a:read:{DIGEST} {name}:read:{DIGEST}")


@pytest.mark.parametrize(
    ("part", "rate", "where"),
    [
        (":type=shoes", 0.0, (("type", ("shoes",)),)),
        (":5/9:type=shoes", 5.0, (("type", ("shoes",)),)),
        (":5:brand=a%2Cb%3A%20c+brand=puma+type=5", 5.0, (("brand", ("a,b: c", "puma")), ("type", ("5",)))),
        (":5", 5.0, ()),
        ("", 0.0, ()),
    ],
)
def test_a_key_may_be_bound_to_metadata(part: str, rate: float, where: tuple[tuple[str, tuple[str, ...]], ...]) -> None:
    """Conditions follow the rate, if there is one; stored keys without them are unrestricted, as before."""
    key = only_key(f"a:predict:{DIGEST}{part}")
    assert (key.rate_per_s, key.where) == (rate, where)
    assert key.may_use({"type": "hats"}) is (not where)


def test_a_new_key_keeps_its_conditions() -> None:
    """Conditions with separators of keys in them survive the stored line, among other keys."""
    where = ["type=shoes", "brand=nike, inc: 5/6", "size=9"]
    (token, line), (_, other) = new_key("a", ["predict"], "5/9", where), new_key("b", ["read"], where=["type=hats"])
    key = Keys.from_text(f"{other},{line}\n").find(token)
    assert key is not None
    assert (key.name, key.rate_per_s, key.burst) == ("a", 5.0, 9)
    assert key.may_use({"type": "shoes", "brand": "nike, inc: 5/6", "size": 9, "more": 1})
    assert not key.may_use({"type": "shoes", "brand": "nike", "size": 9})


def test_malformed_conditions_are_named_by_the_position_of_their_key() -> None:
    """A key with conditions that cannot be read, or never match, prevents the start; the message has its position."""
    for stored in ("type=%zz", "type=", "a.b=1", "type=shoes+"):
        with pytest.raises(SettingsError, match=r"^KEEPFIT_API_KEYS or its file: key 2: ") as caught:
            Keys.from_text(f"first:read:{'0' * 64},a:predict:{DIGEST}:{stored}")
        assert DIGEST not in str(caught.value)


def test_a_change_of_conditions_is_noticed() -> None:
    """The comparison of two sets of keys says whose conditions changed."""
    before, after = (Keys.from_text(f"a:predict:{DIGEST}{where}") for where in ("", ":type=shoes"))
    assert after.changes_since(before) == {"added": [], "removed": [], "changed": {"a": ["where"]}}
    assert after.changes_since(after)["changed"] == {}


def test_reasons_of_failures_are_not_for_bound_keys() -> None:
    """A key that administers some models only does not see the addresses of the service."""
    assert only_key(f"a:admin:{DIGEST}").sees_reasons
    assert not only_key(f"a:admin:{DIGEST}:type=shoes").sees_reasons


@pytest.mark.parametrize(("name", "scopes", "rate"), [("a b", "read", ""), ("a", "root", ""), ("a", "read", "fast")])
def test_an_invalid_name_scope_or_rate_makes_no_key(name: str, scopes: str, rate: str) -> None:
    """A new key with a name, scope or rate that could not be parsed again is refused."""
    with pytest.raises(SettingsError):
        new_key(name, [scopes], rate)


def test_repr_of_a_key_has_no_digest() -> None:
    """repr() of a key has its name and not its digest."""
    key = only_key(f"a:predict:{DIGEST}")
    assert "'a'" in repr(key)
    assert "digest" not in repr(key)
