import assert from "node:assert/strict";
import { randomBytes } from "node:crypto";
import { test } from "node:test";
import { gunzipSync, gzipSync } from "node:zlib";

import {
  ConflictError, ConnectionError, DeadlineError, ForbiddenError, IdempotencyError, InvalidError, Keepfit, KeepfitError, LearningError, MalformedError,
  NotFoundError, OverloadedError, ServerError, TimeoutError, TooLargeError, UnauthorizedError, UnavailableError,
} from "keepfit";
import { client, HASH, httpServer, json, METADATA, problem, tcpServer } from "./servers.mjs";

const ROWS = { X: [[1]], y: [2] };
const LEARNED = { hash: HASH, accepted: 1, sequence: 1, generation: 1, version: 0 };

test("a connection serves one call after the other", async (t) => {
  const { url, requests } = await httpServer(t, (_, response) => json(response, LEARNED));
  const model = client(t, { url }).model(METADATA);
  for (let n = 0; n < 3; n++) await model.partialFit(ROWS);
  assert.equal(new Set(requests.map(({ port }) => port)).size, 1);
});

test("more calls than connections wait in order", async (t) => {
  const { url, requests } = await httpServer(t, (_, response) => setImmediate(() => json(response, LEARNED)));
  const model = client(t, { url, connectionsMax: 2 }).model(METADATA);
  await Promise.all(Array.from({ length: 20 }, (_, y) => model.partialFit({ X: [[1]], y: [y] })));
  assert.equal(new Set(requests.map(({ port }) => port)).size, 2);
  assert.deepEqual(requests.map(({ body }) => JSON.parse(body).y[0]).sort((a, b) => a - b), Array.from({ length: 20 }, (_, y) => y));
});

test("headers, path and body are those of the API", async (t) => {
  const { url, requests } = await httpServer(t, (_, response) => json(response, LEARNED));
  const model = client(t, { url: `${url}/models/`, apiKey: "secret", userAgent: "shop/1.2" }).model(METADATA);
  await model.partialFit(ROWS, { wait: 2.5, idempotencyKey: "vote-1" });
  const [{ method, url: path, headers, body }] = requests;
  assert.deepEqual([method, path], ["POST", `/models/v1/models/${model.hash}/partial_fit`]);
  assert.equal(headers.authorization, "Bearer secret");
  assert.equal(headers.prefer, "wait=2.5");
  assert.equal(headers["idempotency-key"], "vote-1");
  assert.equal(headers["content-type"], "application/json");
  assert.match(headers["user-agent"], /^shop\/1\.2 keepfit-node\/\d+\.\d+\.\d+ node\/\d+/);
  assert.deepEqual(JSON.parse(body), ROWS);
});

test("a learning call is repeated with one key after errors that pass, and a lost answer", async (t) => {
  const { url, requests } = await httpServer(t, (request, response, number) => {
    if (number === 1) problem(response, 503, "unavailable");
    else if (number === 2) response.socket.destroy();
    else if (number === 3) problem(response, 429, "inbox-full", { "Retry-After": "0" });
    else json(response, LEARNED);
  });
  const model = client(t, { url }).model(METADATA);
  assert.deepEqual(await model.partialFit(ROWS), LEARNED);
  const keys = requests.map(({ headers }) => headers["idempotency-key"]);
  assert.equal(keys.length, 4);
  assert.equal(new Set(keys).size, 1);
  assert.match(keys[0], /^[0-9a-f-]{36}$/);
  await model.partialFit(ROWS);
  assert.notEqual(requests.at(-1).headers["idempotency-key"], keys[0]);
});

test("a restore is never repeated, and has a connection of its own", async (t) => {
  const { url, requests } = await httpServer(t, ({ url: path }, response) => (path.endsWith("restore") ? response.socket.destroy() : json(response, LEARNED)));
  const model = client(t, { url }).model(METADATA);
  await model.partialFit(ROWS);
  await assert.rejects(model.restore({ version: 3 }), ConnectionError);
  assert.deepEqual(requests.map(({ url: path }) => path.split("/").at(-1)), ["partial_fit", "restore"]);
  assert.notEqual(requests[0].port, requests[1].port);
});

