import assert from "node:assert/strict";
import { test } from "node:test";

import { ConnectionError, UnavailableError } from "keepfit";
import { client, httpServer } from "./servers.mjs";

const LINES = { "Content-Type": "application/x-ndjson; charset=utf-8" };

async function read(stream) {
  const found = [];
  try {
    for await (const { n } of stream) found.push(n);
  } catch (error) {
    return { found, error };
  }
  return { found };
}

test("the last line of a stream needs no end, and letters may be cut", async (t) => {
  const body = Buffer.from('{"n":"größe"}\n\n{"n":2}');
  const { url, requests } = await httpServer(t, (_, response) => {
    response.writeHead(200, LINES);
    for (const byte of body) response.write(Buffer.of(byte));
    response.end();
  });
  assert.deepEqual(await read(client(t, { url }).streamHistory({ type: "vote" })), { found: ["größe", 2] });
  assert.equal(requests[0].url, "/v1/history?type=vote");
  assert.equal(requests[0].headers.accept, "application/x-ndjson");
});

test("a stream that breaks off, or is something else, is an error", async (t) => {
  const { url } = await httpServer(t, (_, response, number) => {
    if (number === 3) return response.writeHead(200, { "Content-Type": "text/html" }).end("<html>");
    response.writeHead(200, LINES);
    if (number === 1) response.write('{"n":1}\n', () => response.socket.destroy());
    else response.end('{"n":1}\n<html>\n');
  });
  const made = client(t, { url });
  const broken = await read(made.streamHistory());
  assert.ok(broken.error instanceof ConnectionError);
  assert.match(broken.error.message, /history .* broke off/);
  const changed = await read(made.streamHistory());
  assert.deepEqual(changed.found, [1]);
  assert.ok(changed.error instanceof UnavailableError);
  assert.ok((await read(made.streamHistory())).error instanceof UnavailableError);
});
