"""Identity: strict JSON, canonical text, hash, and the rules for metadata."""

import hashlib
import json
import math
import struct
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keepfit import identity
from keepfit.errors import InvalidError, MalformedError
from keepfit.identity import (
    METADATA_BYTES_MAX,
    METADATA_DEPTH_MAX,
    canonical,
    check_metadata,
    hash_of,
    hash_of_text,
    parse_json,
)
from tests.comparison_counter import ComparisonCounter

VECTORS = Path(__file__).parents[1] / "fixtures/metadata_hashes.json"

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
# Doubles between 2^53 and 1e21 are written without an exponent, so a reader parses them as integers, too large ones.
numbers = st.integers(-(2**53) + 1, 2**53 - 1) | st.floats(allow_nan=False, allow_infinity=False).filter(
    lambda number: not 2**53 <= abs(number) < 1e21
)
values = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
)

# RFC 8785, appendix B: bits of an IEEE-754 double, and its only text.
RFC_8785_NUMBERS = [
    ("0000000000000000", "0"),
    ("8000000000000000", "0"),
    ("0000000000000001", "5e-324"),
    ("8000000000000001", "-5e-324"),
    ("7fefffffffffffff", "1.7976931348623157e+308"),
    ("ffefffffffffffff", "-1.7976931348623157e+308"),
    ("4340000000000000", "9007199254740992"),
    ("c340000000000000", "-9007199254740992"),
    ("4430000000000000", "295147905179352830000"),
    ("44b52d02c7e14af5", "9.999999999999997e+22"),
    ("44b52d02c7e14af6", "1e+23"),
    ("44b52d02c7e14af7", "1.0000000000000001e+23"),
    ("444b1ae4d6e2ef4e", "999999999999999700000"),
    ("444b1ae4d6e2ef4f", "999999999999999900000"),
    ("444b1ae4d6e2ef50", "1e+21"),
    ("3eb0c6f7a0b5ed8c", "9.999999999999997e-7"),
    ("3eb0c6f7a0b5ed8d", "0.000001"),
    ("41b3de4355555553", "333333333.3333332"),
    ("41b3de4355555554", "333333333.33333325"),
    ("41b3de4355555555", "333333333.3333333"),
    ("41b3de4355555556", "333333333.3333334"),
    ("41b3de4355555557", "333333333.33333343"),
    ("becbf647612f3696", "-0.0000033333333333333333"),
    ("43143ff3c1cb0959", "1424953923781206.2"),
]


def nested(depth: int) -> Any:
    """Return `depth` nested lists."""
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(("bits", "text"), RFC_8785_NUMBERS)
def test_numbers_have_the_text_of_rfc_8785(bits: str, text: str) -> None:
    """Every number of RFC 8785's appendix B has the text that is given there."""
    (number,) = struct.unpack(">d", bytes.fromhex(bits))
    assert canonical(number) == text.encode()


def test_the_example_of_rfc_8785_section_3_2_2() -> None:
    """The RFC's sample document becomes the RFC's canonical bytes."""
    given_text = rb"""{
        "numbers": [333333333.33333329, 1E30, 4.50, 2e-3, 0.000000000000000000000000001],
        "string": "\u20ac$\u000F\u000aA'\u0042\u0022\u005c\\\"\/",
        "literals": [null, true, false]
    }"""
    expected = (
        r'{"literals":[null,true,false],"numbers":[333333333.3333333,1e+30,4.5,0.002,1e-27],'
        r'"string":"€$\u000f\nA' + "'" + r'B\"\\\\\"/"}'
    )
    assert canonical(parse_json(given_text)) == expected.encode()


def test_the_example_of_rfc_8785_section_3_2_3() -> None:
    """Keys are sorted by UTF-16 code units, as in the RFC's sample."""
    shuffled = ["\u20ac", "\r", "\ufb33", "1", "\U0001f600", "\u0080", "\u00f6"]
    expected = ["\r", "1", "\u0080", "\u00f6", "\u20ac", "\U0001f600", "\ufb33"]
    assert list(json.loads(canonical(dict.fromkeys(shuffled, 0)))) == expected


@pytest.mark.parametrize(
    ("metadata", "digest"),
    [
        # printf '%s' '{"type":"shoes"}' | sha256sum
        ({"type": "shoes"}, "2bbe726a87eaa66f09234fc94e674c5a2da854e0a8979183d4f3e7160bed8ecf"),
        # printf '%s' '{"a":[1,2.5,"é"],"b":{"x":true,"y":null},"type":"shoes"}' | sha256sum
        (
            {"type": "shoes", "b": {"y": None, "x": True}, "a": [1.0, 2.5, "é"]},
            "90744290240a2a8f95eace180180129cb9aba5edebde2e2ed007143788e222ae",
        ),
    ],
)
def test_the_hash_is_that_of_other_tools(metadata: dict[str, Any], digest: str) -> None:
    """The hash is the SHA-256 that coreutils prints for the canonical text."""
    assert hash_of(metadata) == digest


