"""What service and model agree on: a bike, the recipe of the model, and prices that are known from the start."""

from typing import Literal

from pydantic import BaseModel, Field

RECIPE = {
    "estimator": "SGDRegressor",
    "params": {"learning_rate": "constant", "eta0": 0.05},
    "features": {"maker": "category", "kind": "category", "age_years": "number", "km": "number"},
    "scaler": "StandardScaler",
    "window": 200,
}


class Bike(BaseModel):
    """A second-hand bike."""

    maker: str = Field(min_length=1, max_length=64, examples=["gazelle"])
    kind: Literal["city", "road", "cargo", "child"]
    age_years: float = Field(ge=0, le=100)
    km: float = Field(ge=0, le=200_000)


# Sold before the service began. A model that has learned nothing cannot predict.
KNOWN: list[tuple[Bike, float]] = [
    (Bike(maker="gazelle", kind="city", age_years=3, km=4000), 450),
    (Bike(maker="bianchi", kind="road", age_years=2, km=3000), 900),
    (Bike(maker="urban arrow", kind="cargo", age_years=4, km=9000), 1800),
    (Bike(maker="puky", kind="child", age_years=2, km=500), 120),
]
