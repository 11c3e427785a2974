"""Kinds of columns, missing values and expanded timestamps, against pandas and scikit-learn."""

import json
import math
import pickle
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import preprocessing
from sklearn.feature_extraction import FeatureHasher
from sklearn.feature_extraction.text import HashingVectorizer

from keepfit.errors import InvalidError
from keepfit.model.columns import Columns
from keepfit.recipe.recipe import Recipe, from_text, parse
from keepfit.rows.chunks import Collector
from keepfit.rows.rows import Rows
from keepfit.rows.shaping import shape
from keepfit.rows.values import TEXT_LENGTH_MAX, TIME_END, TIME_MIN
from keepfit.scoring import timestamps
from keepfit.store.dead_letters import decode_payload

SGD = {"estimator": "SGDRegressor"}
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
LABELS: list[Any] = ["nike", "puma", "", "é", 1, "1", "null", "None"]
WORDS = ["", "red shoes", "Red red RED", "a b c é", "shoes: 42!", "x" * 300, "\n"]

NUMERIC = ("number", "timestamp", "boolean")

missing_numbers: Any = st.sampled_from([{}, {"missing": "mean"}, {"missing": "zero"}, {"missing": "indicator"}])
missing_words: Any = st.sampled_from([{}, {"missing": "zero"}, {"missing": "indicator"}])
expansions = st.lists(st.sampled_from(["hour", "weekday", "month", "seconds"]), unique=True, max_size=4)
counting: Any = st.sampled_from(
    [
        {},
        {"analyzer": "char_wb", "ngram_range": [2, 3], "norm": None},
        {"lowercase": False, "alternate_sign": False, "norm": "l1"},
    ]
)
feature: Any = st.one_of(
    missing_numbers.map(lambda m: {"type": "number", **m}),
    missing_numbers.map(lambda m: {"type": "boolean", **m}),
    missing_words.map(lambda m: {"type": "category", **m}),
    st.tuples(missing_numbers, expansions).map(lambda p: {"type": "timestamp", **p[0], "expand": p[1]}),
    st.tuples(missing_words, counting).map(lambda p: {"type": "text", "n_features": 7, **p[0], **p[1]}),
)
present = {
    "number": st.floats(-1e6, 1e6) | st.integers(-(10**6), 10**6),
    "boolean": st.booleans(),
    "category": st.sampled_from(LABELS),
    "text": st.sampled_from(WORDS),
    "timestamp": st.floats(TIME_MIN, TIME_END, exclude_max=True) | st.integers(-(10**9), 2 * 10**9),
}


@st.composite
def streams(draw: st.DrawFn) -> tuple[dict[str, Any], list[list[list[Any]]], list[list[Any]]]:
    """Draw a recipe, batches of rows to learn, and rows to predict, which may have labels that were not learned."""
    features = draw(st.dictionaries(st.sampled_from(["a", "b", "at", "X", "ü"]), feature, min_size=1, max_size=5))
    numeric = any(options["type"] in NUMERIC for options in features.values())
    document = {
        **SGD,
        "features": features,
        "scaler": draw(st.sampled_from([None, "StandardScaler", "MinMaxScaler", "MaxAbsScaler"])) if numeric else None,
        "encoding": draw(st.sampled_from(["ordinal", "onehot", "hash"])),
        "max_categories": 3,
        "n_features": 6,
    }
    values = [present[o["type"]] | (st.none() if "missing" in o else st.nothing()) for o in features.values()]
    batch = st.lists(st.tuples(*values).map(list), min_size=1, max_size=4)
    return document, draw(st.lists(batch, min_size=1, max_size=4)), draw(batch)


