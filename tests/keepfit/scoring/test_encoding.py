"""Scorers as bytes: what is not a scorer of the model is refused, and nothing else happens."""

import random
import tracemalloc
import zlib
from copy import deepcopy
from typing import Any

import msgspec
import numpy as np
import pytest

from keepfit.errors import ScorerError
from keepfit.recipe.catalogue import CATALOGUE
from keepfit.recipe.recipe import Recipe
from keepfit.rows.rows import Rows
from keepfit.rows.shaping import shape
from keepfit.scoring import encoding
from keepfit.scoring.encoding import CHECKSUM_BYTES
from keepfit.scoring.scorer import Scorer
from tests.keepfit.scoring import models

# One of each kind of record, and of columns.
SAMPLES = [
    ("regressor", "unnamed", "StandardScaler", "onehot", ""),
    ("log_loss", "mixed", "MinMaxScaler", "onehot", "mixed"),
    ("perceptron", "missing", "MaxAbsScaler", "ordinal", "late"),
    ("one class", "times", "StandardScaler", "hash", ""),
    ("gaussian", "mixed", None, "hash", "named"),
    ("multinomial", "numbers", None, "onehot", "three"),
    ("complement", "categories", None, "onehot", "three"),
    ("bernoulli", "missing", None, "ordinal", "single"),
    ("network of tanh", "unnamed", "StandardScaler", "onehot", ""),
    ("network of logistic", "unnamed", "StandardScaler", "onehot", "late"),
    ("clusters", "numbers", "StandardScaler", "onehot", ""),
    ("rest of gaussians", "numbers", None, "onehot", "late"),
    ("outputs of huber", "numbers", None, "onehot", "booleans"),
    ("outputs of numbers", "numbers", None, "onehot", ""),
]
OTHERS: list[Any] = [
    None, True, False, 0, 1, -1, 2**63, 1e308, float("nan"), float("inf"), "", "C", "x" * 2000, b"", bytes(8),
    [], [[]], {}, {"a": 1}, [b"", "C", 0], [bytes(8), "C", 1], [bytes(8), "F", 1, 1], [bytes(8), "C", 2**62, 2**62],
    [bytes(8), "C", -1, -1], ["linear_regressor"], msgspec.msgpack.Ext(1, b"abc"),
]  # fmt: skip


def sample(key: tuple[str, str, str | None, str, str]) -> tuple[Recipe, Rows, bytes]:
    """Return a recipe, rows and an encoded scorer."""
    bundle = models.learned(*key)
    found = models.scorer_of(bundle, 3, 17)
    assert found is not None
    generator = np.random.default_rng(5)
    counts = models.CASES[key[0]][0] in models.COUNTS_ONLY
    X = [[models.value(kind, generator, counts) for kind, _ in models.kinds(key[1])] for _ in range(3)]
    return bundle.recipe, shape(bundle.recipe, X, learning=False), encoding.encode(found.state)


def answers(scorer: Scorer, recipe: Recipe, rows: Rows) -> list[bytes | None]:
    """Return all answers of a scorer."""
    return [scorer.answer(recipe, rows, proba=proba) for proba in (False, True)]


def sealed(body: bytes) -> bytes:
    """Return bytes with a checksum that fits."""
    return zlib.crc32(body).to_bytes(CHECKSUM_BYTES) + body


each_sample = pytest.mark.parametrize("key", SAMPLES, ids=lambda key: "-".join(map(str, key)))


@each_sample
def test_a_decoded_scorer_is_encoded_to_the_same_bytes(key: Any) -> None:
    """Encoding is a function of the scorer, and decoding loses nothing."""
    recipe, _, data = sample(key)
    assert encoding.encode(encoding.decode(data, recipe).state) == data


