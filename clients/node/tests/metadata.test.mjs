import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";

import { canonical, hashOf, InvalidError, Keepfit, MalformedError } from "keepfit";

const VECTORS = JSON.parse(readFileSync(process.env.KEEPFIT_TEST_VECTORS ?? new URL("../../../tests/fixtures/metadata_hashes.json", import.meta.url)));

test("metadata have the hashes that keepfit has for them, and what it refuses is refused", () => {
  assert.ok(VECTORS.length >= 200);
  for (const { name, json, canonical: text, hash, refused } of VECTORS) {
    const metadata = JSON.parse(json);
    if (refused) {
      assert.throws(() => hashOf(metadata), InvalidError, name);
    } else {
      assert.equal(canonical(metadata), text, name);
      assert.equal(hashOf(metadata), hash, name);
    }
  }
});

test("values that JSON does not have are refused", () => {
  const circle = { type: "shoes" };
  circle.self = circle;
  for (const x of [NaN, Infinity, -Infinity, 1n, Symbol("a"), () => 1, new Date(), new Map(), new Set(), /a/, [undefined], [,], new (class A {})(), Buffer.from("a")]) {
    assert.throws(() => hashOf({ type: "shoes", x }), InvalidError);
  }
  assert.throws(() => hashOf(circle), InvalidError);
  for (const metadata of [undefined, null, [], new Map([["type", "shoes"]]), "shoes"]) assert.throws(() => hashOf(metadata), InvalidError);
});

test("a key without a value is left out, as JSON.stringify leaves it out", () => {
  assert.equal(hashOf({ type: "shoes", brand: undefined }), hashOf({ type: "shoes" }));
  assert.equal(hashOf(Object.assign(Object.create(null), { type: "shoes" })), hashOf({ type: "shoes" }));
});

test("a model has its hash at once, and does not change with the object that named it", () => {
  const client = new Keepfit();
  const metadata = { type: "shoes", brand: { name: "nike" } };
  const model = client.model(metadata);
  assert.equal(model.hash, hashOf(metadata));
  metadata.brand.name = "puma";
  assert.deepEqual(model.metadata, { type: "shoes", brand: { name: "nike" } });
  assert.equal(client.model(model.hash).hash, model.hash);
  for (const name of ["", "abc", "A".repeat(64), `${model.hash}/x`]) assert.throws(() => client.model(name), MalformedError);
});