class ByHand:
    """The same columns computed by pandas and scikit-learn from one frame of all learned rows."""

    def __init__(self, document: dict[str, Any]) -> None:
        self.document = document
        self.features: dict[str, dict[str, Any]] = document["features"]
        name = document["scaler"]
        self.scaler = None if name is None else getattr(preprocessing, name)()
        self.learned = pd.DataFrame(columns=list(self.features), dtype=object)

    def frame(self, X: list[list[Any]]) -> pd.DataFrame:
        """Return rows as a frame that distinguishes None from NaN."""
        return pd.DataFrame(X, columns=list(self.features), dtype=object)

    def learn(self, X: list[list[Any]]) -> None:
        """Store rows, and let the scaler learn them."""
        frame = self.frame(X)
        self.learned = pd.concat([self.learned, frame], ignore_index=True) if len(self.learned) else frame
        if self.scaler is not None:
            self.scaler.partial_fit(self.numbers(frame).to_numpy())

    def numbers(self, frame: pd.DataFrame) -> pd.DataFrame:
        """Return numbers, booleans and timestamps, expanded, then imputed."""
        columns = {}
        for name, options in self.features.items():
            if options["type"] in NUMERIC:
                for part in options.get("expand") or ["seconds"]:
                    mean, count = 0.0, 0
                    for value in self.learned[name]:
                        if value is not None:
                            mean, count = mean + by_datetime(value, part), count + 1
                    fill = mean / count if count and options.get("missing") != "zero" else 0.0
                    columns[name, part] = [fill if v is None else by_datetime(v, part) for v in frame[name]]
        return pd.DataFrame(columns, dtype=float)

    def matrix(self, X: list[list[Any]]) -> Any:
        """Return the matrix of the estimator, shape (n, width)."""
        frame = self.frame(X)
        numbers = self.numbers(frame)
        if self.scaler is not None:
            numbers[:] = self.scaler.transform(numbers.to_numpy())
        blocks: list[Any] = []
        for name, options in self.features.items():
            gone = frame[name].isna()
            if options["type"] == "text":
                given = {k: v for k, v in options.items() if k not in ("type", "missing")}
                if "ngram_range" in given:
                    given["ngram_range"] = tuple(given["ngram_range"])
                blocks.append(HashingVectorizer(**given).transform(frame[name].where(~gone, "")).toarray())
            elif options["type"] == "category":
                blocks.append(self.category(name, frame[name].tolist()))
            else:
                blocks.append(numbers[name].to_numpy())
            if options.get("missing") == "indicator" and options["type"] != "category":
                blocks.append(gone.to_numpy(float)[:, None])
        categories = [name for name, options in self.features.items() if options["type"] == "category"]
        if self.document["encoding"] == "hash" and categories:
            hasher = FeatureHasher(self.document["n_features"], input_type="string")
            blocks.append(hasher.transform([self.words(row) for row in frame[categories].to_dict("records")]).toarray())
        return np.ascontiguousarray(np.hstack(blocks))

    def words(self, row: dict[str, Any]) -> list[str]:
        """Return the strings of a row that are hashed."""
        own = {name for name in row if self.features[name].get("missing") == "indicator"}
        pairs = [pair for pair in row.items() if pair[1] is not None or pair[0] in own]
        return [json.dumps(pair, ensure_ascii=False, separators=(",", ":")) for pair in pairs]

    def category(self, name: str, values: list[Any]) -> Any:
        """Return the codes of labels, or a 1 in the column of each."""
        known = [v for v in self.learned[name] if v is not None or self.features[name]["missing"] == "indicator"]
        known = list(dict.fromkeys(known))
        wide = self.document["max_categories"]
        ordinal = [known.index(value) + 1 if value in known else 0 for value in values]
        known = known[: wide - 1]
        infrequent = wide - 1 if len(known) == wide - 1 else -1
        unlabelled = -1 if self.features[name].get("missing") == "zero" else infrequent
        others = [infrequent if value is not None else unlabelled for value in values]
        codes = [known.index(v) if v in known else other for v, other in zip(values, others, strict=True)]
        return {
            "ordinal": np.array(ordinal, float)[:, None],
            "onehot": np.array([[float(code == place) for place in range(wide)] for code in codes]),
            "hash": np.empty((len(values), 0)),
        }[self.document["encoding"]]


def by_datetime(value: float, part: str) -> float:
    """Return a part of a time, computed by Python's datetime."""
    if part == "seconds":
        return float(value)
    at = EPOCH + timedelta(seconds=math.floor(value))
    return float({"hour": at.hour, "weekday": at.weekday(), "month": at.month}[part])


def sent(recipe: Recipe, X: list[Any]) -> Rows:
    """Return rows as a worker gets them."""
    return Rows.decode(shape(recipe, json.loads(json.dumps(X)), learning=False).encode())


@settings(deadline=None, max_examples=80)
@given(streams())
def test_any_columns_equal_pandas_and_scikit_learn(stream: tuple[Any, Any, Any]) -> None:
    """For any columns and missing values the matrix equals that of pandas and scikit-learn bit for bit."""
    document, batches, asked = stream
    recipe, by_hand = parse(document), ByHand(document)
    columns = Columns.new(recipe)
    for batch in batches:
        columns.partial_fit(recipe, sent(recipe, batch))
        by_hand.learn(batch)
        for X in (batch, asked):
            before, rows = pickle.dumps(columns), sent(recipe, X)
            matrix = columns.transform(recipe, rows)
            assert matrix.dtype == np.float64
            assert matrix.flags.c_contiguous
            assert matrix.tobytes() == by_hand.matrix(X).tobytes()
            assert pickle.dumps(columns) == before
            assert decode_payload(recipe, rows.encode())["X"] == X
    assert len(columns.names(recipe)) == recipe.layout.width == matrix.shape[1]