@settings(deadline=None)
@given(values, st.randoms(use_true_random=False))
def test_hash_ignores_order_of_keys_and_spelling_of_numbers(value: Any, random: Any) -> None:
    """Shuffled keys and integral floats written as integers give the same hash; it is SHA-256 of canonical()."""

    def respelled(item: Any) -> Any:
        if isinstance(item, dict):
            pairs = [(key, respelled(inner)) for key, inner in item.items()]
            random.shuffle(pairs)
            return dict(pairs)
        if isinstance(item, list):
            return [respelled(inner) for inner in item]
        if isinstance(item, float) and item.is_integer() and abs(item) < 2**53:
            return int(item)
        return item

    document = {"type": "shoes", "value": value}
    assert hash_of(respelled(document)) == hash_of(document)
    assert hash_of(document) == hashlib.sha256(canonical(document)).hexdigest()


@settings(deadline=None)
@given(values)
def test_canonical_text_reads_back_as_the_same_value(value: Any) -> None:
    """Canonical text parses to the same value, and its canonical text is itself."""
    text = canonical(value)
    assert parse_json(text) == value
    assert canonical(parse_json(text)) == text


def test_one_is_one_point_zero_and_not_true() -> None:
    """1 and 1.0 name the same model; true, "1" and null name different ones."""
    hashes = [hash_of({"type": "shoes", "session": session}) for session in (1, 1.0, True, "1", None)]
    assert hashes[0] == hashes[1]
    assert len(set(hashes)) == 4


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" ",
        b"\xef\xbb\xbf{}",
        b"{",
        b"{} {}",
        b"{'a': 1}",
        b"[1,]",
        b"nul",
        b"\xff\xfe{}",
        b'"\xc3\x28"',
        b'"\xed\xa0\x80"',
        b'"\x00"',
        rb'"\ud800"',
        rb'"\uD83D"',
        rb'"\uDE00\uD83D"',
        rb'{"\udfff": 1}',
        b"[" * 100_000,
        b"[" * 100_000 + b"]" * 100_000,
        b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
        b"[" + b"9" * 4_301 + b"]",
        b'{"a": 1, "a": 1}',
        b'[{"b": {"a": 1, "c": 2, "a": 3}}]',
        rb'{"a": 1, "\u0061": 2}',
    ],
    ids=lambda body: repr(body[:24]),
)
def test_invalid_json_is_malformed(body: bytes) -> None:
    """Bodies that are not UTF-8, not JSON, too deep, or ambiguous are MalformedError (400)."""
    with pytest.raises(MalformedError):
        parse_json(body)


def test_deep_nesting_is_malformed_in_a_thread_too() -> None:
    """Large bodies are parsed in threads, whose smaller stack must not crash on deep nesting."""
    caught: list[BaseException] = []

    def parse() -> None:
        try:
            parse_json(b"[" * 1_000_000)
        except MalformedError as error:
            caught.append(error)

    thread = threading.Thread(target=parse)
    thread.start()
    thread.join()
    assert len(caught) == 1


def test_a_duplicate_key_is_named() -> None:
    """The message names the key that occurs twice and cuts a long one."""
    with pytest.raises(MalformedError, match="The key 'size' occurs twice"):
        parse_json(b'{"size": 1, "colour": 2, "size": 3}')
    long = b'"' + b"k" * 10_000 + b'"'
    with pytest.raises(MalformedError) as caught:
        parse_json(b"{" + long + b":1," + long + b":2}")
    assert len(str(caught.value)) < 100


def test_a_duplicate_key_among_many_is_found_in_linear_time() -> None:
    """A duplicate last key among a thousand is found by hash, not by comparing each key with all others."""
    counter = ComparisonCounter()
    pairs: list[tuple[str, Any]] = [(counter.text(f"k{i}"), 1) for i in range(1000)]
    with pytest.raises(MalformedError, match="The key 'z' occurs twice"):
        identity._unique([*pairs, (counter.text("z"), 1), (counter.text("z"), 2)])
    assert 0 < counter.comparisons < 10_000


