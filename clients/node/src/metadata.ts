// The identity of a model: the rules for metadata, and their hash. The gateway has the same rules in
// keepfit/identity.py; tests/fixtures/metadata_hashes.json holds both to the same hashes and refusals.

import { createHash } from "node:crypto";

import type { Metadata } from "./answers.js";
import { canonical, isPlainObject } from "./canonical.js";
import { invalid } from "./errors.js";

const METADATA_BYTES_MAX = 16 * 1024;
const METADATA_DEPTH_MAX = 8;
// ECMAScript writes numbers from here on with an exponent, so that no reader takes them for integers.
const EXPONENT_MIN = 1e21;
const KEY_SHOWN_MAX = 40;

/** 64 hexadecimal digits in lower case. */
export const HASH = /^[0-9a-f]{64}$/;

/**
 * Return the SHA-256 (64 hex digits) of the canonical JSON (RFC 8785) of metadata: the model's name in every address.
 *
 * @throws {InvalidError} for metadata that the gateway refuses: without a non-empty string `type`, with `timestamp`,
 *   larger than 16 KiB, deeper than 8 levels, or with a key or value that another language would hash differently.
 */
export function hashOf(metadata: Metadata): string {
  return createHash("sha256").update(checked(metadata)).digest("hex");
}

/** Return the canonical JSON of valid metadata. */
function checked(metadata: unknown): string {
  if (!isPlainObject(metadata)) throw invalid("metadata must be a JSON object that names the model.");
  if (typeof metadata["type"] !== "string" || metadata["type"] === "") throw invalid("metadata must hold a non-empty string 'type'.");
  if (metadata["timestamp"] !== undefined) throw invalid("metadata must not hold 'timestamp': each value would name another model.");
  checkValue(metadata, "metadata", 1);
  const text = canonical(metadata);
  if (Buffer.byteLength(text) > METADATA_BYTES_MAX) throw invalid(`metadata is larger than ${METADATA_BYTES_MAX} bytes.`);
  return text;
}

function checkValue(value: unknown, path: string, depth: number): void {
  if (typeof value === "string") return checkText(value, path);
  if (typeof value === "number") return checkNumber(value, path);
  if (value === null || typeof value !== "object") return;
  if (depth > METADATA_DEPTH_MAX) throw invalid(`metadata is nested deeper than ${METADATA_DEPTH_MAX} levels.`);
  if (Array.isArray(value)) {
    value.forEach((item, position) => checkValue(item, `${path}[${position}]`, depth + 1));
    return;
  }
  for (const [key, item] of Object.entries(value)) {
    if (item === undefined) continue;
    checkText(key, `key ${shown(key)} in ${path}`);
    if (key === "" || key.startsWith("$") || key.includes(".")) throw invalid(`key ${shown(key)} in ${path} is empty, begins with '$' or holds '.'.`);
    checkValue(item, `${path}.${key.slice(0, KEY_SHOWN_MAX)}`, depth + 1);
  }
}

function checkNumber(value: number, path: string): void {
  const size = Math.abs(value);
  if (size > Number.MAX_SAFE_INTEGER && size < EXPONENT_MIN) throw invalid(`${path}: ${value} is 2^53 or more, not the same number in every language.`);
}

function checkText(text: string, path: string): void {
  if (text.includes("\0")) throw invalid(`${path} holds a NUL character.`);
  if (text.normalize("NFC") !== text) throw invalid(`${path} is not in Unicode normal form C; send it normalised.`);
}

function shown(key: string): string {
  return JSON.stringify(key.length <= KEY_SHOWN_MAX ? key : `${key.slice(0, KEY_SHOWN_MAX)}…`);
}
