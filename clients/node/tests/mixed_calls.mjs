// Makes predict, partialFit and score calls to one model, 32 at a time; tests/clients/test_both_clients.py does the same
// with the Python client beside it. node tests/mixed_calls.mjs URL METADATA CALLS; begins when a line arrives on
// standard input, and writes what it got as JSON.

import assert from "node:assert/strict";
import { once } from "node:events";

import { Keepfit } from "keepfit";

const [url, metadata, calls] = process.argv.slice(2);
const CALLERS = 32;
const LABELS = ["node", "python"];

const client = new Keepfit({ url });
const model = client.model(JSON.parse(metadata));
const sequences = [];
const errors = [];

/** Of ten calls, three teach a row that no other call has, one scores and six predict. */
async function call(number) {
  const X = [[1, 0, number ** 2]];
  if (number % 10 === 9) {
    const { accuracy } = await model.score({ X, y: ["node"] });
    assert.ok(accuracy === 0 || accuracy === 1);
  } else if (number % 3 === 0) {
    sequences.push((await model.partialFit({ X, y: ["node"] })).sequence);
  } else {
    const { predictions } = await model.predict(X);
    assert.ok(predictions.length === 1 && LABELS.includes(predictions[0]));
  }
}

let next = 0;
async function caller() {
  while (next < Number(calls)) await call(next++).catch((error) => errors.push(String(error)));
}

console.log("ready");
await once(process.stdin, "data");
const start = performance.now();
await Promise.all(Array.from({ length: CALLERS }, caller));
console.log(JSON.stringify({ hash: model.hash, errors, sequences, seconds: (performance.now() - start) / 1000 }));
process.exit();
