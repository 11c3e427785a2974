"""A page in a browser, driven as a user does it: with the mouse and the keyboard, waiting for what the page shows.

Speaks the Chrome DevTools protocol over one WebSocket. Each page has a browser context of its own: no cookie, cache or
storage of another test.
"""

import asyncio
import base64
import itertools
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, NamedTuple, Self

import aiohttp

DEADLINE_S = 60

# The middle of the first element of a selector that contains a text; null while there is none, it is disabled or moves,
# or another element covers it.
FIND = """
async (selector, text) => {
  const element = [...document.querySelectorAll(selector)].find((each) => each.textContent.includes(text));
  if (!element || element.disabled) return null;
  element.scrollIntoView({ block: 'center', behavior: 'instant' });
  const before = element.getBoundingClientRect();
  for (let frame = 0; frame < 2; frame += 1) await new Promise(requestAnimationFrame);
  const { left, top, width, height } = element.getBoundingClientRect();
  if (left !== before.left || top !== before.top) return null;
  const [x, y] = [left + width / 2, top + height / 2];
  return element.contains(document.elementFromPoint(x, y)) ? { x, y } : null;
}
"""


class Look(NamedTuple):
    """How a page is looked at: colours, and the size of the window."""

    scheme: str
    width: int
    height: int
    is_phone: bool = False


LOOKS = {
    "light": Look("light", 1280, 900),
    "dark": Look("dark", 1280, 900),
    "phone": Look("light", 390, 844, is_phone=True),
}


class Page:
    """One page: what it shows, and everything that it asked for and complained about since it was opened.

    Attributes
    ----------
    requests
        The addresses that the page requested, oldest first, without those of `data:`.
    violations
        Directives of a Content-Security-Policy that the page broke, each with what was refused.
    exceptions
        Errors that no code of the page handled.
    """

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.requests: list[str] = []
        self.violations: list[str] = []
        self.exceptions: list[str] = []
        self._socket = socket
        self._session: dict[str, str] = {}
        self._numbers = itertools.count(1)
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}

    @classmethod
    @asynccontextmanager
    async def opened(cls, browser_url: str) -> AsyncIterator[Self]:
        """Open an empty page in a browser; close it with its context when the block ends."""
        async with (
            aiohttp.ClientSession() as http,
            http.ws_connect(browser_url, max_msg_size=0) as socket,
        ):
            page = cls(socket)
            reader = asyncio.create_task(page._read())
            try:
                # The browser disposes of the context when the connection ends, however the test does.
                context = await page.call("Target.createBrowserContext", disposeOnDetach=True)
                target = await page.call("Target.createTarget", url="about:blank", width=1280, height=1024, **context)
                attached = await page.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)
                page._session = {"sessionId": attached["sessionId"]}
                for domain in ("Page", "Runtime", "Network", "Audits"):
                    await page.call(f"{domain}.enable")
                yield page
            finally:
                reader.cancel()
                await asyncio.gather(reader, return_exceptions=True)

    async def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of the protocol; return its result, or fail with its error."""
        number = next(self._numbers)
        self._answers[number] = asyncio.get_running_loop().create_future()
        async with asyncio.timeout(DEADLINE_S):
            await self._socket.send_json({"id": number, "method": method, "params": parameters, **self._session})
            answer = await self._answers[number]
        assert "error" not in answer, f"{method}: {answer['error']}"
        result: dict[str, Any] = answer["result"]
        return result

    async def goto(self, url: str) -> None:
        """Load an address, which must answer; the scripts of its page have run."""
        navigated = await self.call("Page.navigate", url=url)
        assert "errorText" not in navigated, f"{url}: {navigated['errorText']}"
        await self.until("document.readyState === 'complete'")

    async def evaluate(self, expression: str) -> Any:
        """Return the value of an expression of JavaScript in the page, or what its promise resolves to."""
        got = await self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in got, f"{expression}: {got['exceptionDetails']}"
        return got["result"].get("value")

    async def until(self, expression: str) -> Any:
        """Wait until an expression is true in the page; return its value."""
        try:
            async with asyncio.timeout(DEADLINE_S):
                while True:
                    if value := await self.evaluate(expression):
                        return value
                    await asyncio.sleep(0.02)
        except TimeoutError:
            raise AssertionError(f"{expression} did not become true; the page shows:\n{await self.text()}") from None

    async def text(self, selector: str = "body") -> str:
        """Return the text that an element shows."""
        return str(await self.evaluate(f"document.querySelector({json.dumps(selector)}).innerText"))

    async def click(self, selector: str, text: str = "") -> None:
        """Click on the element of a selector that contains a text, once it is there, enabled, and nothing covers it."""
        point = await self.until(f"({FIND})({json.dumps(selector)}, {json.dumps(text)})")
        for kind in ("mousePressed", "mouseReleased"):
            await self.call("Input.dispatchMouseEvent", type=kind, button="left", clickCount=1, **point)

    async def fill(self, selector: str, text: str) -> None:
        """Type a text into a field, in place of its content."""
        await self.click(selector)
        await self.evaluate("document.activeElement.select()")
        await self.call("Input.insertText", text=text)

    async def look(self, look: "Look") -> None:
        """Set the colours and the size of the window."""
        scheme = {"name": "prefers-color-scheme", "value": look.scheme}
        await self.call("Emulation.setEmulatedMedia", features=[scheme])
        await self.call(
            "Emulation.setDeviceMetricsOverride", width=look.width, height=look.height,
            deviceScaleFactor=2 if look.is_phone else 1, mobile=look.is_phone,
        )  # fmt: skip

    async def picture(self, *, whole: bool = False) -> bytes:
        """Return what the window shows as PNG, or the `whole` page."""
        taken = await self.call("Page.captureScreenshot", captureBeyondViewport=whole)
        return base64.b64decode(taken["data"])

    async def _read(self) -> None:
        """Receive answers and events until the connection ends; calls that have no answer then fail."""
        async for message in self._socket:
            received = message.json()
            if "id" not in received:
                self._note(received["method"], received["params"])
            elif not (answer := self._answers.pop(received["id"])).done():
                answer.set_result(received)
        for answer in self._answers.values():
            if not answer.done():
                answer.set_exception(ConnectionError("the browser ended"))

    def _note(self, method: str, event: dict[str, Any]) -> None:
        """Keep what an event says about the page."""
        if method == "Network.requestWillBeSent" and not event["request"]["url"].startswith("data:"):
            self.requests.append(event["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            details = event["exceptionDetails"]
            self.exceptions.append(details.get("exception", {}).get("description", details["text"]))
        elif method == "Audits.issueAdded" and event["issue"]["code"] == "ContentSecurityPolicyIssue":
            issue = event["issue"]["details"]["contentSecurityPolicyIssueDetails"]
            self.violations.append(f"{issue['violatedDirective']}: {issue.get('blockedURL', 'inline')}")
