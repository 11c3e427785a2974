// The stream of events: an async iterator that connects again where it was, at any gateway.

import { StringDecoder } from "node:string_decoder";
import { setTimeout as sleep } from "node:timers/promises";

import type { EventKind, KeepfitEvent } from "./answers.js";
import { problemOf, type Caller } from "./caller.js";
import { ConnectionError, isTemporary } from "./errors.js";
import type { Connection, Exchange } from "./http/connection.js";
import type { Head } from "./http/response_parser.js";
import { checkText, type CallOptions } from "./options.js";
import { MessageParser, type Message } from "./sse.js";
import { queryText, type Query } from "./query.js";

// A gateway sends something every 15 s.
const SILENCE_MS_MAX = 45_000;
const PAUSE_MS = 1_000;
const PAUSE_MS_MAX = 30_000;
// So many messages wait for the reader before the connection is paused.
const WAITING_MAX = 256;

export interface EventOptions extends Omit<CallOptions, "timeoutMs"> {
  /** Events of these kinds only. */
  readonly kind?: EventKind | readonly EventKind[];
  /** Events of these models only, by hash. */
  readonly hash?: string | readonly string[];
  /** Events of models with these values in their metadata. */
  readonly metadata?: Readonly<Record<string, string | number | boolean>>;
  /** The `id` of the last event that is known; "0-0" for all that are kept. Left out: from now on. */
  readonly lastEventId?: string;
}

/**
 * Yield events as they happen. The iterator does not end by itself: break out of the loop, or abort the signal, whose
 * reason is thrown. A broken connection is made again with Last-Event-ID, after pauses that become longer.
 *
 * @throws {KeepfitError} if the gateway refuses the stream, such as UnauthorizedError.
 */
export async function* listen(caller: Caller, options: EventOptions): AsyncGenerator<KeepfitEvent, void, void> {
  const { signal } = options;
  const path = `/v1/events${queryText(queryOf(options))}`;
  let lastId = options.lastEventId === undefined ? "" : checkText(options.lastEventId, "lastEventId", 64);
  let retryMs = PAUSE_MS;
  for (let pauseMs = retryMs; ; pauseMs = Math.min(2 * pauseMs, PAUSE_MS_MAX)) {
    caller.checkOpen();
    signal?.throwIfAborted();
    const stream = new EventStream(caller, path, lastId);
    const onAbort = () => stream.close();
    signal?.addEventListener("abort", onAbort, { once: true });
    try {
      for await (const { id, data } of stream.messages()) {
        pauseMs = retryMs = stream.retryMs ?? retryMs;
        lastId = id ?? lastId;
        if (data !== undefined) yield { ...(JSON.parse(data) as Omit<KeepfitEvent, "id">), id: lastId };
      }
    } catch (error) {
      signal?.throwIfAborted();
      if (!(error instanceof Error) || !stream.mayConnectAgain) throw error;
      pauseMs = Math.max(pauseMs, stream.retryAfterMs);
    } finally {
      signal?.removeEventListener("abort", onAbort);
      stream.close();
    }
    caller.checkOpen();
    signal?.throwIfAborted();
    await pause(pauseMs * (0.5 + Math.random() / 2), [caller.closing, signal]);
  }
}

function queryOf({ kind, hash, metadata }: EventOptions): Query {
  const fields = Object.entries(metadata ?? {}).map(([name, value]) => [`metadata[${name}]`, value] as const);
  return [["kind", list(kind)], ["hash", list(hash)], ...fields];
}

function list(values: string | readonly string[] | undefined): string | undefined {
  return typeof values === "string" || values === undefined ? values : values.join(",");
}

/** Wait before the next connection, or until one of the signals aborts. */
async function pause(ms: number, signals: readonly (AbortSignal | undefined)[]): Promise<void> {
  const ending = new AbortController();
  const end = () => ending.abort();
  for (const signal of signals) signal?.addEventListener("abort", end, { once: true });
  try {
    await sleep(ms, undefined, { signal: ending.signal });
  } catch {
    // The next round throws the reason.
  } finally {
    for (const signal of signals) signal?.removeEventListener("abort", end);
  }
}

/** One connection with events. */
class EventStream implements Exchange {
  mayConnectAgain = true;
  retryAfterMs = 0;
  readonly #caller: Caller;
  readonly #connection: Connection;
  readonly #parser = new MessageParser();
  readonly #decoder = new StringDecoder("utf8");
  readonly #timer: NodeJS.Timeout;
  #head: Head | undefined;
  #isStream = false;
  #refusal: Buffer[] = [];
  #waiting: Message[] = [];
  #isDone = false;
  #failure: Error | undefined;
  #wake: (() => void) | undefined;

  constructor(caller: Caller, path: string, lastId: string) {
    this.#caller = caller;
    const position = lastId === "" ? "" : `Last-Event-ID: ${lastId}\r\n`;
    const request = caller.prepareStream(path, `Accept: text/event-stream\r\nCache-Control: no-store\r\n${position}`);
    this.#timer = setTimeout(() => this.#connection.close(new Error(`nothing arrived for ${SILENCE_MS_MAX / 1000} s`)), SILENCE_MS_MAX);
    this.#connection = caller.pool.openStream(request, this);
  }

  get retryMs(): number | undefined {
    return this.#parser.retryMs;
  }

  /** Yield messages until the stream ends; throw if it is refused, or breaks. */
  async *messages(): AsyncGenerator<Message, void, void> {
    for (;;) {
      const waiting = this.#waiting;
      this.#waiting = [];
      this.#connection.resume();
      yield* waiting;
      if (this.#waiting.length > 0) continue;
      if (this.#failure !== undefined) throw this.#failure;
      if (this.#isDone) return this.#checkRefusal();
      await new Promise<void>((resolve) => (this.#wake = resolve));
    }
  }

  close(): void {
    clearTimeout(this.#timer);
    this.#connection.close(new Error("the stream was closed"));
  }

  onHead(head: Head): void {
    this.#head = head;
    // The page of a proxy may also have the status 200.
    this.#isStream = head.status === 200 && /^text\/event-stream *(?:;|$)/i.test(head.headers.get("content-type") ?? "");
    this.mayConnectAgain = this.#isStream || isTemporary(head.status);
  }

  onBody(chunk: Buffer): void {
    this.#timer.refresh();
    if (!this.#isStream) {
      this.#refusal.push(chunk);
      return;
    }
    this.#waiting.push(...this.#parser.push(this.#decoder.write(chunk)));
    if (this.#waiting.length >= WAITING_MAX) this.#connection.pause();
    if (this.#waiting.length > 0) this.#notify();
  }

  onEnd(): void {
    this.#isDone = true;
    this.#notify();
  }

  onFailure(cause: Error): void {
    this.#failure ??= new ConnectionError({ title: "No answer", detail: `The events of ${this.#caller.target.origin} broke off: ${cause.message}.`, cause });
    this.#notify();
  }

  #notify(): void {
    clearTimeout(this.#isDone || this.#failure ? this.#timer : undefined);
    this.#wake?.();
    this.#wake = undefined;
  }

  async #checkRefusal(): Promise<void> {
    const { status, headers } = this.#head!;
    if (this.#isStream) return;
    if (status === 200) throw this.#caller.unexpected(status);
    const problem = await problemOf({ status, headers, body: Buffer.concat(this.#refusal) }, this.#caller.target.origin);
    this.retryAfterMs = problem.retryAfterMs ?? 0;
    throw problem;
  }
}
