// The stream of events: an async iterator that connects again where it was, at any gateway.

import { setTimeout as sleep } from "node:timers/promises";

import type { EventKind, KeepfitEvent } from "./answers.js";
import type { Caller } from "./caller.js";
import { checkText, type CallOptions } from "./options.js";
import { queryText, type Query } from "./query.js";
import { MessageParser } from "./sse.js";
import { TextStream } from "./text_stream.js";

// A gateway sends something every 15 s.
const SILENCE_MS_MAX = 45_000;
const PAUSE_MS = 1_000;
const PAUSE_MS_MAX = 30_000;

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
    const parser = new MessageParser();
    const position = lastId === "" ? "" : `Last-Event-ID: ${lastId}\r\n`;
    const stream = new TextStream(caller, path, parser, {
      mediaType: "text/event-stream", what: "events", fields: `Cache-Control: no-store\r\n${position}`, silenceMsMax: SILENCE_MS_MAX,
    });
    const onAbort = () => stream.close();
    signal?.addEventListener("abort", onAbort, { once: true });
    try {
      for await (const { id, data } of stream.parts()) {
        pauseMs = retryMs = parser.retryMs ?? retryMs;
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
