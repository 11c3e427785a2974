"""The dashboard in a browser: it shows a model that learns, changes and restores it, and respects API keys."""

import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from keepfit.security.api_keys import SCOPES, new_key
from keepfit.settings import Settings
from keepfit_gateway import dashboard
from tests.browser import chromium
from tests.browser.page import LOOKS, Page
from tests.conftest import Stack
from tests.gateway.api_client import REGRESSOR, WAIT, Api, eventually, serving
from tests.gateway.test_api_page import Page as Parsed
from tests.wheels import ROOT

pytestmark = pytest.mark.timeout(300)

COUNTS = {"estimator": "MultinomialNB", "classes": ["no", "yes"]}
ROWS = {"X": [[1.0, 2.0], [3.0, 1.0], [2.0, 2.0]], "y": ["no", "yes", "no"]}
INVALID = {"X": [[-1.0, 2.0]], "y": ["no"]}
FOLDER = Path(dashboard.__file__).parent
TOKEN, STORED = new_key("operator", SCOPES)
# What a run of the tests leaves to look at; not in the repository.
PICTURES = ROOT / "build/screenshots"
READER, STORED_READER = new_key("reader", ["read"])


async def check_accessibility(page: Page) -> None:
    """Fail if axe-core finds a violation, in light or dark."""
    await page.evaluate(chromium.axe())
    for scheme in ("light", "dark"):
        await page.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        found = await page.evaluate("axe.run().then((result) => JSON.stringify(result.violations))")
        assert json.loads(found) == []


async def fact(page: Page, name: str) -> Any:
    """Return the value of a fact that the page shows."""
    expression = f"[...document.querySelectorAll('dt')].find((each) => each.textContent === {json.dumps(name)})"
    return await page.evaluate(f"{expression}?.nextSibling.textContent")


async def until_fact(page: Page, name: str, value: str) -> None:
    """Wait until the page shows a fact."""

    async def shown() -> bool:
        return bool(await fact(page, name) == value)

    await eventually(shown, f"{name} {value}")


def test_the_page_loads_its_own_files_alone() -> None:
    """What the page and its modules load is served, nothing is inside the page, and all modules are reachable."""
    parsed = Parsed((FOLDER / "index.html").read_text())
    assert parsed.inline == []
    loads = {address for _, address in parsed.loads if address != "data:,"}
    assert loads == {"/dashboard/main.js", "/dashboard/style.css"}
    imported = {"main.js", "style.css"}
    for name in dashboard.FILES:
        text = (FOLDER / name).read_text()
        imported |= set(re.findall(r'^import .* from "\./(.+)";$', text, re.MULTILINE))
        # Text of the service never becomes markup.
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", text)
        assert not re.search(r"(local|session)Storage|https?://(?!www\.w3\.org/2000/svg)", text)
    assert imported == set(dashboard.FILES)
    assert {each.name for each in FOLDER.iterdir() if each.suffix in (".js", ".css")} == set(dashboard.FILES)


async def test_a_model_is_watched_and_changed(api: Api, page: Page, metadata: dict[str, Any]) -> None:
    """A search finds the model, its curve moves while rows flow, and each change that the page makes is made."""
    path = await api.make({**metadata, "name": "<b>Watched</b>"}, COUNTS)
    # The first rows are not scored: no model predicts them.
    for _ in range(2):
        await api.learn(path, **ROWS)
    await page.goto(api.url)
    await page.fill("#search", f"{metadata['session']} watched")
    await page.until("document.querySelectorAll('tbody tr').length === 1")
    await check_accessibility(page)
    await page.click("tbody a", "<b>Watched</b>")
    await until_fact(page, "rows seen", "6")

    line = "document.querySelector('svg.chart path')?.getAttribute('d')"
    before = await page.until(line)
    await api.learn(path, **ROWS)
    await page.until(f"{line} && {line} !== {json.dumps(before)}")
    await until_fact(page, "rows seen", "9")

    await page.click("button", "Save a snapshot now")
    await page.until("!!document.querySelector('button[aria-label^=\"Restore version\"]')")
    saved = (await api.model(path))["version"]
    await api.learn(path, **ROWS)
    await until_fact(page, "rows seen", "12")
    await check_accessibility(page)
    await page.click(f'button[aria-label="Restore version {saved}"]')
    await page.until("!!document.querySelector('dialog[open]')")
    assert "It forgets 3 rows" in await page.text("dialog")
    await page.click("dialog button", "Cancel")
    await page.until("!document.querySelector('dialog')")
    assert (await api.model(path))["rows_seen"] == 12
    await page.click(f'button[aria-label="Restore version {saved}"]')
    await page.click("dialog button", "Restore")
    await until_fact(page, "rows seen", "9")
    assert (await api.model(path))["rows_seen"] == 9

    await page.fill("#params", '{"alpha": 0.25}')
    await page.click("button", "Change parameters")
    await page.until("document.getElementById('message').textContent.startsWith('Changed: alpha')")
    assert (await api.model(path))["recipe"]["params"]["alpha"] == 0.25
    await page.fill("#params", '{"alpha": "x"}')
    await page.click("button", "Change parameters")
    await page.until("/alpha/.test(document.getElementById('message').textContent.replace('Changed: alpha', ''))")

    (await api.post(f"{path}/partial_fit", INVALID, WAIT)).problem(422)
    (dead,) = (await api.get(f"{path}/dead")).of(200)["dead"]
    await page.until(f"!!document.querySelector('button[aria-label=\"Retry {dead['id']}\"]')")
    assert "Negative values" in await page.text()
    await page.click(f'button[aria-label="Retry {dead["id"]}"]')
    await page.until("document.getElementById('message').textContent.endsWith('learned again: 1.')")
    # It is put aside again, under another id.
    labels = (
        "[...document.querySelectorAll('button[aria-label^=Retry]')].map((each) => each.getAttribute('aria-label'))"
    )
    again = (await page.until(f"{labels}.find((label) => label !== 'Retry {dead['id']}')")).removeprefix("Retry ")
    await page.click(f'button[aria-label="Discard {again}"]')
    await page.click("dialog button", "Discard")
    await page.until("document.body.innerText.includes('There are none.')")
    assert (await api.get(f"{path}/dead")).of(200)["dead"] == []

    assert await fact(page, "rows out/s") is not None
    await page.click("nav a", "System")
    await page.until("[...document.querySelectorAll('caption')].some((each) => each.textContent === 'Workers')")
    # Other tests use the service, too.
    assert await fact(page, "state") in ("ok", "degraded")
    await check_accessibility(page)
    assert page.exceptions == page.violations == []
    assert {each for each in page.requests if not each.startswith(api.url.rstrip("/"))} == set()


