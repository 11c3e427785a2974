// Predict calls: answers that are kept, and calls of one turn of the event loop made as one request.
//
// An answer is kept for two uses: If-None-Match, if it is large enough for a 304 to save something, and staleWhileAsking.
//
// Calls to the same model with the same options are merged and their answer is split again. If the merged request is
// refused for its rows, each call is made alone, so that the error of one row is the error of its call only. A
// prediction changes nothing at keepfit, so a call may be made twice.

import type { PredictAnswer } from "./answers.js";
import { AnswerCache, type Kept } from "./cache.js";
import type { Caller } from "./caller.js";
import { KeepfitError } from "./errors.js";
import type { CheckedOptions } from "./options.js";

// A merged request has at most so many rows and characters. Larger calls are made alone.
const ROWS_MAX = 512;
const TEXT_LENGTH_MAX = 256 * 1024;
// A gateway answers a small request again in less time than it needs to compare tags.
const TAGGED_LENGTH_MIN = 1024;
// Refusals that are about the model or the API key, and so about each of the merged calls.
const OF_ALL = [401, 403, 404, 409];

/** One call of predict. */
export interface PredictCall {
  readonly path: string;
  /** The rows as a JSON list. */
  readonly rows: string;
  readonly rowsCount: number;
  /** Further fields of the body, as JSON text that begins with a comma. */
  readonly fields: string;
  readonly signal?: AbortSignal | undefined;
  readonly timeoutMs?: number | undefined;
  readonly staleWhileAsking?: boolean | undefined;
  /** Whether the answer may be kept, and the call merged: not if its rows are kept for labels. */
  readonly isPlain: boolean;
}

interface Item {
  readonly call: PredictCall;
  readonly key: string;
  readonly resolve: (answer: PredictAnswer) => void;
  readonly reject: (error: unknown) => void;
}

export class Predictor {
  readonly #caller: Caller;
  readonly #options: CheckedOptions;
  readonly #cache: AnswerCache;
  readonly #asking = new Set<string>();
  #groups = new Map<string, Item[]>();

  constructor(caller: Caller, options: CheckedOptions) {
    this.#caller = caller;
    this.#options = options;
    this.#cache = new AnswerCache(options.cacheBytesMax);
  }

  async predict(call: PredictCall): Promise<PredictAnswer> {
    this.#caller.checkOpen();
    call.signal?.throwIfAborted();
    if (!call.isPlain) return this.#caller.parse<PredictAnswer>(await this.#send(call, call.rows, undefined, call.signal));
    const key = this.#cache.isOff ? "" : `${call.path}${call.fields}\n${call.rows}`;
    if (this.#isStaleAllowed(call)) {
      const kept = this.#cache.get(key);
      if (kept !== undefined && performance.now() - kept.confirmedAt <= this.#options.staleMsMax) {
        this.#confirm(call, key);
        return JSON.parse(kept.text) as PredictAnswer;
      }
    }
    return this.#ask(call, key);
  }

  /** Ask the gateway, while the caller has its answer. What fails is asked again by the next call. */
  #confirm(call: PredictCall, key: string): void {
    if (this.#asking.has(key)) return;
    this.#asking.add(key);
    const { signal: _, ...own } = call;
    this.#ask(own, key)
      .catch((error: unknown) => {
        // The model may be gone: its last answer is no answer any more.
        if (!(error instanceof KeepfitError && error.temporary)) this.#cache.delete(key);
      })
      .finally(() => this.#asking.delete(key));
  }

  #ask(call: PredictCall, key: string): Promise<PredictAnswer> {
    const isAlone = !this.#options.batch || call.timeoutMs !== undefined || call.rowsCount > ROWS_MAX / 2 || call.rows.length > TEXT_LENGTH_MAX / 2;
    if (isAlone) return this.#alone(call, key);
    return new Promise((resolve, reject) => {
      if (this.#groups.size === 0) setImmediate(() => this.#flush());
      const group = `${call.path}${call.fields}`;
      const items = this.#groups.get(group);
      const item = { call, key, resolve, reject };
      if (items === undefined) this.#groups.set(group, [item]);
      else items.push(item);
    });
  }

  #flush(): void {
    const groups = this.#groups;
    this.#groups = new Map();
    for (const items of groups.values()) {
      for (const part of parts(items)) {
        if (part.length === 1) this.#settleAlone(part[0]!);
        else void this.#together(part);
      }
    }
  }