test("a call is repeated as often as the client says, and the error has the key", async (t) => {
  const { url, requests } = await httpServer(t, (_, response) => problem(response, 503, "unavailable"));
  const failed = await client(t, { url, retries: 2 }).model(METADATA).partialFit(ROWS).catch((error) => error);
  assert.ok(failed instanceof UnavailableError);
  assert.equal(failed.attempts, 3);
  assert.equal(failed.temporary, true);
  assert.equal(failed.idempotencyKey, requests[0].headers["idempotency-key"]);
});

test("Retry-After that is longer than the time ends the call at once", async (t) => {
  for (const value of ["3600", new Date(Date.now() + 3_600_000).toUTCString()]) {
    const { url, requests } = await httpServer(t, (_, response) => problem(response, 429, "rate-limit", { "Retry-After": value }));
    const failed = await client(t, { url }).model(METADATA).partialFit(ROWS).catch((error) => error);
    assert.ok(failed instanceof OverloadedError);
    assert.ok(failed.retryAfterMs > 3_500_000);
    assert.equal(requests.length, 1);
  }
});

test("an address where nothing has ever answered fails at once", async (t) => {
  const { url } = await httpServer(t, () => {});
  const closed = `http://127.0.0.1:${Number(new URL(url).port) === 1 ? 2 : 1}`;
  const failed = await client(t, { url: closed }).model(METADATA).partialFit(ROWS).catch((error) => error);
  assert.ok(failed instanceof ConnectionError && failed instanceof UnavailableError && failed instanceof KeepfitError);
  assert.match(failed.message, /No answer from http:\/\/127\.0\.0\.1:\d+: .*ECONNREFUSED/);
  assert.equal(failed.status, undefined);
  assert.equal(failed.cause.code, "ECONNREFUSED");
});

for (const [status, name, Kind] of [
  [400, "malformed", MalformedError], [401, "unauthorized", UnauthorizedError], [403, "forbidden", ForbiddenError], [403, "foreign-origin", ForbiddenError],
  [404, "not-found", NotFoundError], [408, "request-timeout", UnavailableError], [409, "conflict", ConflictError], [409, "not-confirmed", ConflictError], [413, "too-large", TooLargeError],
  [413, "request-entity-too-large", TooLargeError], [415, "unsupported-media-type", MalformedError], [422, "invalid", InvalidError],
  [422, "idempotency", IdempotencyError], [422, "learning", LearningError], [422, "unstorable", LearningError], [429, "inbox-full", OverloadedError],
  [500, "poison", ServerError], [503, "corrupt-bundle", UnavailableError], [504, "deadline", DeadlineError],
]) {
  test(`${status} ${name} is a ${Kind.name}`, async (t) => {
    const errors = [{ row: 0, column: "year", detail: "'x' is not a number" }];
    const { url } = await httpServer(t, (_, response) =>
      json(response, { type: `urn:keepfit:problem:${name}`, title: "T", status, detail: "D.", errors }, status, { "X-Request-ID": "r-1" }));
    const failed = await client(t, { url, retries: 0 }).model(METADATA).partialFit(ROWS).catch((error) => error);
    assert.equal(failed.constructor, Kind);
    assert.equal(failed.name, Kind.name);
    assert.deepEqual([failed.type, failed.title, failed.status, failed.detail, failed.message], [`urn:keepfit:problem:${name}`, "T", status, "D.", "D."]);
    assert.deepEqual([failed.errors, failed.requestId, failed.attempts], [errors, "r-1", 1]);
    assert.equal(failed.temporary, [408, 429, 503, 504].includes(status));
  });
}

test("a model that was deleted meanwhile is asked again", async (t) => {
  const { url, requests } = await httpServer(t, (_, response, number) => (number === 1 ? problem(response, 409, "stale-model") : json(response, LEARNED)));
  await client(t, { url }).model(METADATA).partialFit(ROWS);
  assert.equal(requests.length, 2);
});

test("the error of a proxy is an error of its status", async (t) => {
  for (const body of ["<html>Bad Gateway</html>", "null", "[]", '{"detail": 1}', ""]) {
    const { url } = await httpServer(t, (_, response) => response.writeHead(502, { "Content-Type": "text/html" }).end(body));
    const failed = await client(t, { url, retries: 0 }).model(METADATA).describe().catch((error) => error);
    assert.equal(failed.constructor, UnavailableError);
    assert.match(failed.message, /502 without a problem document/);
    assert.equal(failed.type, "about:blank");
  }
});

