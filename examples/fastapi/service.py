"""A FastAPI service that quotes prices of second-hand bikes, and learns what each bike was sold for.

A quote is a prediction with an `id`: keepfit keeps its row. A sale, days later, is the label of this id: keepfit joins
the two and learns the row, once. The service itself stores nothing.
"""

import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any
from uuid import uuid4

from fastapi import BackgroundTasks, Depends, FastAPI, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from bikes import KNOWN, RECIPE, Bike
from keepfit import AsyncClient
from keepfit.client.clients import AsyncModel
from keepfit.errors import KeepfitError

log = logging.getLogger("uvicorn.error")


class Quote(BaseModel):
    """An expected price in euros; `id` is for the sale."""

    id: str
    price: float


class Sale(BaseModel):
    """What a bike was sold for, in euros."""

    quote_id: str = Field(min_length=1, max_length=128)
    price: float = Field(gt=0, le=100_000)


class Quality(BaseModel):
    """How wrong the last quotes of sold bikes were, in euros, and how wrong the mean price would have been."""

    sales: int
    error: float | None
    error_of_mean: float | None


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[dict[str, Any]]:
    """Connect to keepfit, and have it learn the known prices if it has learned nothing."""
    metadata = {"type": "bike-prices", "city": os.environ.get("CITY", "utrecht")}
    url = os.environ.get("KEEPFIT_URL", "http://127.0.0.1:8000")
    async with AsyncClient(url, os.environ.get("KEEPFIT_API_KEY"), timeout_s=60) as client:
        prices = await client.create(metadata, RECIPE)
        if not (await prices.describe())["rows_seen"]:
            rows = [bike.model_dump() for bike, _ in KNOWN]
            # Several processes that start at the same time have the same key: the rows are learned once.
            await prices.partial_fit(rows, [price for _, price in KNOWN], wait=True, idempotency_key="known-prices")
        yield {"prices": prices}


def opened(request: Request) -> AsyncModel:
    """Return the model that the service has opened."""
    prices: AsyncModel = request.state.prices
    return prices


Prices = Annotated[AsyncModel, Depends(opened)]
app = FastAPI(title="Bike prices", lifespan=lifespan)


@app.post("/quotes")
async def quote(bike: Bike, prices: Prices) -> Quote:
    """Quote a price. keepfit keeps the row under the quote's id, for a week."""
    quote_id = uuid4().hex
    predictions = await prices.predict([bike.model_dump()], id=quote_id)
    return Quote(id=quote_id, price=round(predictions[0], 2))


@app.post("/sales", status_code=202)
async def sale(sale: Sale, prices: Prices, background: BackgroundTasks) -> None:
    """Learn what a bike was sold for, after the answer: the seller does not wait for keepfit."""
    background.add_task(learn, prices, sale)


async def learn(prices: AsyncModel, sale: Sale) -> None:
    """Send the label of a quote; log why if it is not learned. The client repeats the call for a minute."""
    try:
        answer = await prices.label({sale.quote_id: sale.price})
    except KeepfitError as error:
        log.warning("the sale of %s is not learned: %s", sale.quote_id, error)
    else:
        for refused in answer["errors"]:
            log.warning("the sale of %s is not learned: %s", sale.quote_id, refused["reason"])


@app.get("/quality")
async def quality(prices: Prices) -> Quality:
    """Return how wrong the last quotes were."""
    document = await prices.describe()
    # Empty until a quote was sold.
    window = document["metrics"].get("window", {})
    return Quality(
        sales=document["rows_seen"] - len(KNOWN),
        error=window.get("mean_absolute_error"),
        error_of_mean=window.get("baseline_mean_absolute_error"),
    )


@app.exception_handler(KeepfitError)
async def unavailable(_: Request, error: Exception) -> JSONResponse:
    """Answer 503 if keepfit has no prediction."""
    log.warning("keepfit: %s", error)
    return JSONResponse({"detail": "no price at the moment"}, status_code=503, headers={"Retry-After": "1"})
