// The time of calls. All calls of a client share one timer: setting one for each would take longer than most of what a
// call does here.

import { setTimeout as sleep } from "node:timers/promises";

import { TimeoutError, type Phase } from "./errors.js";
import type { Attempt, Pool } from "./http/pool.js";

const TIMER_MS_MAX = 2 ** 31 - 1;

/** What a clock needs of a call. */
interface TimedCall {
  readonly method: string;
  readonly path: string;
  readonly signal?: AbortSignal | undefined;
}

/** The clocks that run, and a timer for the one that ends first. */
export class Deadlines {
  readonly #clocks = new Set<Clock>();
  #timer: NodeJS.Timeout | undefined;
  #due = Infinity;

  add(clock: Clock): void {
    this.#clocks.add(clock);
    if (clock.due < this.#due) this.#set(clock.due);
  }

  /** End all calls. */
  endAll(reason: Error): void {
    for (const clock of this.#clocks) clock.end(reason);
  }

  /** The timer stays: it is sooner than that of the next call. */
  delete(clock: Clock): void {
    this.#clocks.delete(clock);
  }

  #set(due: number): void {
    clearTimeout(this.#timer);
    this.#due = due;
    // A call that runs has a connection or a pause, which keep the process running.
    if (due < Infinity) this.#timer = setTimeout(() => this.#expire(), Math.min(due - performance.now() + 1, TIMER_MS_MAX)).unref();
  }

  #expire(): void {
    const now = performance.now();
    let due = Infinity;
    for (const clock of this.#clocks) {
      if (clock.due <= now) {
        this.#clocks.delete(clock);
        clock.expire();
      } else {
        due = Math.min(due, clock.due);
      }
    }
    this.#set(due);
  }
}

/** The time of one call: ends an attempt, or a pause between two, when the time is over or the caller aborts. */
export class Clock {
  attempts = 0;
  /** When the time is over, by performance.now(). */
  readonly due: number;
  readonly #timeoutMs: number;
  readonly #call: TimedCall;
  readonly #origin: string;
  readonly #signal: AbortSignal | undefined;
  readonly #deadlines: Deadlines;
  readonly #onAbort: (() => void) | undefined;
  #attempt: Attempt | undefined;
  #pool: Pool | undefined;
  #pausing: AbortController | undefined;
  #failure: Error | undefined;
  #reason: Error | undefined;

  constructor(deadlines: Deadlines, timeoutMs: number, call: TimedCall, origin: string) {
    const { signal } = call;
    this.#timeoutMs = timeoutMs;
    this.#call = call;
    this.#origin = origin;
    this.#signal = signal;
    this.#deadlines = deadlines;
    this.due = performance.now() + timeoutMs;
    deadlines.add(this);
    if (signal === undefined) return;
    this.#onAbort = () => this.end(signal.reason as Error);
    signal.addEventListener("abort", this.#onAbort, { once: true });
  }

  /** Throw if the call has ended already: while its body was compressed there was nothing to cancel. */
  check(): void {
    if (this.#reason !== undefined) throw this.#reason;
  }

  watch(attempt: Attempt, pool: Pool): void {
    this.attempts += 1;
    this.#attempt = attempt;
    this.#pool = pool;
  }

  /** Wait before the next attempt; throw `failure` if there is no time for one. */
  async pause(ms: number, failure: Error): Promise<void> {
    this.#attempt = undefined;
    this.#failure = failure;
    this.check();
    if (performance.now() + ms >= this.due) throw failure;
    const pausing = new AbortController();
    this.#pausing = pausing;
    try {
      await sleep(ms, undefined, { signal: pausing.signal });
    } catch {
      throw pausing.signal.reason;
    }
    this.#pausing = undefined;
  }

  stop(): void {
    this.#deadlines.delete(this);
    if (this.#onAbort !== undefined) this.#signal?.removeEventListener("abort", this.#onAbort);
  }

  /** End the call, because its time is over. */
  expire(): void {
    this.end(this.#timeout(this.#attempt?.phase ?? (this.attempts === 0 ? "sending" : "waiting to retry")));
  }

  /** End the call, which throws the reason. */
  end(reason: Error): void {
    this.#reason = reason;
    this.#pausing?.abort(reason);
    if (this.#attempt !== undefined) this.#pool?.cancel(this.#attempt, reason);
  }

  #timeout(phase: Phase): TimeoutError {
    const { method, path } = this.#call;
    return new TimeoutError(phase, this.#timeoutMs, `${method} ${this.#origin}${path.replace(/\?.*/, "")}`, this.#failure);
  }
}
