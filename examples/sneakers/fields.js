// Validation of votes and pairs. An error names all invalid fields: 400 if one is missing,
// 422 if all are present and one has an invalid value.

import { Problem } from './problem.js';

// Control characters and lone surrogates are not allowed in a name; keepfit would reject them later.
const INVALID_CHARACTERS = /[\p{Cc}\p{Cs}]/u;

const NAME = {
  expected: 'a text of 1 to 100 characters',
  schema: { type: 'string', minLength: 1, maxLength: 100 },
  isValid: (value) => typeof value === 'string' && /^.{1,100}$/u.test(value.trim()) && !INVALID_CHARACTERS.test(value),
};

/** What a field may hold, in words, as JSON Schema, and as a check. */
export const FIELDS = {
  user: { ...NAME, description: 'Who votes. A user has one vote on a pair.' },
  maker: { ...NAME, description: 'Who makes the pair: nike.' },
  brand: { ...NAME, description: 'Its name: air max.' },
  year: {
    expected: 'a whole number from 1900 to 2100',
    schema: { type: 'integer', minimum: 1900, maximum: 2100 },
    isValid: (value) => Number.isInteger(value) && value >= 1900 && value <= 2100,
    description: 'When it came out.',
  },
  size: {
    expected: 'a number from 1 to 60',
    schema: { type: 'number', minimum: 1, maximum: 60 },
    isValid: (value) => typeof value === 'number' && value >= 1 && value <= 60,
    description: 'The size that the user has, as on the label.',
  },
  fit: {
    expected: 'a number from 1 to 5',
    schema: { type: 'number', minimum: 1, maximum: 5 },
    isValid: (value) => typeof value === 'number' && value >= 1 && value <= 5,
    description: 'How the pair fits, from 1 (too small) over 3 (true to size) to 5 (too large).',
  },
};

export const PAIR = ['maker', 'brand', 'year'];
export const VOTE = ['user', ...PAIR, 'fit'];
export const SIZED_VOTE = ['user', ...PAIR, 'size', 'fit'];

/** Returns the named fields of a JSON document; throws a Problem that lists all that are missing or invalid. */
export function parse(document, names) {
  if (document === null || typeof document !== 'object' || Array.isArray(document)) {
    throw new Problem(400, `the body must be a JSON object {${names.join(', ')}}`);
  }
  const missing = names.filter((name) => document[name] === undefined);
  const invalid = names.filter((name) => !missing.includes(name) && !FIELDS[name].isValid(document[name]));
  if (missing.length + invalid.length > 0) {
    const errors = [
      ...missing.map((field) => ({ field, detail: `is missing; send ${FIELDS[field].expected}` })),
      ...invalid.map((field) => ({ field, detail: `${format(document[field])} is not ${FIELDS[field].expected}` })),
    ];
    const detail = errors.map((error) => `${error.field}: ${error.detail}`).join('; ');
    throw new Problem(missing.length > 0 ? 400 : 422, detail, { errors });
  }
  return Object.fromEntries(names.map((name) => [name, normalize(name, document[name])]));
}

/** The same letters can be composed or decomposed, and names of pairs in upper or lower case: they are one name. */
function normalize(name, value) {
  if (typeof value !== 'string') return value;
  const text = value.trim().normalize();
  return name === 'user' ? text : text.toLowerCase().normalize();
}

function format(value) {
  const json = JSON.stringify(value);
  return json.length > 60 ? `${json.slice(0, 60)}…` : json;
}
