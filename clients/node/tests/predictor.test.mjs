import assert from "node:assert/strict";
import { test } from "node:test";

import { InvalidError, UnavailableError } from "keepfit";
import { AnswerCache } from "../dist/cache.js";
import { client, HASH, httpServer, json, METADATA, problem } from "./servers.mjs";

/** Predicts the first value of each row; refuses "bad", and rows of "none" without others; null for "none" beside others. */
async function gateway(t, version = () => 1) {
  return httpServer(t, ({ body, headers }, response) => {
    const { X: rows, proba } = JSON.parse(body);
    const X = rows.map((row) => Object.values(row));
    if (X.flat().includes("bad")) return problem(response, 422, "invalid");
    if (X.every(([value]) => value === "none")) return problem(response, 422, "invalid");
    const etag = `W/"1-${version()}"`;
    if (headers["if-none-match"] === etag) return response.writeHead(304, { ETag: etag }).end();
    const predictions = X.map(([value]) => (value === "none" ? null : value));
    const probabilities = X.map(([value]) => [value, 1 - value]);
    json(response, { hash: HASH, version: version(), rows_seen: 1, predictions, ...(proba && { probabilities, classes: ["a", "b"] }) }, 200, { ETag: etag });
  });
}

const rowsOf = ({ body }) => JSON.parse(body).X;
const settled = async (calls) => (await Promise.allSettled(calls)).map(({ value, reason }) => value?.predictions ?? reason);

test("calls of one turn become one request, and each gets its own rows", async (t) => {
  const { url, requests } = await gateway(t);
  const model = client(t, { url }).model(METADATA);
  const answers = await Promise.all([model.predict([[1], [2]]), model.predict([[3]]), model.predict([{ x: 4 }, [5]])]);
  assert.deepEqual(answers.map(({ predictions }) => predictions), [[1, 2], [3], [4, 5]]);
  assert.deepEqual(requests.map(rowsOf), [[[1], [2], [3], { x: 4 }, [5]]]);
  const [one, two, three] = await Promise.all([[[1], [2]], [[3]], [[4], [5]]].map((rows) => model.predict(rows, { proba: true })));
  assert.deepEqual([one.predictions, two.predictions, three.predictions], [[1, 2], [3], [4, 5]]);
  assert.deepEqual([one.probabilities, three.probabilities], [[[1, 0], [2, -1]], [[4, -3], [5, -4]]]);
  assert.deepEqual([one.classes, one.version, one.hash], [["a", "b"], 1, HASH]);
  assert.notEqual(one.classes, two.classes);
});

test("calls with other options, models or turns are other requests", async (t) => {
  const { url, requests } = await gateway(t);
  const made = client(t, { url });
  const [a, b] = [made.model(METADATA), made.model({ type: "hats" })];
  await Promise.all([a.predict([[1]]), a.predict([[2]], { proba: true }), b.predict([[3]]), a.predict([[4]], { version: 7 }), a.predict([[5]], { timeoutMs: 5_000 }), a.predict([[6]], { id: "x" })]);
  assert.equal(requests.length, 6);
  assert.deepEqual(requests.map(({ url: path }) => path.split("predict")[1]).sort(), ["", "", "", "", "?timeout=5", "?version=7"]);
  await a.predict([[1]]);
  await a.predict([[2]]);
  assert.equal(requests.length, 8);
  const single = client(t, { url, batch: false }).model(METADATA);
  await Promise.all([single.predict([[1]]), single.predict([[2]])]);
  assert.equal(requests.length, 10);
});

test("a wrong row is the error of its call, and of no other", async (t) => {
  const { url, requests } = await gateway(t);
  const model = client(t, { url }).model(METADATA);
  const [one, two, three] = await settled([model.predict([[1]]), model.predict([["bad"]]), model.predict([[3]])]);
  assert.deepEqual([one, three], [[1], [3]]);
  assert.ok(two instanceof InvalidError);
  assert.deepEqual(requests.map(rowsOf), [[[1], ["bad"], [3]], [[1]], [["bad"]], [[3]]]);
});

test("rows without a prediction have the error that they have alone", async (t) => {
  const { url } = await gateway(t);
  const model = client(t, { url }).model(METADATA);
  const [one, two, three] = await settled([model.predict([[1]]), model.predict([["none"]]), model.predict([["none"], [3]])]);
  assert.deepEqual([one, three], [[1], [null, 3]]);
  assert.ok(two instanceof InvalidError);
});

test("an outage is the error of all calls, without a request for each", async (t) => {
  const { url, requests } = await httpServer(t, (_, response) => problem(response, 503, "unavailable"));
  const model = client(t, { url, retries: 0 }).model(METADATA);
  for (const failed of await settled([model.predict([[1]]), model.predict([[2]])])) assert.ok(failed instanceof UnavailableError);
  assert.equal(requests.length, 1);
});

test("what is refused for the model or the key is the error of all calls, without a request for each", async (t) => {
  for (const status of [401, 403, 404, 409]) {
    const { url, requests } = await httpServer(t, (_, response) => problem(response, status, "problem"));
    const model = client(t, { url }).model(METADATA);
    for (const failed of await settled([model.predict([[1]]), model.predict([[2]])])) assert.equal(failed.status, status);
    assert.equal(requests.length, 1);
  }
});

