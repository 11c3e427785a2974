// Against a running keepfit, whose address is in KEEPFIT_TEST_URL.

import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
import { test } from "node:test";

import { ConflictError, hashOf, IdempotencyError, InvalidError, Keepfit, MalformedError, NotFoundError } from "keepfit";

const url = process.env.KEEPFIT_TEST_URL;
const RECIPE = { estimator: "SGDRegressor", features: { make: "category", year: "number" }, scaler: "StandardScaler" };
const ROWS = { X: [["nike", 2001], { make: "adidas", year: 2010 }, ["puma", 2005]], y: [4, 2, 3] };

/** Test with a client and a model of the test's own, which has learned three rows. */
function onStack(name, check) {
  test(name, { skip: url === undefined && "KEEPFIT_TEST_URL is not set" }, async (t) => {
    const client = new Keepfit({ url });
    t.after(() => client.close());
    const model = await client.create({ type: "shoes", session: randomUUID() }, RECIPE);
    const learned = await model.partialFit(ROWS, { wait: 60 });
    assert.equal(learned.rows_seen, 3);
    await check({ client, model });
  });
}

onStack("a model is created, described, listed and deleted", async ({ client, model }) => {
  const described = await model.describe();
  assert.equal(described.hash, hashOf(model.metadata));
  assert.deepEqual(described.metadata, model.metadata);
  assert.equal((await model.create(RECIPE)).rows_seen, 3);
  await assert.rejects(model.create({ ...RECIPE, estimator: "PassiveAggressiveRegressor" }), ConflictError);
  const listed = [];
  for await (const { hash } of client.models({ session: model.metadata.session })) listed.push(hash);
  assert.deepEqual(listed, [model.hash]);
  assert.equal(await client.model(model.hash).exists(), true);
  await model.delete();
  assert.equal(await model.exists(), false);
  await assert.rejects(model.predict([["nike", 2001]]), NotFoundError);
});

onStack("rows are predicted and scored by the version that has learned them", async ({ model }) => {
  const { predictions, version, rows_seen } = await model.predict([["nike", 2001], { make: "puma", year: 2005 }]);
  assert.equal(predictions.length, 2);
  assert.deepEqual([version, rows_seen], [1, 3]);
  const [one, two] = await Promise.all([model.predict([["nike", 2001]]), model.predict([["puma", 2005]])]);
  assert.deepEqual([...one.predictions, ...two.predictions], predictions);
  const score = await model.score([{ make: "nike", year: 2001, fit: 4 }, { make: "puma", year: 2005, fit: 3 }], { target: "fit" });
  assert.ok(score.mean_absolute_error > 0);
  const tested = await model.trainScorePredict({ X: [["nike", 2002], ["puma", 2004], ["nike", 2003], ["puma", 2001]], y: [4, 3, 4, 3], X_pred: [["nike", 2005]] }, { wait: 60 });
  assert.deepEqual([tested.train_rows, tested.test_rows, tested.predictions.length], [3, 1, 1]);
});

onStack("a key learns once, and another body under it is an error", async ({ model }) => {
  const idempotencyKey = randomUUID();
  const [first, second] = [await model.partialFit(ROWS, { idempotencyKey }), await model.partialFit(ROWS, { idempotencyKey, wait: 60 })];
  assert.equal(first.sequence, second.sequence);
  assert.equal((await model.describe()).rows_seen, 6);
  await assert.rejects(model.partialFit({ ...ROWS, y: [1, 1, 1] }, { idempotencyKey }), IdempotencyError);
});

onStack("a wrong value is named by row and column, whoever else asks in the same turn", async ({ model }) => {
  const [good, bad] = await Promise.allSettled([model.predict([["nike", 2001]]), model.predict([["nike", "old"]])]);
  assert.equal(good.value.predictions.length, 1);
  assert.ok(bad.reason instanceof InvalidError);
  assert.deepEqual(bad.reason.errors.map(({ row, column }) => [row, column]), [[0, "year"]]);
  await assert.rejects(model.partialFit({ X: [["nike", "old"]], y: [1] }), (error) => error instanceof InvalidError && typeof error.requestId === "string");
});

onStack("a predicted row is learned when its label comes", async ({ model }) => {
  await model.predict([["nike", 2004]], { id: "pair-1" });
  const answer = await model.label([{ id: "pair-1", y: 4 }, { id: "unknown", y: 1 }], { wait: 60 });
  assert.equal(answer.accepted, 1);
  assert.deepEqual(answer.errors.map(({ id, reason }) => [id, reason]), [["unknown", "unknown"]]);
  assert.equal((await model.describe()).rows_seen, 4);
});

onStack("parameters change in order, and a large answer is confirmed by its tag", async ({ model }) => {
  const X = Array.from({ length: 200 }, (_, n) => ["nike", 1900 + n / 2]);
  const before = await model.predict(X);
  assert.deepEqual(await model.predict(X), before);
  const changed = await model.setParams({ alpha: 0.01 }, { wait: 60 });
  assert.equal(changed.recipe.params.alpha, 0.01);
  await model.partialFit(ROWS, { wait: 60 });
  assert.notDeepEqual((await model.predict(X)).predictions, before.predictions);
});