@settings(deadline=None, max_examples=40)
@given(streams(), st.integers(1, 3))
def test_rows_by_name_and_in_chunks_are_the_same_rows(stream: tuple[Any, Any, Any], step: int) -> None:
    """Objects without their missing columns, and chunks of a large body, give the same rows as lists with null."""
    document, (batch, *_), _ = stream
    recipe = parse(document)
    names = list(document["features"])
    expected = sent(recipe, batch)
    by_name = [{n: v for n, v in zip(names, row, strict=True) if v is not None} for row in batch]
    assert sent(recipe, by_name) == expected
    collector = Collector(recipe, learning=True)
    for start in range(0, len(batch), step):
        collector.add(by_name[start : start + step])
    assert Rows.decode(collector.rows(None, None, learning=False).encode()) == expected


@settings(deadline=None, max_examples=60)
@given(st.floats(TIME_MIN, TIME_END, exclude_max=True) | st.integers(TIME_MIN, TIME_END - 1))
def test_time_parts_equal_datetime(seconds: float) -> None:
    """Hour, weekday and month equal Python's in any year from 1 to 9999, for any fraction of a second."""
    for part in ("hour", "weekday", "month"):
        assert timestamps.extract_part(np.array([float(seconds)]), part)[0] == by_datetime(float(seconds), part)


def test_time_parts_at_boundaries() -> None:
    """Leap days, boundaries of hours and years, the last instant before each, and times before 1970 are right."""
    days = [(1, 1, 1), (1600, 2, 29), (1900, 2, 28), (1900, 3, 1), (1969, 12, 31), (1970, 1, 1), (2000, 2, 29)]
    days += [(2024, 2, 29), (2024, 12, 31), (2100, 2, 28), (2100, 3, 1), (9999, 12, 31)]
    starts = [(datetime(*day, tzinfo=UTC) - EPOCH).total_seconds() for day in days]
    times = [t for s in starts for h in (0, 3600, 86_399) for t in (s + h, np.nextafter(s + h, -np.inf))]
    times = [t for t in times if t >= TIME_MIN]
    for part in ("hour", "weekday", "month"):
        found = timestamps.extract_part(np.array([*times, np.nan]), part)
        assert found[:-1].tolist() == [by_datetime(t, part) for t in times]
        assert math.isnan(found[-1])


def test_the_columns_of_the_matrix_have_names() -> None:
    """Columns have the order of the recipe, each followed by its indicator; a label has a name once it is learned."""
    features = {
        "make": {"type": "category", "missing": "indicator"},
        "year": {"type": "number", "missing": "indicator"},
        "title": {"type": "text", "n_features": 2, "missing": "indicator"},
        "sold": {"type": "timestamp", "expand": ["weekday", "hour"], "missing": "zero"},
        "size": "number",
    }
    end = ["year", "year:missing", "title[0]", "title[1]", "title:missing", "sold:weekday", "sold:hour", "size"]
    row = [None, 2001, "red", 0, 4]
    for encoding, begin, last in (
        ("ordinal", ["make"], []),
        ("onehot", ["make=null", "make:infrequent"], []),
        ("hash", [], ["hash[0]", "hash[1]", "hash[2]"]),
    ):
        recipe = parse({**SGD, "features": features, "encoding": encoding, "max_categories": 2, "n_features": 3})
        columns = Columns.new(recipe)
        columns.partial_fit(recipe, sent(recipe, [row]))
        assert columns.names(recipe) == begin + end + last
    plain = parse(SGD)
    assert Columns.new(plain).names(plain) == []


@pytest.mark.parametrize("estimator", ["SGDRegressor", "HashingVectorizer"])
def test_a_text_estimator_receives_texts(estimator: str) -> None:
    """A text estimator receives the texts unchanged, shape (n,), a missing one empty."""
    recipe = Recipe(estimator=estimator, features={"title": from_text(TITLES).features["title"]})  # type: ignore[index]
    texts = Columns.new(recipe).transform(recipe, sent(recipe, [["Red shoes"], [None]]))
    if estimator == "SGDRegressor":
        assert texts.shape == (2, 1024)
    else:
        assert texts.tolist() == ["Red shoes", ""]


TITLES = '{"estimator":"SGDRegressor","features":{"title":{"type":"text","missing":"zero"}}}'


