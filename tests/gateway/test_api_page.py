"""The API page: what a browser needs is served, its policy permits exactly that, and the page works in a browser."""

import json
import re
from html.parser import HTMLParser
from importlib.metadata import requires
from typing import Any
from urllib.parse import urlsplit

import pytest

from keepfit.errors import UnavailableError
from keepfit.settings import Settings
from keepfit_gateway import api_page
from keepfit_gateway.api_page import files
from keepfit_gateway.routes import PAGE_FILES
from tests.browser.page import Page as BrowserPage
from tests.gateway.api_client import Api, eventually, serving
from tests.gateway.conformance import DOCUMENT, validate

TYPES = {"css": "text/css; charset=utf-8", "js": "text/javascript; charset=utf-8"}
CODES = ("gzip", "zstd", "deflate", "identity")
YEAR = "public, max-age=31536000, immutable"


class Page(HTMLParser):
    """What a page loads, and what is inside it: `loads` are tags with their addresses, `inline` tags with text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loads: list[tuple[str, str]] = []
        self.inline: list[str] = []
        self._tag = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note what an element loads."""
        self._tag = tag
        for name, value in attrs:
            if name == "style" or name.startswith("on"):
                self.inline.append(name)
            if (name, tag) in (("src", "script"), ("href", "link")) and value is not None:
                self.loads.append((tag, value))

    def handle_data(self, data: str) -> None:
        """Note a script or style inside the page."""
        if self._tag in ("script", "style") and data.strip():
            self.inline.append(self._tag)


def policy_of(reply: Any) -> dict[str, list[str]]:
    """Return the sources of each directive of an answer's policy."""
    directives = (each.split() for each in reply.headers["Content-Security-Policy"].split(";"))
    return {name: sources for name, *sources in directives}