onStack("a model is saved, and restored to an older version", async ({ client, model }) => {
  const saved = await model.snapshot();
  const [before] = (await model.predict([["nike", 2001]])).predictions;
  await model.partialFit(ROWS, { wait: 60 });
  assert.equal((await model.predict([["nike", 2001]], { version: saved.version })).predictions[0], before);
  const restored = await model.restore({ version: saved.version });
  assert.equal(restored.version, saved.version);
  assert.equal((await model.predict([["nike", 2001]])).predictions[0], before);
  const versions = [];
  for await (const { version } of model.snapshots()) versions.push(version);
  assert.ok(versions.includes(saved.version));
  assert.ok((await model.history()).documents.length > 0);
  assert.ok((await client.history({ type: "shoes", session: model.metadata.session })).documents.length > 0);
  const since = { after: new Date(Date.now() - 3_600_000), where: ["rows_seen>=1", "version exists"] };
  assert.ok((await model.history(since)).documents.length > 0);
  assert.equal((await model.history({ ...since, where: "rows_seen<0" })).documents.length, 0);
  const days = { every: "1d", field: "rows_seen", stat: "max", tz: "Europe/Berlin", group: ["hash", "generation"] };
  const { points } = await model.history(days);
  assert.deepEqual(points.at(-1).group, { hash: model.hash, generation: points.at(-1).group.generation });
});

onStack("documents of one's own are stored once, replaced and deleted", async ({ client, model }) => {
  const { session } = model.metadata;
  const made = Array.from({ length: 1_200 }, (_, n) => ({ type: `vote ${session}`, timestamp: 1_795_176_000 + n, n }));
  for (const idempotencyKey of [randomUUID(), randomUUID()]) assert.equal(await client.addHistory(made.values(), { idempotencyKey }), 1_200);
  const counted = await client.history({ type: `vote ${session}`, every: "1d", stat: "count" });
  assert.equal(counted.points.reduce((sum, { value }) => sum + value, 0), 1_200);
  const streamed = [];
  for await (const { n } of client.streamHistory({ type: `vote ${session}` })) streamed.push(n);
  assert.deepEqual(streamed, made.map(({ n }) => n).reverse());
  for await (const { n } of client.streamHistory({ type: `vote ${session}` })) {
    assert.equal(n, 1_199);
    break;
  }
  await assert.rejects(client.streamHistory({ every: "1d", stat: "none" }).next(), MalformedError);
  for (const n of [1, 2]) assert.equal(await client.addHistory({ type: `state ${session}`, device: "a", n }, { keys: ["device"] }), 1);
  const [state, ...others] = (await client.history({ type: `state ${session}` })).documents;
  assert.deepEqual([state.n, others], [2, []]);
  await assert.rejects(client.addHistory([{ type: "x" }, { "a.b": 1 }]), InvalidError);
  await assert.rejects(client.deleteHistory({}), InvalidError);
  assert.equal(await client.deleteHistory({ type: `vote ${session}`, before: 1_795_176_100 }), 100);
  assert.equal(await client.deleteHistory({ type: `vote ${session}` }), 1_100);
});

onStack("events of a model come as they happen, also those since an id", async ({ model }) => {
  const events = model.events({ lastEventId: "0-0", kind: "commit" });
  const first = (await events.next()).value;
  assert.deepEqual([first.kind, first.hash, first.version], ["commit", model.hash, 1]);
  const next = events.next();
  await model.partialFit(ROWS, { wait: 60 });
  assert.equal((await next).value.rows_seen, 6);
  await events.return();
  for await (const { version } of model.events({ lastEventId: first.id, kind: "commit" })) {
    assert.equal(version, 2);
    break;
  }
});

onStack("dead letters, workers, state and other calls", async ({ client, model }) => {
  for await (const letter of model.deadLetters()) assert.fail(letter.id);
  assert.equal((await model.retryDeadLetters()).accepted, 0);
  assert.equal((await model.discardDeadLetters(["1-7"])).discarded, 0);
  assert.ok((await client.workers()).length > 0);
  assert.match((await client.ready()).status, /^(ok|degraded)$/);
  assert.deepEqual(await client.request("GET", "/livez"), { status: "ok" });
  await assert.rejects(client.request("POST", "/v1/models", { body: {} }), MalformedError);
  await assert.rejects(client.job("0".repeat(32)), NotFoundError);
});

onStack("the learning curve grows with the rows", async ({ model }) => {
  await model.partialFit(ROWS, { wait: 60 });
  const { points } = await model.curve();
  assert.equal(points.at(-1).rows_seen, 6);
  assert.ok(points.every(({ rows_seen: rows }) => rows > 0 && rows <= 6));
});

onStack("the traffic of a model is that of all gateways", async ({ model }) => {
  const { hash, window_s: seconds, predictions } = await model.traffic();
  assert.equal(hash, model.hash);
  assert.equal(seconds, 60);
  assert.deepEqual(Object.keys(predictions).sort(), ["kept", "scored", "stale", "worker"]);
});