@pytest.mark.parametrize(
    ("spelled", "stored"),
    [
        ({"type": "number"}, "number"),
        ({"type": "number", "missing": None}, "number"),
        ({"type": "category"}, "category"),
        ({"type": "text", "n_features": 1024, "analyzer": "word", "ngram_range": [1, 1], "norm": "l2"}, "text"),
        ({"type": "timestamp", "expand": []}, "timestamp"),
        ({"missing": "mean", "type": "number"}, {"type": "number", "missing": "mean"}),
        (
            {"norm": None, "n_features": 8, "type": "text", "ngram_range": [1, 2]},
            {"type": "text", "n_features": 8, "ngram_range": [1, 2], "norm": None},
        ),
        ({"type": "timestamp", "expand": ["month", "hour"]}, {"type": "timestamp", "expand": ["month", "hour"]}),
    ],
)
def test_a_column_has_one_canonical_form(spelled: Any, stored: Any) -> None:
    """For every spelling of a column the recipe stores its canonical form, which reads back as the same recipe."""
    recipe = parse({**SGD, "features": {"a": spelled}})
    assert json.loads(recipe.text())["features"] == {"a": stored}
    assert recipe.text() == parse({**SGD, "features": {"a": stored}}).text()
    assert from_text(recipe.text()) == recipe
    assert from_text(recipe.text()).text() == recipe.text()


@pytest.mark.parametrize(
    ("feature", "reason"),
    [
        ("words", "Invalid enum value 'words' - at `$.features['b']`"),
        (7, "got `int` - at `$.features['b']`"),
        ({}, "missing required field `type` - at `$.features['b']`"),
        ({"type": "words"}, "Invalid value 'words' - at `$.features['b'].type`"),
        ({"type": "number", "missing": "median"}, "Invalid enum value 'median' - at `$.features['b'].missing`"),
        ({"type": "category", "missing": "mean"}, "Invalid enum value 'mean' - at `$.features['b'].missing`"),
        ({"type": "text", "missing": "mean"}, "Invalid enum value 'mean' - at `$.features['b'].missing`"),
        ({"type": "number", "n_features": 8}, "unknown field `n_features` - at `$.features['b']`"),
        ({"type": "timestamp", "expand": ["year"]}, "Invalid enum value 'year' - at `$.features['b'].expand[0]`"),
        ({"type": "timestamp", "expand": ["hour", "hour"]}, "the feature 'b': expand names a part twice"),
        ({"type": "text", "n_features": 0}, "the feature 'b': n_features must be between 1 and 1000000"),
        ({"type": "text", "ngram_range": [2, 1]}, "the feature 'b': ngram_range must be two numbers from 1 to 8"),
        ({"type": "text", "ngram_range": [1, 9]}, "the feature 'b': ngram_range must be two numbers from 1 to 8"),
        ({"type": "text", "n_features": 1_000_001}, "n_features must be between 1 and 1000000"),
    ],
)
def test_an_invalid_column_is_rejected_by_name(feature: Any, reason: str) -> None:
    """An invalid column is rejected when the recipe is posted, with its name."""
    with pytest.raises(InvalidError) as caught:
        parse({**SGD, "features": {"a": "number", "b": feature}})
    assert reason in str(caught.value)


def test_a_too_large_matrix_is_rejected() -> None:
    """Rows whose matrix would exceed a gigabyte are rejected before they are accepted, with the allowed number."""
    recipe = parse({**SGD, "features": {"a": {"type": "text", "n_features": 1_000_000}}})
    assert shape(recipe, [["a"]] * 134, learning=False).n == 134
    with pytest.raises(InvalidError, match="135 rows make a matrix of 1000000 columns: send at most 134 rows"):
        shape(recipe, [["a"]] * 135, learning=False)


def test_long_texts_count_for_the_size_of_a_request() -> None:
    """The size of a request includes its texts, even if there are few."""
    recipe = from_text(TITLES)
    rows = shape(recipe, [["é" * TEXT_LENGTH_MAX]], learning=False)
    assert len(rows.encode()) > 2 * TEXT_LENGTH_MAX
    assert rows.fits(len(rows.encode()))
    assert not rows.fits(2 * TEXT_LENGTH_MAX)
    assert b"".join(rows.pieces()) == rows.encode()


def test_means_do_not_depend_on_batch_sizes() -> None:
    """The running means of one call equal those of one call per row."""
    recipe = parse({**SGD, "features": {name: {"type": "number", "missing": "mean"} for name in "abc"}})
    random = np.random.default_rng(5)
    X = [[None if random.random() < 0.3 else random.normal(0, 10.0**i) for i in range(3)] for _ in range(500)]
    alone, together = Columns.new(recipe), Columns.new(recipe)
    together.partial_fit(recipe, sent(recipe, X))
    for row in X:
        alone.partial_fit(recipe, sent(recipe, [row]))
    asked = sent(recipe, [[None, None, None]])
    assert alone.transform(recipe, asked).tobytes() == together.transform(recipe, asked).tobytes()
