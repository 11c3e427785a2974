// Votes of made-up users, whose hidden rule is known, and a check that the estimates come true: pairs on which no user
// has voted are asked for, and compared with the rule. node load.js --url http://127.0.0.1:3000 --votes 3000 --seed 1

import { setTimeout as sleep } from 'node:timers/promises';
import { parseArgs } from 'node:util';

const { values: options } = parseArgs({
  options: {
    url: { type: 'string', default: 'http://127.0.0.1:3000' },
    votes: { type: 'string', default: '3000' },
    seed: { type: 'string', default: '1' },
  },
});
const VOTES = Number(options.votes);
const CALLERS = 16;
const MAKERS = 8;
const BRANDS_PER_MAKER = 4;
const [FIRST_YEAR, LAST_YEAR] = [1995, 2020];
// What a pair's fit is made of, in steps of the scale: the maker, the brand, ten years, and the person.
const [MAKER, BRAND, TEN_YEARS, PERSON] = [1, 0.5, 0.2, 0.5];
const HELD_OUT = 5; // one pair in so many gets no vote
const ERROR_MAX = 0.5; // of the baseline's

/** Returns numbers from 0 to 1, the same for the same seed (mulberry32). */
function generator(seed) {
  let state = seed;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 4_294_967_296;
  };
}

const random = generator(Number(options.seed));
const between = (low, high) => low + random() * (high - low);
const normal = () => Math.sqrt(-2 * Math.log(1 - random())) * Math.cos(2 * Math.PI * random());
const clamp = (fit) => Math.min(5, Math.max(1, fit));

const brands = Array.from({ length: MAKERS }, (_, maker) => {
  const effect = between(-MAKER, MAKER);
  return Array.from({ length: BRANDS_PER_MAKER }, (_, brand) => ({ maker: `maker ${maker + 1}`, brand: `brand ${maker + 1}.${brand + 1}`, effect: effect + between(-BRAND, BRAND) }));
}).flat();

const pairs = brands.flatMap(({ effect, ...brand }) =>
  Array.from({ length: LAST_YEAR - FIRST_YEAR + 1 }, (_, n) => ({ pair: { ...brand, year: FIRST_YEAR + n }, fit: clamp(3 + effect + (TEN_YEARS * (FIRST_YEAR + n - 2008)) / 10) })),
);
const isHeldOut = pairs.map(() => random() < 1 / HELD_OUT);
const voted = pairs.filter((_, n) => !isHeldOut[n]);
const heldOut = pairs.filter((_, n) => isHeldOut[n]);

async function call(path, body) {
  const request = body && { method: 'POST', headers: { 'content-type': 'application/json' }, body: JSON.stringify(body) };
  const response = await fetch(options.url + path, request);
  const answer = await response.json();
  if (!response.ok) throw new Error(`${path}: ${answer.detail}`);
  return answer;
}

/** Calls `action` with each item, some at a time. */
async function forEach(items, action) {
  const iterator = items.values();
  await Promise.all(Array.from({ length: CALLERS }, async () => {
    for (const item of iterator) await action(item);
  }));
}

/** Waits until keepfit has learned every vote, and reports how many it has not. */
async function learned(rows) {
  for (;;) {
    const { waiting, model } = await call('/true/score');
    if (waiting === 0 && model?.rows_seen >= rows) return model;
    console.log(`${waiting} votes wait for keepfit`);
    await sleep(1_000);
  }
}

const before = (await call('/true/score')).votes;
const votes = Array.from({ length: VOTES }, (_, n) => {
  const { pair, fit } = voted[Math.floor(random() * voted.length)];
  return { user: `${options.seed}-${n}`, ...pair, fit: clamp(Math.round(fit + PERSON * normal())) };
});
await forEach(votes, (vote) => call('/true/add', vote));
const { votes: stored } = await call('/true/score');
console.log(`${VOTES} votes sent, ${stored - before} stored`);
const model = await learned(stored);

const estimates = [];
await forEach(heldOut, async ({ pair, fit }) => {
  const { trueSize, source } = await call('/true/single', pair);
  if (source === 'model') estimates.push({ pair, fit, trueSize });
});
const mean = votes.reduce((sum, { fit }) => sum + fit, 0) / votes.length;
const average = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
const error = average(estimates.map(({ fit, trueSize }) => Math.abs(fit - trueSize)));
const baseline = average(estimates.map(({ fit }) => Math.abs(fit - mean)));
for (const { pair, fit, trueSize } of estimates.slice(0, 8)) {
  console.log(`${`${pair.brand} ${pair.year}`.padEnd(16)} hidden ${fit.toFixed(2)}  estimate ${trueSize.toFixed(2)}`);
}
console.log(JSON.stringify({ rows_seen: model.rows_seen, estimates: estimates.length, error, baseline }));
if (!(error < ERROR_MAX * baseline)) {
  console.error(`the estimates are off by ${error.toFixed(2)}, more than half as much as the mean of all votes, ${baseline.toFixed(2)}`);
  process.exitCode = 1;
}
