"""Reference: a bare aiohttp server on uvloop that reads the body and answers a few bytes of JSON."""

import os

import uvloop
from aiohttp import web

ANSWER = b'{"predictions":[0.0]}'


async def predict(request: web.Request) -> web.Response:
    """Read the body and answer a constant."""
    await request.read()
    return web.Response(body=ANSWER, content_type="application/json")


if __name__ == "__main__":
    application = web.Application()
    application.router.add_post("/predict", predict)
    web.run_app(
        application, host="127.0.0.1", port=int(os.environ["PORT"]), access_log=None, loop=uvloop.new_event_loop()
    )
