import assert from "node:assert/strict";
import { test } from "node:test";

import { InvalidError } from "keepfit";
import { bodyText, rowsText, separate } from "../dist/rows.js";

test("rows of every form become JSON", () => {
  const X = [["nike", 2001, null, true], { make: "nike", year: 2001, size: undefined }, new Float64Array([1, 0.5])];
  assert.deepEqual(JSON.parse(bodyText({ X, y: [1, "b", [2, 3]], sample_weight: new Float64Array([1, 2, 3]) })), {
    X: [["nike", 2001, null, true], { make: "nike", year: 2001 }, [1, 0.5]], y: [1, "b", [2, 3]], sample_weight: [1, 2, 3],
  });
  assert.equal(rowsText([[new Date(0)]]), '[["1970-01-01T00:00:00.000Z"]]');
});

test("the target is a column of the rows", () => {
  const rows = [{ make: "nike", fit: 4 }, { make: "puma", fit: 0 }];
  assert.deepEqual(separate(rows, "fit"), { X: [{ make: "nike" }, { make: "puma" }], y: [4, 0] });
  assert.deepEqual(rows[0], { make: "nike", fit: 4 });
  assert.throws(() => separate([{ make: "nike" }], "fit"), InvalidError);
  assert.throws(() => separate({ X: [], y: [] }, "fit"), InvalidError);
});

test("what JSON would turn into a missing value is refused by row and column", () => {
  for (const value of [NaN, Infinity, undefined, 1n, () => 1, Symbol("a"), new Date(NaN)]) {
    assert.throws(() => rowsText([[1, 2], [1, value]]), (error) => error instanceof InvalidError && error.errors[0].row === 1 && error.errors[0].column === "1");
    if (value !== undefined) {
      assert.throws(() => rowsText([{ year: 1 }, { year: value }]), (error) => error instanceof InvalidError && error.errors[0].row === 1 && error.errors[0].column === "year");
    }
  }
  assert.throws(() => rowsText([[1, , 2]]), InvalidError);
  assert.throws(() => rowsText([new Float64Array([NaN])]), InvalidError);
  assert.throws(() => rowsText([1]), InvalidError);
  assert.throws(() => rowsText("rows"), InvalidError);
  assert.throws(() => bodyText({ X: [[1]], y: [NaN] }), InvalidError);
  assert.throws(() => bodyText({ X: [[1]], y: [1], sample_weight: [undefined] }), InvalidError);
});
