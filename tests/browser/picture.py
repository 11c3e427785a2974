"""Pictures of the dashboard: `python -m tests.browser.picture FOLDER` (`make picture`).

Starts a service of its own, has models learn, and writes each view in light, in dark and in the width of a phone.
"""

import argparse
import asyncio
import random
import tempfile
from pathlib import Path
from typing import Any

import aiohttp

from tests.browser import chromium
from tests.browser.page import LOOKS, Page
from tests.conftest import start_stack, stop_stack

BRANDS = ("nike", "puma", "asics")
MODELS, ROUNDS, ROWS = 9, 40, 25
# The light view of a model, which the documentation shows, reaches down to its predictions and its traffic.
HEIGHT_OF_MODEL = 1500
FEATURES = {"make": "category", "year": "number"}
REGRESSOR = {
    "estimator": "SGDRegressor", "params": {"eta0": 0.02}, "features": FEATURES, "scaler": "StandardScaler",
}  # fmt: skip
CLASSIFIER = {
    "estimator": "SGDClassifier", "params": {"loss": "log_loss"}, "classes": ["large", "small"], "features": FEATURES,
    "scaler": "StandardScaler",
}  # fmt: skip


async def learn(http: aiohttp.ClientSession) -> str:
    """Create models and have them learn; return the hash of the first one."""
    chance, hashes = random.Random(7), []
    for number in range(MODELS):
        metadata = {"type": "shoes", "brand": BRANDS[number % 3], "shop": number + 1}
        made = {"metadata": metadata, "recipe": CLASSIFIER if number % 3 == 2 else REGRESSOR}
        async with http.post("/v1/models", json=made) as response:
            hashes.append((await response.json())["hash"])
    for turn in range(ROUNDS):
        for number, model_hash in enumerate(hashes):
            async with http.post(f"/v1/models/{model_hash}/partial_fit", json=rows(chance, number)) as response:
                response.raise_for_status()
            # A row that was asked about before is kept. A model that has learned nothing answers 409.
            asked = {"X": rows(chance, number)["X"][: 1 + turn % 2]}
            for _ in range(3):
                async with http.post(f"/v1/models/{model_hash}/predict", json=asked) as response:
                    await response.read()
        if turn == ROUNDS // 2:
            async with http.post(f"/v1/models/{hashes[0]}/snapshot") as response:
                response.raise_for_status()
        await asyncio.sleep(0.1)
    return hashes[0]


def rows(chance: random.Random, number: int) -> dict[str, Any]:
    """Return rows with sizes of shoes, or whether they are large."""
    X = [{"make": chance.choice(BRANDS), "year": chance.randint(1990, 2026)} for _ in range(ROWS)]
    sizes = [2 * len(row["make"]) + (row["year"] - 2000) / 5 + chance.gauss(0, 0.8) for row in X]
    return {"X": X, "y": ["large" if size > 11 else "small" for size in sizes] if number % 3 == 2 else sizes}


async def write(folder: Path, url: str, work: Path) -> None:
    """Write all pictures into a folder."""
    async with aiohttp.ClientSession(url) as http:
        model_hash = await learn(http)
        learning = asyncio.create_task(learn(http))
        views = {"models": "#/", "model": f"#/models/{model_hash}", "system": "#/system"}
        with chromium.browser(work / "browser") as browser:
            async with Page.opened(browser) as page:
                for theme, look in LOOKS.items():
                    tall = look._replace(height=HEIGHT_OF_MODEL) if theme == "light" else look
                    for view, place in views.items():
                        await page.look(tall if view == "model" else look)
                        await page.goto("about:blank")
                        await page.goto(f"{url}/{place}")
                        ready = "svg.chart" if view == "model" else "tbody tr"
                        await page.until(f"!!document.querySelector({ready!r})")
                        # Two readings give the rates; gateways report traffic every ten seconds.
                        await asyncio.sleep(11 if view == "model" else 4)
                        (folder / f"{view}-{theme}.png").write_bytes(await page.picture())
        await learning


def main() -> None:
    """Write the pictures into the folder that the command line names."""
    parser = argparse.ArgumentParser(prog="python -m tests.browser.picture", description=__doc__)
    parser.add_argument("folder", type=Path)
    folder: Path = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as work:
        stack = start_stack(Path(work) / "data")
        try:
            asyncio.run(write(folder, stack.url, Path(work)))
        finally:
            stop_stack(stack)


if __name__ == "__main__":
    main()