@pytest.mark.parametrize("name", ["NaN", "Infinity", "-Infinity"])
def test_nan_and_infinity_are_invalid(name: str) -> None:
    """NaN and the infinities raise InvalidError (422) anywhere in a document."""
    with pytest.raises(InvalidError, match="is not a finite number"):
        parse_json(f'{{"X": [[{name}]]}}'.encode())


@pytest.mark.parametrize(
    ("body", "value"),
    [
        (b"[]", []),
        (b'{"a": {"a": 1}, "b": {"a": 1}}', {"a": {"a": 1}, "b": {"a": 1}}),
        (rb'"\ud83d\ude00"', "\U0001f600"),
        (rb'"\\ud800"', "\\ud800"),
        (b"[-0.0, 1e-400, 1e308]", [-0.0, 0.0, 1e308]),
        (b"9" * 4_300, int("9" * 4_300)),
        ('"é\u2028"'.encode(), "é\u2028"),
    ],
)
def test_unusual_json_is_parsed(body: bytes, value: Any) -> None:
    """JSON that RFC 8259 allows and that has one meaning is accepted."""
    assert parse_json(body) == value


@settings(deadline=None)
@given(st.binary(max_size=60) | st.text(st.sampled_from('{}[]",:0123456789.eE+-\\udUD8ntaf '), max_size=60))
def test_parse_json_raises_only_keepfit_errors(body: bytes | str) -> None:
    """Arbitrary bytes parse or raise one of the two errors; a parsed value can be encoded as UTF-8."""
    raw = body if isinstance(body, bytes) else body.encode()
    try:
        value = parse_json(raw)
    except (MalformedError, InvalidError):
        return
    json.dumps(value, ensure_ascii=False).encode("utf-8")


@pytest.mark.parametrize(
    "metadata",
    [None, [], "shoes", 1, True, {}, {"type": ""}, {"type": 1}, {"type": None}, {"type": ["shoes"]}, {"Type": "shoes"}],
)
def test_metadata_must_be_an_object_with_a_type(metadata: Any) -> None:
    """Metadata that is not an object or lacks a non-empty string type raises InvalidError."""
    with pytest.raises(InvalidError, match=r"must be a JSON object|non-empty string 'type'"):
        check_metadata(metadata)


@pytest.mark.parametrize("timestamp", [1732100000.5, "now", None])
def test_a_timestamp_is_refused(timestamp: Any) -> None:
    """Metadata with a timestamp is refused: it would name another model with every request."""
    with pytest.raises(InvalidError, match="timestamp"):
        check_metadata({"type": "shoes", "timestamp": timestamp})
    check_metadata({"type": "shoes", "made": {"timestamp": timestamp}})


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ({"": 1}, "key '' in metadata is empty"),
        ({"$where": 1}, r"key '\$where' in metadata is empty, begins with '\$'"),
        ({"a.b": 1}, "holds '.'"),
        ({"a": {"b": [{"$gt": ""}]}}, r"key '\$gt' in metadata.a.b\[0\]"),
        ({"a\0": 1}, "NUL"),
        ({"a": "x\0y"}, "metadata.a holds a NUL"),
        ({"a": ["\0"]}, r"metadata.a\[0\] holds a NUL"),
        ({"cafe\u0301": 1}, "normal form C"),
        ({"a": "cafe\u0301"}, "metadata.a is not in Unicode normal form C"),
        ({"a": 2**53}, r"metadata.a: 9007199254740992 is 2\^53 or more"),
        ({"a": [-(2**53)]}, r"metadata.a\[0\]: -9007199254740992 is 2\^53"),
        ({"a": 10**4_000}, r"2\^53 or more"),
        ({"a": 2.0**53}, r"2\^53 or more"),
        ({"a": -9.9e20}, r"2\^53 or more"),
        ({"a": float("inf")}, "no canonical JSON form"),
        ({"a": float("nan")}, "no canonical JSON form"),
        ({"a": "\ud800"}, "no canonical JSON form"),
        ({"\ud800": "a"}, "no canonical JSON form"),
        ({"a": object()}, "no canonical JSON form"),
        ({"a": "x" * METADATA_BYTES_MAX}, "larger than 16384 bytes"),
        ({"a": nested(METADATA_DEPTH_MAX)}, "nested deeper than 8 levels"),
        ({"a": nested(50_000)}, "nested deeper than 8 levels"),
    ],
    ids=lambda value: repr(value)[:30] if not isinstance(value, dict) else "",
)
def test_wrong_metadata_is_refused(extra: dict[str, Any], words: str) -> None:
    """Keys and values that another language or MongoDB reads differently are refused; the message has their path."""
    with pytest.raises(InvalidError, match=words) as caught:
        check_metadata({"type": "shoes", **extra})
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("where", ["key", "path"])
def test_messages_do_not_repeat_long_keys(where: str) -> None:
    """A message does not repeat a key as long as a body."""
    long = "k" * 1_000_000
    wrong = {f"${long}": 1} if where == "key" else {long: "\0"}
    with pytest.raises(InvalidError) as caught:
        check_metadata({"type": "shoes", **wrong})
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    "metadata",
    [
        {"type": "shoes"},
        {"type": "shoes", "session": 2**53 - 1, "low": -(2**53) + 1, "big": 1e21, "none": None, "yes": True},
        {"type": "schuhe für männer", "key with $ inside": [{}, [], ""], "ligature": "ﬁ"},
        {"type": "t", "a": nested(METADATA_DEPTH_MAX - 1)},
        # {"a":"…","type":"t"} has 19 bytes besides the dots.
        {"type": "t", "a": "x" * (METADATA_BYTES_MAX - 19)},
    ],
    ids=lambda metadata: repr(metadata)[:40],
)
def test_valid_metadata_is_returned_unchanged(metadata: dict[str, Any]) -> None:
    """Metadata at the limits is accepted and returned as the same object."""
    assert check_metadata(metadata) is metadata
    assert len(hash_of(metadata)) == 64


