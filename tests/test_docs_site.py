"""The documentation site: it is built without a warning, shows what is generated, and needs no other host."""

import asyncio
import doctest
import importlib.util
import mimetypes
import re
import subprocess
from collections.abc import AsyncIterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

import keepfit
from keepfit_gateway.openapi import document
from keepfit_gateway.routes import ROUTES
from tests.browser.page import Page
from tests.wheels import BIN, ROOT

BUILD_S_MAX = 280
# The first test waits for the build.
pytestmark = pytest.mark.timeout(BUILD_S_MAX + 20)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the site as `make docs` does, in a folder of its own."""
    folder = tmp_path_factory.mktemp("site")
    makefile = (ROOT / "Makefile").read_text()
    (command,) = re.findall(r"^docs:.*\n\t\$\(BIN\)/(.+)$", makefile, re.MULTILINE)
    words = command.replace("build/", f"{folder}/").split()
    assert "-W" in words
    done = subprocess.run(
        [BIN / words[0], *words[1:]], cwd=ROOT, capture_output=True, text=True, timeout=BUILD_S_MAX, check=False
    )
    # A warning is a link to nothing, a page that the navigation lacks, a docstring or a block that cannot be read.
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    return folder / "docs"


@pytest.fixture
async def url(site: Path) -> AsyncIterator[str]:
    """Serve the site; return its address."""

    async def answer(request: web.Request) -> web.Response:
        path = site / request.match_info["path"]
        if not path.is_file():
            raise web.HTTPNotFound
        content_type = mimetypes.guess_type(path)[0] or "application/octet-stream"
        # Whole, since a browser that goes to another page leaves files half read.
        return web.Response(body=await asyncio.to_thread(path.read_bytes), content_type=content_type)

    app = web.Application()
    app.router.add_get("/{path:.*}", answer)
    async with TestServer(app) as server:
        yield str(server.make_url("/"))


class Loads(HTMLParser):
    """The addresses that a page loads when it is opened, without links that a reader may follow."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note what a tag loads."""
        names = ("src", "srcset", "poster", "data", "href") if tag != "a" else ()
        self.addresses += [value for name, value in attrs if name in names and value]


def test_the_site_loads_nothing_from_another_host(site: Path) -> None:
    """No page and no style sheet names a file of another host: no font, script, image or counter."""
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > len(list((ROOT / "docs").rglob("*.md")))
    loaded = {(page.name, each) for page in pages for each in Loads(page.read_text()).addresses}
    styles = {path.name: path.read_text() for path in site.rglob("*.css")}
    loaded |= {(name, each) for name, text in styles.items() for each in re.findall(r"url\(['\"]?([^'\")]+)", text)}
    loaded |= {(name, each) for name, text in styles.items() for each in re.findall(r"@import\s+([^;]+)", text)}
    assert len(loaded) > len(pages)
    assert [(name, each) for name, each in loaded if urlsplit(each.strip("'\" ")).netloc] == []


def test_examples_of_what_is_generated_are_true() -> None:
    """The examples in the docstrings of the extension give the output that stands below them."""
    spec = importlib.util.spec_from_file_location("generated", ROOT / "docs/site/generated.py")
    assert spec is not None
    assert spec.loader is not None
    generated = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generated)
    found = doctest.testmod(generated)
    assert (found.failed, found.attempted > 0) == (0, True)


def test_the_http_api_has_parameters_and_fields(site: Path) -> None:
    """Each call of the OpenAPI document has its answers below its title, and each document its fields."""
    text = (site / "docs/reference/http-api.html").read_text()
    described = document(ROUTES)
    assert text.count("<summary>Parameters, body and answers</summary>") == len(ROUTES)
    assert {f'id="fields-{name.lower()}"' for name in described["components"]["schemas"]} <= set(
        re.findall(r'id="fields-\w+"', text)
    )
    start, end = text.index('id="post-v1-models-hash-partial-fit"'), text.index('id="post-v1-models-hash-predict"')
    assert "Idempotency-Key" in text[start:end]
    assert 'href="#fields-acceptedanswer"' in text[start:end]


def test_the_python_api_has_signatures_and_docstrings(site: Path) -> None:
    """Every public name of the package is there, with its methods; what scikit-learn adds is not."""
    text = (site / "docs/reference/python-api.html").read_text()
    assert {f'id="keepfit.{name}"' for name in keepfit.__all__} <= set(re.findall(r'id="keepfit\.\w+"', text))
    assert 'id="keepfit.client.clients.Model.partial_fit"' in text
    assert "get_metadata_routing" not in text


async def test_a_reader_searches_without_another_host(url: str, page: Page, site: Path) -> None:
    """The root leads to the index; its search finds a page, which is there, and nothing else is requested."""
    (leads,) = re.findall(r'content="0; url=([^"]+)"', (site / "index.html").read_text())
    await page.goto(f"{url}{leads}")
    # Nothing is evaluated while the browser goes from page to page, which would be an error at some moments.
    search = await page.evaluate(
        "(({ form, name }) => `${form.action}?${name}=`)(document.querySelector('.sidebar-search'))"
    )
    await page.goto(f"{search}retention")
    found = await page.until("document.querySelector('ul.search li a[href*=\"concepts/snapshots.html\"]')?.href")
    await page.goto(found)
    assert await page.text("h1") == "Snapshots"
    assert page.exceptions == []
    assert {urlsplit(each).netloc for each in page.requests} == {urlsplit(url).netloc}
