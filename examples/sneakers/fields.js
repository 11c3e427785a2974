// What a vote and a pair of sneakers may hold. All wrong fields are named at once: 400 when one is missing,
// 422 when all are there and one holds something that it may not.

import { Problem } from './problem.js';

// Control characters and lone halves of a surrogate pair are no name, and keepfit would refuse them later.
const NO_TEXT = /[\p{Cc}\p{Cs}]/u;

const FIELDS = {
  make: {
    form: 'a text of 1 to 100 characters',
    fits: (value) => typeof value === 'string' && /^.{1,100}$/u.test(value.trim()) && !NO_TEXT.test(value),
  },
  year: {
    form: 'a whole number from 1900 to 2100',
    fits: (value) => Number.isInteger(value) && value >= 1900 && value <= 2100,
  },
  trueSize: {
    form: 'a number from 1 to 5',
    fits: (value) => typeof value === 'number' && value >= 1 && value <= 5,
  },
};

/** The vote in a JSON document: `{make, year, trueSize}`. */
export function voteOf(document) {
  if (document === null || typeof document !== 'object' || Array.isArray(document)) {
    throw new Problem(400, 'the body must be a JSON object {make, year, trueSize}');
  }
  return check(document, ['make', 'year', 'trueSize']);
}

/** The pair in a query string: `make=nike&year=2001`. */
export function pairOf(query) {
  const { make, year } = Object.fromEntries(query);
  // What isn't written in digits stays text, so that the error shows it as it came.
  return check({ make, year: /^\d+$/.test(year) ? Number(year) : year }, ['make', 'year']);
}

function check(values, names) {
  const missing = names.filter((name) => values[name] === undefined);
  const wrong = names.filter((name) => !missing.includes(name) && !FIELDS[name].fits(values[name]));
  if (missing.length + wrong.length > 0) {
    const errors = [
      ...missing.map((field) => ({ field, detail: `is missing; ${FIELDS[field].form} is asked for` })),
      ...wrong.map((field) => ({ field, detail: `${shown(values[field])} is not ${FIELDS[field].form}` })),
    ];
    const detail = errors.map((error) => `${error.field}: ${error.detail}`).join('; ');
    throw new Problem(missing.length > 0 ? 400 : 422, detail, { errors });
  }
  const checked = Object.fromEntries(names.map((name) => [name, values[name]]));
  // One make, one spelling: the same letters can arrive composed or decomposed.
  return { ...checked, make: checked.make.trim().normalize() };
}

function shown(value) {
  const json = JSON.stringify(value);
  return json.length > 60 ? `${json.slice(0, 60)}…` : json;
}
