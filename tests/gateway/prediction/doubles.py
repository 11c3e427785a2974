"""Stand-ins for tests of data structures: a clock that the test sets, and scorers that only say what they are of."""

from dataclasses import dataclass

from keepfit.errors import MalformedError
from keepfit.recipe import recipe as recipes
from keepfit.recipe.recipe import Recipe
from keepfit.rows.rows import Rows
from keepfit.store.models import Model
from keepfit.store.retained import RetainedRequests
from tests.gateway.api_client import REGRESSOR

RECIPE = recipes.parse(dict(REGRESSOR))
INVALID = b"invalid"


class Clock:
    """A clock that the test sets."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        """Return the current time in seconds."""
        return self.now_s


@dataclass
class NamedScorer:
    """A scorer whose encoded form is its model, generation, version and size."""

    model: str
    generation: int
    version: int
    size_bytes: int
    rows_seen: int = 0

    def answer(self, recipe: Recipe, rows: Rows, *, proba: bool) -> bytes | None:
        """Never asked for."""
        raise NotImplementedError

    def cost(self, rows: Rows, *, proba: bool) -> int:
        """Never asked for."""
        raise NotImplementedError


def encoded(model: str, version: tuple[int, int], size_bytes: int = 100) -> bytes:
    """Return the encoded form of a scorer."""
    return f"{model} {version[0]} {version[1]} {size_bytes}".encode()


def decode(data: bytes, recipe: Recipe) -> NamedScorer:
    """Decode what :func:`encoded` returned."""
    assert recipe is RECIPE
    if data == INVALID:
        raise MalformedError("This is no scorer.")
    model, *numbers = data.decode().split()
    return NamedScorer(model, *map(int, numbers))


def model_of(model_hash: str, generation: int = 1) -> Model:
    """Return a model of which only hash, generation and recipe matter."""
    return Model(model_hash, {}, RECIPE, generation, 0, 0, 0, 0, {}, None, "", {}, generation, RetainedRequests())