async def test_predictions_of_a_regressor_are_drawn_against_the_truth(
    api: Api, page: Page, metadata: dict[str, Any]
) -> None:
    """Each scored row has a dot; the drawing has words for screen readers, and follows the rows."""
    path = await api.make(metadata, REGRESSOR)
    for _ in range(2):
        await api.learn(path, [[1.0, 2.0], [3.0, 1.0], [2.0, 2.0]], [1.0, 2.0, 3.0])
    await page.goto(f"{api.url.rstrip('/')}/#{path.removeprefix('/v1')}")
    await page.until("document.querySelectorAll('svg.chart circle').length === 3")
    drawn = "document.querySelector('svg.chart:has(circle)').getAttribute('aria-label')"
    assert "3 rows, mean absolute error" in await page.evaluate(drawn)
    await check_accessibility(page)
    await api.learn(path, [[1.0, 2.0]], [1.0])
    await page.until("document.querySelectorAll('svg.chart circle').length === 4")
    assert page.exceptions == page.violations == []


async def test_every_view_is_pictured_and_fits_a_phone(api: Api, page: Page, metadata: dict[str, Any]) -> None:
    """No view is wider than its window in light, dark and phone width; pictures of all are in build/screenshots."""
    path = await api.make(metadata, REGRESSOR)
    for _ in range(3):
        await api.learn(path, [[1.0, 2.0], [3.0, 1.0], [2.0, 2.0]], [1.0, 2.0, 3.0])
    PICTURES.mkdir(parents=True, exist_ok=True)
    views = {
        "models": ("/", "tbody tr"),
        "model": (path.removeprefix("/v1"), "svg.chart circle"),
        "system": ("/system", "tbody tr"),
    }
    for name, look in LOOKS.items():
        await page.look(look)
        for view, (place, ready) in views.items():
            await page.goto("about:blank")
            await page.goto(f"{api.url.rstrip('/')}/#{place}")
            await page.until(f"!!document.querySelector({ready!r})")
            (PICTURES / f"{view}-{name}.png").write_bytes(await page.picture(whole=True))
            assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth"), (view, name)
    assert len({picture.read_bytes() for picture in PICTURES.glob("*-*.png")}) == len(LOOKS) * len(views)


@pytest.fixture
async def guarded(stack: Stack) -> AsyncIterator[Api]:
    """Run a gateway with keys on the servers and workers of the shared stack."""
    settings = Settings(**{**stack.settings().model_dump(), "port": 0, "api_keys": f"{STORED},{STORED_READER}"})
    async with serving(settings, (TOKEN, READER)) as api:
        yield api


async def test_the_page_with_keys(guarded: Api, page: Page, metadata: dict[str, Any]) -> None:
    """The page asks for a key, keeps none, shows what its scopes permit, and forgets the session on request."""
    operator = {"Authorization": f"Bearer {TOKEN}"}
    made = {"metadata": metadata, "recipe": COUNTS}
    model = (await guarded.post("/v1/models", made, operator)).of(201)

    async def sign_in(key: str) -> None:
        await page.fill("#key", key)
        await page.click("button", "Sign in")

    await page.goto(f"{guarded.url.rstrip('/')}/#/models/{model['hash']}")
    await page.until("!!document.querySelector('#key')")
    await check_accessibility(page)
    await sign_in("kf_wrong")
    await page.until("document.body.innerText.includes('unknown')")
    for key, sections in ((READER, 0), (TOKEN, 1)):
        await sign_in(key)
        await until_fact(page, "estimator", "MultinomialNB")
        assert await page.evaluate("document.querySelectorAll('section').length") == 2 + sections
        assert await page.evaluate("document.getElementById('params').readOnly") is (not sections)
        assert await page.evaluate("[document.cookie, localStorage.length, sessionStorage.length]") == ["", 0, 0]
        await page.until("document.getElementById('live').textContent === 'live'")
        await page.click("button", "Sign out")
        await page.until("!!document.querySelector('#key')")
    assert page.exceptions == page.violations == []