test("no error and no inspection shows the API key", async (t) => {
  const { url } = await httpServer(t, (_, response) => problem(response, 401, "unauthorized"));
  const { inspect } = await import("node:util");
  const made = client(t, { url, apiKey: "secret-key" });
  const failed = await made.model(METADATA).describe().catch((error) => error);
  assert.doesNotMatch(inspect([failed, made, made.model(METADATA)], { depth: 9, showHidden: true }) + JSON.stringify(failed), /secret/);
  assert.throws(() => new Keepfit({ apiKey: "secret\r\nX: y" }), (error) => error instanceof InvalidError && !error.message.includes("secret"));
  assert.throws(() => new Keepfit({ url: "http://user:secret@host" }), (error) => error instanceof MalformedError && !error.message.includes("secret"));
});

test("bodies from a size on are compressed, and compressed answers are read", async (t) => {
  const { url, requests } = await httpServer(t, (_, response) => {
    const body = gzipSync(JSON.stringify({ ...LEARNED, text: "ä".repeat(5000) }));
    response.writeHead(200, { "Content-Type": "application/json", "Content-Encoding": "gzip", "Content-Length": body.length }).end(body);
  });
  const model = client(t, { url, gzipBytesMin: 1000 }).model(METADATA);
  const many = { X: Array.from({ length: 500 }, (_, n) => [n]), y: Array.from({ length: 500 }, (_, n) => n) };
  assert.equal((await model.partialFit(many)).text.length, 5000);
  await model.partialFit(ROWS);
  assert.equal(requests[0].headers["content-encoding"], "gzip");
  assert.deepEqual(JSON.parse(gunzipSync(requests[0].body)), many);
  assert.equal(requests[1].headers["content-encoding"], undefined);
  assert.equal(requests[1].headers["accept-encoding"], "gzip");
});

test("a large body waits for the gateway's 100, and is not sent when its head is refused", async (t) => {
  const rows = { X: Array.from({ length: 300_000 }, () => [1.5]) };
  const length = JSON.stringify(rows).length;
  const seen = [];
  const url = await tcpServer(t, (socket, number) => {
    const refusal = '{"detail":"Big"}';
    socket.once("data", (head) => {
      const connection = (seen[number] = { expects: head.includes("Expect: 100-continue"), bytes: head.length });
      socket.on("data", (chunk) => {
        connection.bytes += chunk.length;
        if (connection.bytes === head.length + length) socket.end("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}");
      });
      if (number === 1) socket.end(`HTTP/1.1 413 x\r\nConnection: close\r\nContent-Length: ${refusal.length}\r\n\r\n${refusal}`);
      else socket.write("HTTP/1.1 100 Continue\r\n\r\n");
    });
  });
  // Without a 100 the body would be sent after a second.
  const model = client(t, { url, gzipBytesMin: Infinity, timeoutMs: 900 }).model(METADATA);
  await assert.rejects(model.score(rows), (error) => error instanceof TooLargeError && error.message === "Big");
  assert.ok(seen[1].expects && seen[1].bytes < 1_000);
  assert.deepEqual(await model.score(rows), {});
  assert.ok(seen[2].expects);
});

test("bytes after an answer never become the next answer", async (t) => {
  const answer = (version) => {
    const body = JSON.stringify({ ...LEARNED, version });
    return `HTTP/1.1 200 OK\r\nContent-Length: ${body.length}\r\n\r\n${body}`;
  };
  const url = await tcpServer(t, (socket, number) => socket.on("data", () => socket.write(answer(number) + (number === 1 ? answer(666) : ""))));
  const model = client(t, { url, connectionsMax: 1 }).model(METADATA);
  const answers = await Promise.all([model.partialFit(ROWS), model.partialFit(ROWS), model.partialFit(ROWS)]);
  assert.deepEqual(answers.map(({ version }) => version), [1, 2, 2]);
});

test("a connection that the gateway closed meanwhile is replaced", async (t) => {
  const { url, requests } = await httpServer(t, (_, response) => {
    const { socket } = response;
    response.on("finish", () => socket.end());
    json(response, LEARNED);
  });
  const model = client(t, { url, retries: 1 }).model(METADATA);
  for (let n = 0; n < 3; n++) assert.deepEqual(await model.partialFit(ROWS), LEARNED);
  assert.equal(new Set(requests.map(({ headers }) => headers["idempotency-key"])).size, 3);
});

