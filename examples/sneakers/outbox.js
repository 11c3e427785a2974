// Delivers every vote to keepfit, oldest first, and retries each until it is accepted. One vote at a time, because a
// model that learns single rows depends on their order. A vote is skipped only if keepfit rejects its content.

import { setTimeout as sleep } from 'node:timers/promises';

import { KeepfitError } from './keepfit.js';

const BACKOFF_MS_MIN = 100;
const BACKOFF_MS_MAX = 10_000;

/** Runs until `signal` aborts, then waits for the outstanding call; unsent votes stay in the journal. */
export async function deliver(votes, keepfit, signal) {
  try {
    await retry(() => keepfit.createModel(), signal);
    for (;;) {
      const vote = await votes.oldestWaiting(signal);
      const rejection = await retry(() => send(keepfit, vote), signal);
      await votes.acknowledge(rejection);
    }
  } catch (error) {
    if (!signal.aborted) throw error;
  }
}

/** Resolves when keepfit accepted the vote, or to the reason if it never will. */
async function send(keepfit, vote) {
  try {
    await keepfit.partialFit(vote);
  } catch (error) {
    if (error.final) {
      // Skip the vote: retries would block all votes after it.
      console.error(`vote ${vote.id} skipped: ${error.message}`);
      return error.message;
    }
    if (error.status === 404) await keepfit.createModel(); // the model was deleted
    throw error;
  }
}

/** Calls until it succeeds, with exponential backoff of at least the Retry-After of keepfit. */
async function retry(call, signal) {
  for (let backoff = BACKOFF_MS_MIN; ; backoff = Math.min(backoff * 2, BACKOFF_MS_MAX)) {
    signal.throwIfAborted();
    try {
      return await call();
    } catch (error) {
      if (!(error instanceof KeepfitError)) throw error;
      // Random jitter of up to half the backoff keeps several services from retrying at the same time.
      const wait = Math.max(error.retryAfterMs, Math.round(backoff * (1 - Math.random() / 2)));
      console.error(`${error.message}; retry in ${wait} ms`);
      await sleep(wait, undefined, { signal });
    }
  }
}
