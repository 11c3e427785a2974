// Rows as JSON text. JSON.stringify writes null for NaN, Infinity and undefined, which keepfit would learn as missing
// values: they are refused here, by row and column, before anything is sent.

import type { Row, Target } from "./answers.js";
import { PROBLEM, TooLargeError, invalid } from "./errors.js";

const ERRORS_MAX = 20;

/** Rows to learn or to score. */
export interface Rows {
  readonly X: readonly Row[];
  /** One number or label per row, or a list of them; left out for estimators without a target. */
  readonly y?: readonly Target[] | Float64Array | Float32Array | undefined;
  /** One non-negative number per row. */
  readonly sample_weight?: readonly number[] | Float64Array | Float32Array | undefined;
}

interface Wrong {
  row: number;
  column?: string;
  detail: string;
}

/**
 * Return rows and targets. `rows` are `{X, y}`, or objects of which the column `target` is y.
 */
export function separate(rows: Rows | readonly Row[], target?: string): Rows {
  if (!isList(rows)) {
    if (target !== undefined) throw invalid("`target` names a column of rows that are objects; {X, y} has y already.");
    return rows;
  }
  if (target === undefined) return { X: rows };
  const y: Target[] = [];
  const X = rows.map((row, position) => {
    const { [target]: value, ...rest } = row as Record<string, unknown>;
    if (value === undefined || value === null) throw invalid(`Row ${position} has no value in the target '${target}'.`, [{ row: position, column: target, detail: "is missing" }]);
    y.push(value as Target);
    return rest as Row;
  });
  return { X, y };
}

function isList(rows: Rows | readonly Row[]): rows is readonly Row[] {
  return Array.isArray(rows);
}

/**
 * Return the JSON text of a list of rows.
 *
 * @throws {InvalidError} with row and column of each value that JSON cannot hold.
 */
export function rowsText(X: readonly Row[], name = "X"): string {
  if (!Array.isArray(X)) throw invalid(`${name} must be a list of rows.`);
  const wrong: Wrong[] = [];
  const rows = X.map((row, position) => checkRow(row, position, wrong));
  refuse(name, wrong);
  return stringify(rows);
}

/** Return the JSON text of a body with rows: `{"X": …, "y": …, "sample_weight": …}`. */
export function bodyText(rows: Rows): string {
  return `{${partsOf(rows).join(",")}}`;
}

/** Return the fields of a body with rows, each as JSON text. */
export function partsOf({ X, y, sample_weight: weight }: Rows): string[] {
  const parts = [`"X":${rowsText(X)}`];
  if (y !== undefined) parts.push(`"y":${listText(y, "y")}`);
  if (weight !== undefined) parts.push(`"sample_weight":${listText(weight, "sample_weight")}`);
  return parts;
}

function listText(values: readonly unknown[] | Float64Array | Float32Array, name: string): string {
  const wrong: Wrong[] = [];
  const list: readonly unknown[] = Array.isArray(values) ? values : Array.from(values as Float64Array);
  list.forEach((value, row) => {
    if (Array.isArray(value)) value.forEach((item) => checkValue(item, row, undefined, wrong));
    else checkValue(value, row, undefined, wrong);
  });
  refuse(name, wrong);
  return stringify(list);
}

function checkRow(row: Row, position: number, wrong: Wrong[]): unknown {
  if (Array.isArray(row)) {
    // A loop by index also visits the holes of a sparse list.
    for (let column = 0; column < row.length; column++) checkValue(row[column], position, column, wrong);
    return row;
  }
  if (ArrayBuffer.isView(row)) return checkRow(Array.from(row as Float64Array), position, wrong);
  if (row === null || typeof row !== "object") {
    note(wrong, position, undefined, "is neither a list nor an object");
    return row;
  }
  for (const column in row) {
    const value = (row as Record<string, unknown>)[column];
    // A column that is undefined is left out, as in JSON.
    if (value !== undefined) checkValue(value, position, column, wrong);
  }
  return row;
}

function checkValue(value: unknown, row: number, column: string | number | undefined, wrong: Wrong[]): void {
  if (typeof value === "number") {
    if (!Number.isFinite(value)) note(wrong, row, column, `${value} is not a finite number; null is a missing value`);
  } else if (value === undefined || typeof value === "bigint" || typeof value === "function" || typeof value === "symbol") {
    note(wrong, row, column, `${value === undefined ? "undefined" : `a ${typeof value}`} is not a value of JSON`);
  } else if (value instanceof Date && Number.isNaN(value.getTime())) {
    note(wrong, row, column, "is an invalid date");
  }
}

function note(wrong: Wrong[], row: number, column: string | number | undefined, detail: string): void {
  if (wrong.length < ERRORS_MAX) wrong.push(column === undefined ? { row, detail } : { row, column: String(column), detail });
}

function refuse(name: string, wrong: readonly Wrong[]): void {
  const first = wrong[0];
  if (first === undefined) return;
  const column = first.column === undefined ? "" : `, column '${first.column}'`;
  throw invalid(`${name}, row ${first.row}${column}: ${first.detail}.`, wrong);
}

function stringify(value: unknown): string {
  try {
    return JSON.stringify(value);
  } catch (error) {
    if (!(error instanceof RangeError)) throw error;
    throw new TooLargeError({ type: `${PROBLEM}too-large`, detail: "The rows are too large for one text of JSON; send fewer at a time.", cause: error });
  }
}