/** Return the error of a call that stays in a phase. On a busy machine a short time may end before the call is there. */
async function timedOut(phase, call) {
  let failed;
  for (const timeoutMs of [50, 500, 5_000]) {
    failed = await call(timeoutMs).catch((error) => error);
    if (failed.phase === phase) break;
  }
  assert.ok(failed instanceof TimeoutError && failed instanceof UnavailableError);
  assert.equal(failed.phase, phase);
  return failed;
}

const body = (text) => `HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n${text}`;
for (const [phase, handle, rows] of [
  ["waiting for the answer", () => {}, ROWS],
  ["reading the answer", (socket) => socket.on("data", () => socket.write(body("{"))), ROWS],
  ["sending", (socket) => socket.once("data", () => socket.pause().write("HTTP/1.1 100 Continue\r\n\r\n")), { X: [["x".repeat(16_000_000)]] }],
]) {
  test(`a timeout while ${phase} says so`, async (t) => {
    const url = await tcpServer(t, handle);
    const model = client(t, { url, gzipBytesMin: Infinity }).model(METADATA);
    const failed = await timedOut(phase, (timeoutMs) => model.score(rows, { timeoutMs }));
    assert.match(failed.message, new RegExp(`^POST http://127.0.0.1:\\d+/v1/models/\\w+/score: timeout of \\d+ ms while ${phase}\\.$`));
  });
}

test("a timeout while connecting says so: here a TLS handshake that is not answered", async (t) => {
  const url = await tcpServer(t, () => {});
  const failed = await client(t, { url: url.replace("http:", "https:"), timeoutMs: 50 }).model(METADATA).describe().catch((error) => error);
  assert.equal(failed.phase, "connecting");
});

test("a timeout without a free connection says so", async (t) => {
  const url = await tcpServer(t, () => {});
  const model = client(t, { url, connectionsMax: 1 }).model(METADATA);
  const stopping = new AbortController();
  const first = model.describe({ signal: stopping.signal });
  const failed = await model.describe({ timeoutMs: 50 }).catch((error) => error);
  assert.equal(failed.phase, "waiting for a free connection");
  stopping.abort();
  await assert.rejects(first, { name: "AbortError" });
});

test("the time of a call covers its repetitions, and the error names the last failure", async (t) => {
  const failed = await timedOut("waiting for the answer", async (timeoutMs) => {
    const { url } = await httpServer(t, (_, response, number) => (number < 3 ? problem(response, 503, "unavailable") : undefined));
    return client(t, { url }).model(METADATA).describe({ timeoutMs: 10 * timeoutMs });
  });
  assert.equal(failed.attempts, 3);
  assert.match(failed.message, /while waiting for the answer; the last attempt failed: This is unavailable\.$/);
});

test("an aborted signal ends a call, and the pause between two attempts", async (t) => {
  const url = await tcpServer(t, () => {});
  const model = client(t, { url }).model(METADATA);
  const reason = new Error("enough");
  await assert.rejects(model.describe({ signal: AbortSignal.abort(reason) }), reason);
  const stopping = new AbortController();
  const call = model.partialFit(ROWS, { signal: stopping.signal });
  setImmediate(() => stopping.abort(reason));
  await assert.rejects(call, reason);

  const pausing = new AbortController();
  const server = await httpServer(t, (_, response) => {
    response.on("close", () => setImmediate(() => pausing.abort(reason)));
    problem(response, 503, "unavailable", { "Retry-After": "30" });
  });
  await assert.rejects(client(t, { url: server.url }).model(METADATA).describe({ signal: pausing.signal }), reason);
});

test("a signal or a timeout that comes while the body is compressed ends the call, and nothing is sent", async (t) => {
  const { url, requests } = await httpServer(t, (_, response) => json(response, LEARNED));
  const model = client(t, { url, gzipBytesMin: 0 }).model(METADATA);
  const rows = { X: [[randomBytes(4_000_000).toString("base64")]] };
  const stopping = new AbortController();
  const reason = new Error("enough");
  const call = model.score(rows, { signal: stopping.signal });
  stopping.abort(reason);
  await assert.rejects(call, reason);
  await assert.rejects(model.score(rows, { timeoutMs: 1 }), { name: "TimeoutError", phase: "sending" });
  assert.equal(requests.length, 0);
});

