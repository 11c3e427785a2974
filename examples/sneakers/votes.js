// The votes: sum and count of each pair in memory, every vote in the journal, and a queue of the votes that keepfit
// has not acknowledged yet. The journal has two kinds of lines: {"vote": {...}} and {"acknowledged": n}, where n is
// the number of votes, from the first on, that keepfit has accepted (or rejected for their content).

import { randomUUID } from 'node:crypto';
import { EventEmitter, once } from 'node:events';

import { Journal } from './journal.js';

export class Votes {
  #journal;
  #pairs = new Map();
  #waiting = [];
  #acknowledged = 0;
  #added = new EventEmitter();

  static async open(path) {
    const votes = new Votes();
    votes.#journal = await Journal.open(path, ({ vote, acknowledged }) => {
      if (vote) votes.#include(vote);
      else votes.#dequeue(acknowledged);
    });
    return votes;
  }

  get total() {
    return this.#acknowledged + this.#waiting.length;
  }

  get waiting() {
    return this.#waiting.length;
  }

  /** Stores a vote; it counts as soon as it is on disk. */
  async add({ make, year, trueSize }) {
    // The id is stored with the vote: a retry, even after a restart, must have the same Idempotency-Key.
    const vote = { id: randomUUID(), make, year, trueSize };
    await this.#journal.append({ vote });
    this.#include(vote);
    this.#added.emit('vote');
    return vote;
  }

  /** Returns average and number of the votes on a pair; undefined without votes. */
  average(pair) {
    const totals = this.#pairs.get(keyOf(pair));
    return totals && { trueSize: totals.sum / totals.count, votes: totals.count };
  }

  /** Returns the oldest unacknowledged vote; waits until there is one. */
  async oldestWaiting(signal) {
    while (this.#waiting.length === 0) await once(this.#added, 'vote', { signal });
    return this.#waiting[0];
  }

  /** Removes the oldest waiting vote from the queue; `rejection` is the reason if keepfit will never learn it. */
  async acknowledge(rejection) {
    const acknowledged = this.#acknowledged + 1;
    this.#dequeue(acknowledged);
    try {
      await this.#journal.append({ acknowledged, refused: rejection });
    } catch (error) {
      // Not fatal: after a restart the vote is sent again with the same id, and keepfit learns it once.
      console.error(`acknowledgement ${acknowledged} not stored: ${error.message}`);
    }
  }

  close() {
    return this.#journal.close();
  }

  #include(vote) {
    const pair = this.#pairs.get(keyOf(vote)) ?? { sum: 0, count: 0 };
    this.#pairs.set(keyOf(vote), { sum: pair.sum + vote.trueSize, count: pair.count + 1 });
    this.#waiting.push(vote);
  }

  #dequeue(acknowledged) {
    this.#waiting.splice(0, acknowledged - this.#acknowledged);
    this.#acknowledged = acknowledged;
  }
}

const keyOf = ({ make, year }) => `${year} ${make}`;