test("a request has at most 512 rows, and large calls are made alone", async (t) => {
  const { url, requests } = await gateway(t);
  const model = client(t, { url }).model(METADATA);
  const counts = [200, 200, 200, 300, 1];
  await Promise.all(counts.map((count) => model.predict(Array.from({ length: count }, (_, n) => [n]))));
  assert.deepEqual(requests.map((request) => rowsOf(request).length).sort((a, b) => a - b), [201, 300, 400]);
});

test("an aborted call leaves the others alone; when all are aborted, so is the request", async (t) => {
  const { url, requests } = await gateway(t);
  const model = client(t, { url }).model(METADATA);
  const [a, b, c] = [1, 2, 3].map(() => new AbortController());
  const calls = settled([model.predict([[1]], { signal: a.signal }), model.predict([[2]])]);
  a.abort(new Error("a"));
  const [first, second] = await calls;
  assert.deepEqual([first.message, second], ["a", [2]]);
  let closed;
  const slow = await httpServer(t, (_, response) => {
    closed = new Promise((resolve) => response.on("close", resolve));
    b.abort(new Error("b"));
    c.abort(new Error("c"));
  });
  const waiting = client(t, { url: slow.url }).model(METADATA);
  const both = await settled([waiting.predict([[1]], { signal: b.signal }), waiting.predict([[2]], { signal: c.signal })]);
  assert.deepEqual(both.map(({ message }) => message), ["b", "c"]);
  await closed;
  assert.equal(requests.length, 1);
});

test("a large answer is asked for by its tag, and a small one again", async (t) => {
  let version = 1;
  const { url, requests } = await gateway(t, () => version);
  const model = client(t, { url }).model(METADATA);
  const many = Array.from({ length: 300 }, (_, n) => [n + 0.25]);
  const first = await model.predict(many);
  first.predictions.length = 0;
  assert.equal((await model.predict(many)).predictions.length, 300);
  assert.equal(requests[1].headers["if-none-match"], 'W/"1-1"');
  version = 2;
  assert.equal((await model.predict(many)).version, 2);
  assert.equal((await model.predict(many)).version, 2);
  assert.equal(requests[3].headers["if-none-match"], 'W/"1-2"');
  await model.predict([[1]]);
  await model.predict([[1]]);
  assert.equal(requests[5].headers["if-none-match"], undefined);
  const off = client(t, { url, cacheBytesMax: 0 }).model(METADATA);
  await off.predict(many);
  await off.predict(many);
  assert.equal(requests.at(-1).headers["if-none-match"], undefined);
});

test("with staleWhileAsking the last answer comes at once, and the next call has the new one", async (t) => {
  let version = 1;
  const { url, requests } = await gateway(t, () => version);
  const model = client(t, { url, staleWhileAsking: true }).model(METADATA);
  const ask = async (options) => (await model.predict([[1]], options)).version;
  assert.equal(await ask(), 1);
  version = 2;
  assert.deepEqual(await Promise.all([ask(), ask(), ask()]), [1, 1, 1]);
  while (requests.length < 2) await new Promise(setImmediate);
  let now = 1;
  while (now === 1) {
    await new Promise(setImmediate);
    now = await ask();
  }
  assert.equal(now, 2);
  version = 3;
  assert.equal(await ask({ staleWhileAsking: false }), 3);
  const brief = client(t, { url, staleWhileAsking: true, staleMsMax: 0 }).model(METADATA);
  await brief.predict([[1]]);
  version = 4;
  assert.equal((await brief.predict([[1]])).version, 4);
});

test("an old answer is used while keepfit is unavailable, and not after the model is gone", async (t) => {
  let status = 200;
  const { url, requests } = await httpServer(t, (_, response) =>
    status === 200 ? json(response, { hash: HASH, version: 1, rows_seen: 1, predictions: [1] }) : problem(response, status, "problem"));
  const model = client(t, { url, staleWhileAsking: true, retries: 0 }).model(METADATA);
  await model.predict([[1]]);
  status = 503;
  while (requests.length < 4) {
    assert.deepEqual((await model.predict([[1]])).predictions, [1]);
    await new Promise(setImmediate);
  }
  status = 404;
  let failed;
  while (failed === undefined) {
    await new Promise(setImmediate);
    failed = await model.predict([[1]]).then(() => undefined, (error) => error);
  }
  assert.equal(failed.status, 404);
});

test("the cache keeps what was used last, within its bytes", () => {
  const cache = new AnswerCache(4_000);
  const kept = (text) => ({ text, etag: "e", confirmedAt: 0 });
  for (let n = 0; n < 100; n++) {
    cache.set(`key ${n}`, kept("x".repeat(100)));
    cache.get("key 0");
    assert.ok(cache.bytes <= 4_000);
  }
  assert.ok(cache.size >= 5 && cache.get("key 0") && cache.get("key 99") && !cache.get("key 1"));
  cache.set("large", kept("x".repeat(2_000)));
  assert.equal(cache.get("large"), undefined);
  for (let n = 0; n < 100; n++) cache.delete(`key ${n}`);
  assert.deepEqual([cache.size, cache.bytes], [0, 0]);
});