test("a signal that comes while the answer is inflated ends no other call", async (t) => {
  const large = gzipSync(`{"text": "${" ".repeat(24_000_000)}"}`);
  const stopping = new AbortController();
  const { url, requests } = await httpServer(t, (_, response, number) => {
    if (number === 1) return response.writeHead(200, { "Content-Encoding": "gzip", "Content-Length": large.length }).end(large);
    // The first call inflates its answer, and this one is on its connection.
    stopping.abort(new Error("enough"));
    json(response, LEARNED);
  });
  const model = client(t, { url, connectionsMax: 1, retries: 0 }).model(METADATA);
  const first = model.describe({ signal: stopping.signal }).catch(() => {});
  assert.deepEqual(await model.partialFit(ROWS), LEARNED);
  await first;
  assert.equal(new Set(requests.map(({ port }) => port)).size, 1);
});

test("a 500 is not repeated: it does not pass by itself", async (t) => {
  const { url, requests } = await httpServer(t, (_, response) => problem(response, 500, "unloadable"));
  await assert.rejects(client(t, { url }).model(METADATA).partialFit(ROWS), ServerError);
  assert.equal(requests.length, 1);
});

test("an answer that is not JSON, and a redirect, are errors", async (t) => {
  for (const [status, text] of [[200, "<html>Log in</html>"], [302, "{}"], [304, ""], [200, "{}"]]) {
    const { url, requests } = await httpServer(t, (_, response) => response.writeHead(status, { Location: "http://127.0.0.1:1/" }).end(text));
    const model = client(t, { url, retries: 0 }).model(METADATA);
    if (text !== "{}" || status !== 200) await assert.rejects(model.describe(), KeepfitError);
    for (const { reason } of await Promise.allSettled([model.predict([[1]]), model.predict([[2]])])) assert.ok(reason instanceof KeepfitError);
    await assert.rejects(model.events().next(), KeepfitError);
    assert.ok(requests.every(({ url: path }) => path.startsWith("/v1/")));
  }
});

test("a closed client ends its calls and makes no more", async (t) => {
  const url = await tcpServer(t, () => {});
  const made = client(t, { url });
  const calls = [made.model(METADATA).describe(), made.model(METADATA).predict([[1]]), made.events().next()];
  setImmediate(() => setImmediate(() => made.close()));
  for (const settled of await Promise.allSettled(calls)) assert.ok(settled.reason instanceof UnavailableError);
  await assert.rejects(made.model(METADATA).describe(), /closed/);
  await assert.rejects(made.model(METADATA).predict([[1]]), /closed/);
});

test("options that cannot be used are refused", () => {
  for (const options of [
    { url: "127.0.0.1:8000" }, { url: "ftp://host" }, { url: "http://host?a=b" }, { timeoutMs: 0 }, { timeoutMs: Infinity }, { timeoutMs: "5" }, { retries: -1 },
    { connectionsMax: 0 }, { gzipBytesMin: NaN }, { cacheBytesMax: -1 }, { staleMsMax: -1 }, { userAgent: "a\nb" }, { apiKey: "ä" },
  ]) assert.throws(() => new Keepfit(options), KeepfitError, JSON.stringify(options));
});

test("arguments that cannot be sent are refused before anything is sent", async (t) => {
  const { url, requests } = await httpServer(t, (_, response) => json(response, {}));
  const made = client(t, { url });
  const model = made.model(METADATA);
  for (const call of [
    () => model.partialFit(ROWS, { idempotencyKey: "" }), () => model.partialFit(ROWS, { idempotencyKey: "a\r\nb" }), () => model.partialFit(ROWS, { idempotencyKey: "k".repeat(129) }),
    () => model.partialFit(ROWS, { wait: 61 }), () => model.partialFit(ROWS, { wait: -1 }), () => model.partialFit({ X: [[NaN]], y: [1] }), () => model.predict([[undefined]]),
    () => model.predict([[1]], { timeoutMs: 0 }), () => model.describe({ timeoutMs: -1 }), () => made.request("GET", "v1"), () => made.request("GET", "/v1 HTTP/1.1\r\nX: y"),
    () => made.request("GET", "/v1", { headers: { "a b": "c" } }), () => made.request("GET", "/v1", { headers: { a: "b\r\nc" } }), () => made.model("f".repeat(64)).create({ estimator: "SGDRegressor" }),
  ]) await assert.rejects(call, KeepfitError, String(call));
  assert.equal(requests.length, 0);
});