@each_sample
def test_damaged_bytes_are_refused(key: Any) -> None:
    """Bytes that were cut, extended or changed in one bit are no scorer."""
    recipe, _, data = sample(key)
    generator = random.Random(7)
    damaged = [data[:size] for size in [0, 1, 3, 4, 5, *generator.choices(range(len(data)), k=50)]]
    damaged += [data + b"\0", data + data, b"\0" + data, data[1:], bytes(len(data))]
    for place in generator.choices(range(8 * len(data)), k=300):
        flipped = bytearray(data)
        flipped[place // 8] ^= 1 << place % 8
        damaged.append(bytes(flipped))
    for each in damaged:
        with pytest.raises(ScorerError):
            encoding.decode(each, recipe)


@each_sample
def test_damaged_bytes_with_a_checksum_that_fits_run_into_no_other_error(key: Any) -> None:
    """With a checksum that fits, they are no scorer, or one that answers or leaves the answer to a worker."""
    recipe, rows, data = sample(key)
    body, generator = data[CHECKSUM_BYTES:], random.Random(8)
    damaged = [body[: generator.randrange(len(body))] for _ in range(30)]
    for _ in range(400):
        flipped = bytearray(body)
        flipped[generator.randrange(len(body))] ^= 1 << generator.randrange(8)
        damaged.append(bytes(flipped))
    check_each(damaged, recipe, rows)


@each_sample
def test_messages_of_other_values_run_into_no_other_error(key: Any) -> None:
    """Messages of another type, shape or size in any place are no scorer, or one that answers or does not."""
    recipe, rows, data = sample(key)
    generator, encode = random.Random(9), msgspec.msgpack.Encoder().encode
    check_each([b"\x91" * 100_000, *[encode(other) for other in OTHERS]], recipe, rows)
    changed = []
    for _ in range(600):
        message = msgspec.msgpack.decode(data[CHECKSUM_BYTES:])
        for _ in range(generator.choice([1, 1, 1, 2, 3])):
            change(message, generator)
        changed.append(encode(message))
    check_each(changed, recipe, rows)


def change(message: Any, generator: random.Random) -> None:
    """Change something in nested lists: replace, remove, repeat or swap an element."""
    lists = [message]
    for each in lists:
        lists += [one for one in each if isinstance(one, list)]
    target = generator.choice([each for each in lists if each] or [[0]])
    i, j = generator.randrange(len(target)), generator.randrange(len(target))
    match generator.randrange(6):
        case 0 | 1:
            target[i] = deepcopy(generator.choice(OTHERS))
        case 2:
            del target[i]
        case 3:
            target.insert(i, deepcopy(target[j]))
        case 4:
            target[i], target[j] = target[j], target[i]
        case _:
            if isinstance(target[i], bytes):
                numbers = np.frombuffer(target[i], np.uint8).copy()
                numbers[8 * (generator.randrange(len(numbers)) // 8) :][:8] = generator.choice([0, 255, 127])
                target[i] = numbers.tobytes()
            elif type(target[i]) is int:
                target[i] += generator.choice([-1, 1, 2**31])


def check_each(bodies: list[bytes], recipe: Recipe, rows: Rows) -> None:
    """Check that each message is refused, or gives a scorer that answers JSON or leaves the answer to a worker."""
    for body in bodies:
        try:
            found = encoding.decode(sealed(body), recipe)
        except ScorerError:
            continue
        for answer in answers(found, recipe, rows):
            assert answer is None or msgspec.json.decode(answer) is not None


@pytest.mark.parametrize("other", SAMPLES, ids=lambda key: "-".join(map(str, key)))
def test_a_scorer_of_another_recipe_is_refused(other: Any) -> None:
    """The scorer of one recipe is none of another."""
    _, _, data = sample(SAMPLES[1])
    if other == SAMPLES[1]:
        return
    with pytest.raises(ScorerError):
        encoding.decode(data, models.learned(*other).recipe)


@pytest.mark.parametrize("piece", [b"\x90", b"\x80", b"\xa1a", b"\x00", b"\xc0", b"\x91\x90"])
def test_reading_takes_a_multiple_of_the_bytes(piece: bytes) -> None:
    """No message makes more objects than a hundred bytes for each of its own."""
    recipe, _, data = sample(SAMPLES[0])
    count = 50_000
    many = b"\xdd" + count.to_bytes(4) + piece * count
    message = msgspec.msgpack.decode(data[CHECKSUM_BYTES:])
    for place in range(len(message)):
        parts = [msgspec.msgpack.encode(each) for each in message]
        parts[place] = many
        body = bytes([0x90 + len(parts)]) + b"".join(parts)
        tracemalloc.start()
        try:
            encoding.decode(sealed(body), recipe)
        except ScorerError:
            pass
        finally:
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        assert peak < 100 * len(body)


def test_an_array_that_is_not_contiguous_has_no_encoding() -> None:
    """A view with gaps is not encoded: a copy would be multiplied in another order."""
    bundle = models.learned("regressor", "unnamed", None, "onehot", "")
    found = models.scorer_of(bundle, 1, 1)
    assert found is not None
    final = msgspec.structs.replace(found.state.final, coef_=np.ones(8)[::2])
    with pytest.raises(ScorerError, match="contiguous"):
        encoding.encode(msgspec.structs.replace(found.state, final=final))


def test_every_record_is_sampled() -> None:
    """The samples above have all kinds of estimators, scalers and columns."""
    names = {CATALOGUE[models.CASES[key[0]][0]].name for key in SAMPLES}
    assert {"SGDRegressor", "SGDClassifier", "Perceptron", "SGDOneClassSVM", "MiniBatchKMeans"} <= names
    assert {key[1] for key in SAMPLES} == set(models.FEATURES)