  #settleAlone({ call, key, resolve, reject }: Item): void {
    this.#alone(call, key).then(resolve, reject);
  }

  async #alone(call: PredictCall, key: string): Promise<PredictAnswer> {
    const kept = this.#cache.get(key);
    const { status, headers, text: received } = await this.#send(call, call.rows, kept, call.signal);
    const text = status === 304 ? kept!.text : received;
    const answer = this.#caller.parse<PredictAnswer>({ status, headers, text });
    this.#keep(call, key, text, headers.get("etag") ?? kept?.etag);
    return answer;
  }

  async #together(items: Item[]): Promise<void> {
    const abort = new AllAborted(items);
    try {
      const rows = `[${items.map(({ call }) => call.rows.slice(1, -1)).join(",")}]`;
      const received = await this.#send(items[0]!.call, rows, undefined, abort.signal);
      const answer = this.#caller.parse<PredictAnswer>(received);
      const rowsCount = items.reduce((sum, { call }) => sum + call.rowsCount, 0);
      if (answer?.predictions?.length !== rowsCount) throw this.#caller.unexpected(received.status);
      this.#split(answer, items);
    } catch (error) {
      const isOfOne = error instanceof KeepfitError && !error.temporary && error.status !== undefined && !OF_ALL.includes(error.status);
      for (const item of items) {
        if (isOfOne && !item.call.signal?.aborted) this.#settleAlone(item);
        else item.reject(error);
      }
    } finally {
      abort.stop();
    }
  }

  #split(answer: PredictAnswer, items: Item[]): void {
    const { predictions, probabilities, scores, ...same } = answer;
    let start = 0;
    for (const item of items) {
      const end = start + item.call.rowsCount;
      const part: PredictAnswer = { ...same, predictions: predictions.slice(start, end) };
      if (probabilities !== undefined) part.probabilities = probabilities.slice(start, end);
      if (scores !== undefined) part.scores = scores.slice(start, end);
      start = end;
      // Rows without any prediction are null beside others, and an error alone.
      if (part.predictions.every((each) => each === null)) this.#settleAlone(item);
      else item.resolve(this.#own(item, part));
    }
  }

  /** Return a part of an answer as the caller's own: the parts share their classes. */
  #own({ call, key }: Item, part: PredictAnswer): PredictAnswer {
    if (this.#isStaleAllowed(call)) this.#keep(call, key, JSON.stringify(part), undefined);
    return part.classes === undefined ? part : { ...part, classes: structuredClone(part.classes) };
  }

  #keep(call: PredictCall, key: string, text: string, etag: string | undefined): void {
    if (this.#cache.isOff) return;
    const tag = text.length < TAGGED_LENGTH_MIN ? undefined : etag;
    if (tag !== undefined || this.#isStaleAllowed(call)) this.#cache.set(key, { text, etag: tag, confirmedAt: performance.now() });
  }

  #isStaleAllowed(call: PredictCall): boolean {
    return call.staleWhileAsking ?? this.#options.staleWhileAsking;
  }

  #send(call: PredictCall, rows: string, kept: Kept | undefined, signal: AbortSignal | undefined) {
    const { path, fields, timeoutMs } = call;
    const known = kept?.etag === undefined ? "" : `If-None-Match: ${kept.etag}\r\n`;
    return this.#caller.call({ method: "POST", path, body: `{"X":${rows}${fields}}`, fields: known, isRepeatable: true, mayBeUnchanged: known !== "", timeoutMs, signal });
  }
}

/** Divide calls into requests of a bounded size. Empty lists of rows are calls of their own: they are refused. */
function parts(items: Item[]): Item[][] {
  const made: Item[][] = [];
  let part: Item[] = [];
  let rows = 0;
  let length = 0;
  for (const item of items) {
    const { rowsCount, rows: text } = item.call;
    if (rowsCount === 0) {
      made.push([item]);
      continue;
    }
    if (part.length > 0 && (rows + rowsCount > ROWS_MAX || length + text.length > TEXT_LENGTH_MAX)) {
      made.push(part);
      [part, rows, length] = [[], 0, 0];
    }
    part.push(item);
    rows += rowsCount;
    length += text.length;
  }
  if (part.length > 0) made.push(part);
  return made;
}

/** Rejects each call whose signal aborts, and aborts the request when all of them have. */
class AllAborted {
  readonly #controller = new AbortController();
  readonly #listeners: [AbortSignal, () => void][] = [];
  #left: number;

  constructor(items: readonly Item[]) {
    this.#left = items.length;
    for (const { call, reject } of items) {
      const { signal } = call;
      if (signal === undefined) continue;
      const onAbort = () => {
        reject(signal.reason);
        this.#left -= 1;
        if (this.#left === 0) this.#controller.abort(signal.reason);
      };
      if (signal.aborted) {
        onAbort();
        continue;
      }
      signal.addEventListener("abort", onAbort, { once: true });
      this.#listeners.push([signal, onAbort]);
    }
  }

  get signal(): AbortSignal {
    return this.#controller.signal;
  }

  stop(): void {
    for (const [signal, listener] of this.#listeners) signal.removeEventListener("abort", listener);
  }
}
