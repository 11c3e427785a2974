// Validation of votes and pairs. An error names all invalid fields: 400 if one is missing,
// 422 if all are present and one has an invalid value.

import { Problem } from './problem.js';

// Control characters and lone surrogates are not allowed in a name; keepfit would reject them later.
const INVALID_CHARACTERS = /[\p{Cc}\p{Cs}]/u;

const FIELDS = {
  make: {
    expected: 'a text of 1 to 100 characters',
    isValid: (value) => typeof value === 'string' && /^.{1,100}$/u.test(value.trim()) && !INVALID_CHARACTERS.test(value),
  },
  year: {
    expected: 'a whole number from 1900 to 2100',
    isValid: (value) => Number.isInteger(value) && value >= 1900 && value <= 2100,
  },
  trueSize: {
    expected: 'a number from 1 to 5',
    isValid: (value) => typeof value === 'number' && value >= 1 && value <= 5,
  },
};

/** Returns the vote in a JSON document: `{make, year, trueSize}`. */
export function parseVote(document) {
  if (document === null || typeof document !== 'object' || Array.isArray(document)) {
    throw new Problem(400, 'the body must be a JSON object {make, year, trueSize}');
  }
  return check(document, ['make', 'year', 'trueSize']);
}

/** Returns the pair in a query string: `make=nike&year=2001`. */
export function parsePair(query) {
  const { make, year } = Object.fromEntries(query);
  // A year that is not written in digits stays a string, so that the error shows it as it was sent.
  return check({ make, year: /^\d+$/.test(year) ? Number(year) : year }, ['make', 'year']);
}

/** Returns the named fields; throws a Problem that lists all missing and invalid ones. */
function check(values, names) {
  const missing = names.filter((name) => values[name] === undefined);
  const invalid = names.filter((name) => !missing.includes(name) && !FIELDS[name].isValid(values[name]));
  if (missing.length + invalid.length > 0) {
    const errors = [
      ...missing.map((field) => ({ field, detail: `is missing; send ${FIELDS[field].expected}` })),
      ...invalid.map((field) => ({ field, detail: `${format(values[field])} is not ${FIELDS[field].expected}` })),
    ];
    const detail = errors.map((error) => `${error.field}: ${error.detail}`).join('; ');
    throw new Problem(missing.length > 0 ? 400 : 422, detail, { errors });
  }
  const checked = Object.fromEntries(names.map((name) => [name, values[name]]));
  // The same letters can be composed or decomposed; normalization makes them one make.
  return { ...checked, make: checked.make.trim().normalize() };
}

function format(value) {
  const json = JSON.stringify(value);
  return json.length > 60 ? `${json.slice(0, 60)}…` : json;
}
