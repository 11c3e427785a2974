// The votes: a sum and a count for each pair in memory, every vote in the journal, and those that keepfit has not
// yet acknowledged in a row. The journal has two kinds of lines: {"vote": {...}} and {"acknowledged": n}, where n
// is how many votes, from the first on, keepfit has taken (or refused for good).

import { randomUUID } from 'node:crypto';
import { EventEmitter, once } from 'node:events';

import { Journal } from './journal.js';

export class Votes {
  #journal;
  #pairs = new Map();
  #waiting = [];
  #acknowledged = 0;
  #bell = new EventEmitter();

  static async open(path) {
    const votes = new Votes();
    votes.#journal = await Journal.open(path, ({ vote, acknowledged }) => {
      if (vote) votes.#take(vote);
      else votes.#forget(acknowledged);
    });
    return votes;
  }

  get total() {
    return this.#acknowledged + this.#waiting.length;
  }

  get waiting() {
    return this.#waiting.length;
  }

  /** Stores a vote; it counts from when it is on the disk. */
  async add({ make, year, trueSize }) {
    // The id is stored with the vote: a send that is tried again, even after a restart, must be known as the same.
    const vote = { id: randomUUID(), make, year, trueSize };
    await this.#journal.append({ vote });
    this.#take(vote);
    this.#bell.emit('vote');
    return vote;
  }

  /** The average of the votes on a pair and their number; undefined when there are none. */
  average(pair) {
    const found = this.#pairs.get(keyOf(pair));
    return found && { trueSize: found.sum / found.count, votes: found.count };
  }

  /** The oldest vote that keepfit has not acknowledged; waits for one. */
  async oldestWaiting(signal) {
    while (this.#waiting.length === 0) await once(this.#bell, 'vote', { signal });
    return this.#waiting[0];
  }

  /** keepfit is done with the oldest waiting vote; `refused` is its reason when it will never learn it. */
  async acknowledge(refused) {
    const acknowledged = this.#acknowledged + 1;
    this.#forget(acknowledged);
    try {
      await this.#journal.append({ acknowledged, refused });
    } catch (error) {
      // Not worth stopping for: after a restart the vote goes out again, under its id, and is not learned twice.
      console.error(`acknowledgement ${acknowledged} not stored: ${error.message}`);
    }
  }

  close() {
    return this.#journal.close();
  }

  #take(vote) {
    const pair = this.#pairs.get(keyOf(vote)) ?? { sum: 0, count: 0 };
    this.#pairs.set(keyOf(vote), { sum: pair.sum + vote.trueSize, count: pair.count + 1 });
    this.#waiting.push(vote);
  }

  #forget(acknowledged) {
    this.#waiting.splice(0, acknowledged - this.#acknowledged);
    this.#acknowledged = acknowledged;
  }
}

const keyOf = ({ make, year }) => `${year} ${make}`;
