// Canonical JSON (RFC 8785): one text for each value, in every language.

import { invalid } from "./errors.js";

// With the flag u, a pair of surrogates is one character, and only lone ones match.
const LONE_SURROGATE = /[\ud800-\udfff]/u;

/**
 * Return the canonical JSON of a value (RFC 8785). A key whose value is undefined is left out, as in JSON.stringify.
 *
 * Numbers and texts are written as ECMAScript writes them, which is what the RFC demands; keys are ordered by their
 * UTF-16 code units, which is the order of ECMAScript's sort.
 *
 * @throws {InvalidError} for what has no JSON form: NaN, Infinity, lone surrogates, functions, dates, circles.
 */
export function canonical(value: unknown): string {
  try {
    return write(value);
  } catch (error) {
    if (error instanceof RangeError) throw invalid("The value is nested too deeply, or contains itself.");
    throw error;
  }
}

function write(value: unknown): string {
  if (value === null || typeof value === "boolean") return String(value);
  if (typeof value === "string") return text(value);
  if (typeof value === "number" && Number.isFinite(value)) return JSON.stringify(value);
  if (Array.isArray(value)) return `[${Array.from(value, write).join(",")}]`;
  if (isPlainObject(value)) {
    const keys = Object.keys(value).filter((key) => value[key] !== undefined);
    return `{${keys.sort().map((key) => `${text(key)}:${write(value[key])}`).join(",")}}`;
  }
  throw invalid(`${nameOf(value)} has no canonical JSON form.`);
}

function text(value: string): string {
  if (LONE_SURROGATE.test(value)) throw invalid("A text holds a lone surrogate, which is not a character.");
  return JSON.stringify(value);
}

/** Return whether a value is an object as JSON.parse or a literal makes it. */
export function isPlainObject(value: unknown): value is Record<string, unknown> {
  if (value === null || typeof value !== "object" || Array.isArray(value)) return false;
  const prototype: unknown = Object.getPrototypeOf(value);
  // An object of another realm has another Object.prototype, which has no prototype either.
  return prototype === null || Object.getPrototypeOf(prototype) === null;
}

function nameOf(value: unknown): string {
  if (typeof value === "number" || value === undefined) return String(value);
  return typeof value === "object" ? `A ${(value as object).constructor?.name ?? "value"}` : `A ${typeof value}`;
}


