import assert from "node:assert/strict";
import { test } from "node:test";

import { MalformedError, UnauthorizedError } from "keepfit";
import { MessageParser } from "../dist/sse.js";
import { client, HASH, httpServer, METADATA, problem } from "./servers.mjs";

const STREAM = '\ufeffretry: 1\r\nid: 1-0\r\n\r\n: ping\n\nid:2-0\rdata:{"a":\rdata: 1}\r\revent: x\n\nid: 3-0\r\ndata: {"b":"ä"}\r\n\r\nid\ndata\n\n';

test("a stream is read in the same way wherever it is cut", () => {
  const expected = [{ id: "1-0", data: undefined }, { id: "2-0", data: '{"a":\n1}' }, { id: "3-0", data: '{"b":"ä"}' }, { id: "", data: "" }];
  for (let size = 1; size <= STREAM.length; size++) {
    const parser = new MessageParser();
    const read = [];
    for (let start = 0; start < STREAM.length; start += size) read.push(...parser.push(STREAM.slice(start, start + size)));
    assert.deepEqual(read, expected, `parts of ${size}`);
    assert.equal(parser.retryMs, 1);
  }
  assert.throws(() => new MessageParser().push(`data: ${"x".repeat(5_000_000)}`), Error);
});

const STREAM_TYPE = { "Content-Type": "text/event-stream; charset=utf-8" };
const event = (id, fields = {}) => `id: ${id}\r\ndata: ${JSON.stringify({ kind: "commit", timestamp: 1, ...fields })}\r\n\r\n`;

test("a broken stream goes on after the last event", async (t) => {
  const positions = [];
  const { url, requests } = await httpServer(t, ({ headers }, response, number) => {
    positions.push(headers["last-event-id"]);
    if (number === 3) return problem(response, 503, "unavailable", { "Retry-After": "0" });
    response.writeHead(200, STREAM_TYPE);
    response.write(`retry: 1\r\nid: ${number}-0\r\n\r\n`);
    if (number === 1) response.end();
    else if (number === 2) response.write(event("2-5", { version: 1 }), () => response.socket.destroy());
    else response.end(event("4-5", { version: 2 }) + event("4-6", { version: 3 }));
  });
  const seen = [];
  for await (const { id, kind, version } of client(t, { url }).model(METADATA).events({ kind: ["commit", "drift"] })) {
    seen.push([id, kind, version]);
    if (version === 3) break;
  }
  assert.deepEqual(seen, [["2-5", "commit", 1], ["4-5", "commit", 2], ["4-6", "commit", 3]]);
  assert.deepEqual(positions, [undefined, "1-0", "2-5", "2-5"]);
  assert.match(requests[0].url, /^\/v1\/events\?kind=commit%2Cdrift&hash=[0-9a-f]{64}$/);
  assert.equal(requests[0].headers.accept, "text/event-stream");
});

test("filters and the position are those that the caller names", async (t) => {
  const { url, requests } = await httpServer(t, (_, response) => response.writeHead(200, STREAM_TYPE).end(event("9-0")));
  for await (const { id } of client(t, { url }).events({ hash: [HASH, HASH], metadata: { brand: "nike & co" }, lastEventId: "0-0" })) {
    assert.equal(id, "9-0");
    break;
  }
  assert.equal(requests[0].url, `/v1/events?hash=${HASH}%2C${HASH}&metadata%5Bbrand%5D=nike%20%26%20co`);
  assert.equal(requests[0].headers["last-event-id"], "0-0");
});

test("a stream that is refused is an error", async (t) => {
  const { url, requests } = await httpServer(t, (_, response, number) => problem(response, number === 1 ? 401 : 400, number === 1 ? "unauthorized" : "malformed"));
  const made = client(t, { url });
  await assert.rejects(made.events().next(), UnauthorizedError);
  await assert.rejects(made.events({ kind: "nonsense" }).next(), MalformedError);
  assert.equal(requests.length, 2);
});

test("a closed client ends the pause before the next attempt", { timeout: 60_000 }, async (t) => {
  const { url } = await httpServer(t, (_, response) => problem(response, 503, "unavailable", { "Retry-After": "3600" }));
  const made = client(t, { url });
  const next = made.events().next();
  const call = made.model(METADATA).describe({ timeoutMs: 2 ** 31 - 1 });
  // Both have their refusal once a later call has one.
  await assert.rejects(client(t, { url, retries: 0 }).model(METADATA).describe());
  for (let turn = 0; turn < 20; turn += 1) await new Promise(setImmediate);
  made.close();
  await assert.rejects(next, /closed/);
  await assert.rejects(call, /closed/);
});

test("an aborted signal ends a stream and its connection", async (t) => {
  const stopping = new AbortController();
  let closed;
  const { url } = await httpServer(t, (_, response) => {
    closed = new Promise((resolve) => response.on("close", resolve));
    response.writeHead(200, STREAM_TYPE).write(event("1-0"));
  });
  const reason = new Error("enough");
  await assert.rejects(async () => {
    for await (const _ of client(t, { url }).events({ signal: stopping.signal })) setImmediate(() => stopping.abort(reason));
  }, reason);
  await closed;
});

test("a reader that is slow gets every event", async (t) => {
  const { url } = await httpServer(t, (_, response) => {
    response.writeHead(200, STREAM_TYPE);
    for (let n = 1; n <= 5_000; n++) response.write(event(`${n}-0`, { text: "x".repeat(1_000) }));
  });
  let expected = 0;
  for await (const { id } of client(t, { url }).events()) {
    assert.equal(id, `${++expected}-0`);
    if (expected % 500 === 0) await new Promise(setImmediate);
    if (expected === 5_000) break;
  }
});
