// Delivers every vote to keepfit, oldest first, and retries each until it is accepted. One vote at a time, because a
// model that learns single rows depends on their order. A vote is skipped only if keepfit rejects its content.

import { setTimeout as sleep } from 'node:timers/promises';

import { InvalidError, KeepfitError, NotFoundError } from 'keepfit';

const BACKOFF_MS_MIN = 100;
const BACKOFF_MS_MAX = 10_000;

// These statuses are about the content of the request, so a retry would get the same answer. Others are retried.
const FINAL = new Set([400, 413, 415, 422]);

/** Runs until `signal` aborts, then waits for the outstanding call; unsent votes stay in the table. */
export async function deliver(votes, model, signal) {
  try {
    await retry(() => model.create(), signal);
    for (;;) {
      const vote = await votes.oldestWaiting(signal);
      votes.settle(vote, await retry(() => send(model, vote), signal));
    }
  } catch (error) {
    if (!signal.aborted) throw error;
  }
}

/** Resolves when keepfit accepted the vote, or to the reason if it never will. */
async function send(model, vote) {
  try {
    await model.learn(vote);
    return undefined;
  } catch (error) {
    if (error instanceof NotFoundError) await model.create(); // the model was deleted
    if (!isAboutContent(error)) throw error;
    // Skip the vote: retries would block all votes after it.
    console.error(`vote ${vote.id} skipped: ${error.message}`);
    return error.message;
  }
}

/** Whether a retry would get the same answer. The client refuses some values itself, without a status. */
export function isAboutContent(error) {
  return error instanceof InvalidError || FINAL.has(error.status);
}

/** Calls until it succeeds, with exponential backoff. The client has repeated each call for a few seconds by then. */
async function retry(call, signal) {
  for (let backoff = BACKOFF_MS_MIN; ; backoff = Math.min(backoff * 2, BACKOFF_MS_MAX)) {
    signal.throwIfAborted();
    try {
      return await call();
    } catch (error) {
      if (!(error instanceof KeepfitError)) throw error;
      // Random jitter of up to half the backoff keeps several services from retrying at the same time.
      const wait = Math.max(error.retryAfterMs ?? 0, Math.round(backoff * (1 - Math.random() / 2)));
      console.error(`${error.message} Retry in ${wait} ms.`);
      await sleep(wait, undefined, { signal });
    }
  }
}