async def test_everything_that_the_page_loads_is_served(api: Api) -> None:
    """Each address in the page is a file of this gateway with its type, for ever, and an image is inside the page."""
    reply = await api.get("/docs")
    assert (reply.status, reply.headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    page = Page(reply.body.decode())
    assert page.inline == []
    loaded = [address for _, address in page.loads if address != "data:,"]
    assert {urlsplit(address).path for address in loaded} == {path for path in PAGE_FILES if path.startswith("/docs/")}
    for address in loaded:
        found = await api.get(address)
        assert found.status == 200
        assert found.headers["Content-Type"] == TYPES[urlsplit(address).path.rpartition(".")[2]]
        assert found.headers["Cache-Control"] == YEAR
        assert found.headers["X-Content-Type-Options"] == "nosniff"
        assert found.body
        # Not for ever without the digest, or with that of another content.
        for other in ("", "?v=0"):
            assert (await api.get(urlsplit(address).path + other)).headers["Cache-Control"] == "no-cache"


async def test_the_policy_permits_what_the_page_uses_and_no_more(api: Api) -> None:
    """Scripts, styles and requests come from the gateway alone; images also from the style sheet; nothing is framed."""
    reply = await api.get("/docs")
    own, nothing = ["'self'"], ["'none'"]
    assert policy_of(reply) == {
        "default-src": nothing,
        "script-src": own,
        "style-src": own,
        "img-src": [*own, "data:"],
        "connect-src": own,
        "base-uri": nothing,
        "form-action": nothing,
        "frame-ancestors": nothing,
    }
    assert reply.headers["Referrer-Policy"] == "no-referrer"
    assert reply.headers["X-Content-Type-Options"] == "nosniff"
    style = (await api.get("/docs/swagger-ui.css")).body.decode()
    # The style sheet loads no font and no other sheet, and its images are in it.
    assert {url.strip("\"'")[:5] for url in re.findall(r"url\(([^)]*)", style)} == {"data:"}
    assert "@import" not in style
    assert "@font-face" not in style
    start = (await api.get("/docs/page.js")).body.decode()
    assert 'url: "/openapi.json"' in start
    assert "persistAuthorization: false" in start


@pytest.mark.timeout(300)
async def test_the_page_works_in_a_browser(api: Api, page: BrowserPage, metadata: dict[str, Any]) -> None:
    """The page shows every operation, sends a call, shows its answer, and requests nothing from another host."""
    url = api.url.rstrip("/")
    await page.goto(f"{url}/docs")
    operations = {(method.upper(), path) for path, item in DOCUMENT["paths"].items() for method in item}
    await page.until(f"document.querySelectorAll('.opblock').length >= {len(operations)}")
    shown = await page.evaluate("""
        [...document.querySelectorAll('.opblock')].map((each) => [
          each.querySelector('.opblock-summary-method').innerText,
          each.querySelector('.opblock-summary-path').dataset.path,
        ])
    """)
    assert sorted(map(tuple, shown)) == sorted(operations)

    operation = "#operations-models-create_model"
    await page.click(f"{operation} .opblock-summary-control")
    await page.click(f"{operation} .try-out__btn")
    body = json.dumps({"metadata": metadata, "recipe": {"estimator": "SGDRegressor"}})
    await page.fill(f"{operation} textarea", body)
    await page.click(f"{operation} .execute")
    await page.until(f"document.querySelector('{operation} .live-responses-table') !== null")
    answer = await page.text(f"{operation} .live-responses-table")
    assert re.search(r"^201\b", answer, re.MULTILINE), answer
    listed = (await api.get("/v1/models", session=metadata["session"])).of(200)["models"]
    assert [model["metadata"] for model in listed] == [metadata]
    assert listed[0]["hash"] in answer

    assert page.exceptions == page.violations == []
    assert {urlsplit(each)._replace(path="", query="").geturl() for each in page.requests} == {url}
    # What the policy forbids would have been seen.
    await page.evaluate("document.body.append(Object.assign(new Image(), { src: 'http://other.example/' }))")

    async def refused() -> bool:
        return page.violations == ["img-src: http://other.example/"]

    await eventually(refused, "a violation of the policy")


@pytest.mark.parametrize("path", ["/", "/docs", *PAGE_FILES])
async def test_a_file_has_one_content_in_every_coding(api: Api, path: str) -> None:
    """Each coding holds the same content and the same tag, and a client that has it gets a 304 without a body."""
    bodies, tags = set(), set()
    for coding in CODES:
        reply = await api.call("GET", path, headers={"Accept-Encoding": f"{coding}, *;q=0"})
        assert reply.headers.get("Content-Encoding", "identity") == coding
        # The client inflates a body.
        bodies.add(reply.body)
        tags.add(reply.headers["ETag"])
    assert len(bodies) == len(tags) == 1
    unchanged = await api.call("GET", path, headers={"If-None-Match": tags.pop()})
    assert (unchanged.status, unchanged.body) == (304, b"")
    assert "Content-Type" not in unchanged.headers
    assert (await api.call("GET", path, headers={"If-None-Match": '"other"'})).status == 200


@pytest.mark.parametrize(
    "path",
    ["swagger-ui.js", "../openapi.json%00", "plugin", "..%2f__init__", "page.html", "swagger-ui-bundle.js.map"],
)
async def test_no_other_file_is_served(api: Api, path: str) -> None:
    """Files beside those of the page cannot be had by any spelling."""
    (await api.get(f"/docs/{path}")).problem(404)


async def test_a_gateway_with_keys_serves_the_page_without_one(settings: Settings) -> None:
    """The page is as public as the document; its calls need a key, by the scheme that the page offers."""
    guarded = Settings(**{**settings.model_dump(), "api_keys": f"web:read:{'0' * 64}"})
    async with serving(guarded) as api:
        for path in ("/", "/docs", *PAGE_FILES):
            assert (await api.get(path)).status == 200
        (await api.get("/v1/models")).problem(401)
        scheme = (await api.get("/openapi.json")).of(200)["components"]["securitySchemes"]["key"]
    assert (scheme["type"], scheme["scheme"]) == ("http", "bearer")


def test_the_page_fills_in_what_a_call_requires() -> None:
    """Each required parameter has an example of the right form, and a filter one that selects everything."""
    seen = set()
    for item in DOCUMENT["paths"].values():
        for method, operation in item.items():
            for parameter in operation["parameters"]:
                # Of a call with a body, `metadata` stay out of the query: the example of the body has them.
                if parameter["required"] or (parameter["name"], method) == ("metadata", "get"):
                    validate(parameter["schema"], parameter["example"])
                    seen.add(parameter["name"])
    assert seen == {"hash", "job", "version", "metadata"}


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the files are not installed, the error names the package that keepfit requires for them."""
    assert any(each.startswith(files.DISTRIBUTION) for each in requires("keepfit") or ())
    monkeypatch.setattr(files, "find_spec", lambda name: None)
    with pytest.raises(UnavailableError, match=files.DISTRIBUTION):
        api_page.load.__wrapped__()
