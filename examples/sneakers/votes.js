// The votes, in an SQLite table of the service's own: every vote with its id, which is also the Idempotency-Key under
// which keepfit learns it, and its state: waiting, learned (accepted by keepfit), or rejected for its content.
//
// A vote is on disk before its add() resolves. Votes of one turn of the event loop are one transaction, so that many
// votes need one write to the disk.

import { randomUUID } from 'node:crypto';
import { EventEmitter, once } from 'node:events';
import { DatabaseSync } from 'node:sqlite';

import { Problem } from './problem.js';

const TABLES = `
  CREATE TABLE IF NOT EXISTS votes (
    sequence INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    user TEXT NOT NULL,
    maker TEXT NOT NULL,
    brand TEXT NOT NULL,
    year INTEGER NOT NULL,
    size REAL,
    fit REAL NOT NULL CHECK (fit BETWEEN 1 AND 5),
    state TEXT NOT NULL DEFAULT 'waiting' CHECK (state IN ('waiting', 'learned', 'rejected')),
    reason TEXT,
    UNIQUE (maker, brand, year, user)
  ) STRICT;
  CREATE INDEX IF NOT EXISTS votes_waiting ON votes (sequence) WHERE state = 'waiting';
`;

export class Votes {
  #database;
  #statements;
  #pending = [];
  #added = new EventEmitter();

  constructor(path) {
    this.#database = open(path);
    const pair = 'maker = :maker AND brand = :brand AND year = :year';
    this.#statements = Object.fromEntries(
      Object.entries({
        find: `SELECT id, user, maker, brand, year, size, fit FROM votes WHERE ${pair} AND user = :user`,
        insert: `INSERT INTO votes (id, user, maker, brand, year, size, fit) VALUES (:id, :user, :maker, :brand, :year, :size, :fit)`,
        average: `SELECT avg(fit) AS trueSize, count(*) AS votes FROM votes WHERE ${pair}`,
        oldest: `SELECT sequence, id, maker, brand, year, fit FROM votes WHERE state = 'waiting' ORDER BY sequence LIMIT 1`,
        settle: `UPDATE votes SET state = :state, reason = :reason WHERE sequence = :sequence`,
        waiting: `SELECT count(*) AS waiting FROM votes WHERE state = 'waiting'`,
        counts: `SELECT count(*) AS votes, count(DISTINCT user) AS users FROM votes`,
        pairs: `SELECT count(*) AS pairs FROM (SELECT DISTINCT maker, brand, year FROM votes)`,
      }).map(([name, sql]) => [name, this.#database.prepare(sql)]),
    );
  }

  /** Stores a vote. Resolves to `{vote, isNew}`; the same vote again is not stored again, another one is a Problem. */
  add(vote) {
    return new Promise((resolve, reject) => {
      if (this.#pending.length === 0) setImmediate(() => this.#write());
      this.#pending.push({ vote: { size: null, ...vote }, resolve, reject });
    });
  }

  /** Returns average and number of the votes on a pair; undefined without votes. */
  average({ maker, brand, year }) {
    const { trueSize, votes } = this.#statements.average.get({ maker, brand, year });
    return votes > 0 ? { trueSize, votes } : undefined;
  }

  get counts() {
    const { counts, pairs, waiting } = this.#statements;
    return { ...counts.get(), ...pairs.get(), ...waiting.get() };
  }

  /** Returns the oldest vote that keepfit has not accepted; waits until there is one. */
  async oldestWaiting(signal) {
    for (;;) {
      const vote = this.#statements.oldest.get();
      if (vote) return vote;
      await once(this.#added, 'vote', { signal });
    }
  }

  /** Notes that keepfit has accepted a vote, or the reason why it never will. */
  settle({ sequence }, reason = null) {
    // Without waiting for the disk: after a loss of power the vote is sent again, and keepfit learns it once.
    this.#database.exec('PRAGMA synchronous = NORMAL');
    this.#statements.settle.run({ sequence, reason, state: reason === null ? 'learned' : 'rejected' });
  }

  close() {
    this.#write();
    this.#database.close();
  }

  #write() {
    const pending = this.#pending;
    this.#pending = [];
    if (pending.length === 0) return;
    const settled = [];
    try {
      // FULL: a commit is on disk when it returns.
      this.#database.exec('PRAGMA synchronous = FULL; BEGIN IMMEDIATE;');
      for (const { vote, resolve, reject } of pending) {
        const { user, maker, brand, year } = vote;
        const before = this.#statements.find.get({ user, maker, brand, year });
        if (before) {
          settled.push(() => (isSame(before, vote) ? resolve({ vote: shown(before), isNew: false }) : reject(secondVote(before))));
          continue;
        }
        const stored = { id: randomUUID(), ...vote };
        this.#statements.insert.run(stored);
        settled.push(() => resolve({ vote: shown(stored), isNew: true }));
      }
      this.#database.exec('COMMIT');
    } catch (error) {
      if (this.#database.isTransaction) this.#database.exec('ROLLBACK');
      for (const { reject } of pending) reject(error);
      return;
    }
    for (const settle of settled) settle();
    this.#added.emit('vote');
  }
}

function open(path) {
  try {
    const database = new DatabaseSync(path);
    database.exec('PRAGMA busy_timeout = 5000; PRAGMA journal_mode = WAL;');
    database.exec(TABLES);
    return database;
  } catch (error) {
    throw new Error(`${path}: ${error.message}`);
  }
}

function isSame(one, other) {
  return one.fit === other.fit && one.size === other.size;
}

function secondVote({ user, maker, brand, year, fit }) {
  return new Problem(409, `${user} has voted on ${maker} ${brand} ${year} already: fit ${fit}`);
}

function shown({ size, ...vote }) {
  return size === null ? vote : { ...vote, size };
}