def test_the_size_limit_counts_canonical_bytes() -> None:
    """The limit of 16 KiB counts the bytes of canonical UTF-8 text exactly."""
    fits = {"type": "tt", "a": "é" * ((METADATA_BYTES_MAX - 20) // 2)}
    assert len(canonical(fits)) == METADATA_BYTES_MAX
    check_metadata(fits)
    with pytest.raises(InvalidError, match="larger"):
        check_metadata({**fits, "a": fits["a"] + "x"})


@settings(deadline=None)
@given(st.dictionaries(texts, values, max_size=4), texts)
def test_checked_metadata_always_has_a_hash(extra: dict[str, Any], type_: str) -> None:
    """Accepted metadata can be hashed, and has the same hash after a round trip through JSON."""
    metadata = {**extra, "type": type_}
    try:
        checked = check_metadata(metadata)
    except InvalidError:
        return
    assert hash_of(parse_json(json.dumps(checked).encode())) == hash_of(metadata)


def test_infinity_written_as_a_large_number_is_refused() -> None:
    """1e400 is valid JSON but infinite as a double: metadata with it is refused."""
    metadata = parse_json(b'{"type": "shoes", "size": 1e400}')
    assert math.isinf(metadata["size"])
    with pytest.raises(InvalidError):
        check_metadata(metadata)


@pytest.mark.parametrize("filler", ["", "x" * 5000])
def test_the_hash_of_a_text_is_the_hash_of_its_metadata(filler: str) -> None:
    """The text of metadata gives their hash, in any spelling, small or large, cached or not."""
    metadata = {"type": "shoes", "é": [1, 2.5], "filler": filler}
    for text in (json.dumps(metadata), json.dumps(metadata, indent=2, ensure_ascii=False)):
        for _ in range(2):
            assert hash_of_text(text.encode()) == hash_of(metadata)


@pytest.mark.parametrize("text", [b"", b"[]", b"{", b'{"type":"a","type":"a"}', b'{"type":"a","timestamp":1}', b"NaN"])
def test_invalid_metadata_text_is_refused_each_time(text: bytes) -> None:
    """The hash of invalid metadata raises on every call; errors are not cached."""
    for _ in range(2):
        with pytest.raises((MalformedError, InvalidError)):
            hash_of_text(text)


@pytest.mark.parametrize("vector", json.loads(VECTORS.read_text()), ids=lambda vector: vector["name"])
def test_hashes_are_those_of_all_clients(vector: dict[str, Any]) -> None:
    """Every shared vector has its canonical text and hash, or is refused; the Node.js client reads the same file."""
    text = vector["json"].encode()
    if vector.get("refused"):
        with pytest.raises((InvalidError, MalformedError)):
            hash_of_text(text)
    else:
        assert canonical(parse_json(text)).decode() == vector["canonical"]
        assert hash_of_text(text) == hash_of(check_metadata(parse_json(text))) == vector["hash"]
        assert hashlib.sha256(vector["canonical"].encode()).hexdigest() == vector["hash"]


def test_the_shared_vectors_are_many() -> None:
    """The file has at least 200 vectors, some of which are refused, and no two of one text."""
    vectors = json.loads(VECTORS.read_text())
    assert len({vector["json"] for vector in vectors}) == len(vectors) >= 200
    assert sum("refused" in vector for vector in vectors) >= 50
