// Brings every vote to keepfit, oldest first, each until it is accepted: one at a time, because a model that learns
// per data point depends on their order. A vote is given up only when keepfit refuses what it holds.

import { setTimeout as sleep } from 'node:timers/promises';

import { KeepfitError } from './keepfit.js';

const BACKOFF_MS_MIN = 100;
const BACKOFF_MS_MAX = 10_000;

/** Runs until `signal` aborts; the call then under way is waited for, a vote not sent stays in the journal. */
export async function deliver(votes, keepfit, signal) {
  try {
    await insist(() => keepfit.createModel(), signal);
    for (;;) {
      const vote = await votes.oldestWaiting(signal);
      const refused = await insist(() => send(keepfit, vote), signal);
      await votes.acknowledge(refused);
    }
  } catch (error) {
    if (!signal.aborted) throw error;
  }
}

/** Resolves when keepfit took the vote, or to its reason when it never will. */
async function send(keepfit, vote) {
  try {
    await keepfit.partialFit(vote);
  } catch (error) {
    if (error.final) {
      // Or one bad vote would hold back all that come after it.
      console.error(`vote ${vote.id} put aside: ${error.message}`);
      return error.message;
    }
    if (error.status === 404) await keepfit.createModel(); // deleted while we ran
    throw error;
  }
}

/** Calls until it succeeds, waiting longer each time, and never less than keepfit asks for. */
async function insist(call, signal) {
  for (let backoff = BACKOFF_MS_MIN; ; backoff = Math.min(backoff * 2, BACKOFF_MS_MAX)) {
    signal.throwIfAborted();
    try {
      return await call();
    } catch (error) {
      if (!(error instanceof KeepfitError)) throw error;
      // Up to half of it is chance: services that lost keepfit together shouldn't come back together.
      const wait = Math.max(error.retryAfterMs, Math.round(backoff * (1 - Math.random() / 2)));
      console.error(`${error.message}; next try in ${wait} ms`);
      await sleep(wait, undefined, { signal });
    }
  }
}
