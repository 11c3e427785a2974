// The parameters of queries of the history, and documents of users as requests that the gateway takes.

import type { NewDocument } from "./answers.js";
import type { Caller } from "./caller.js";
import type { CallOptions } from "./options.js";
import { queryText, type QueryValue } from "./query.js";
import { TextStream, type Parser } from "./text_stream.js";

/** How documents are stored. */
export interface AddHistoryOptions extends CallOptions {
  /** Names of the fields that identify a document: it replaces the one stored with the same keys, type and values. */
  readonly keys?: readonly string[];
  /** Names the call: with the same one it is made once, however often it is sent. Default: a random one */
  readonly idempotencyKey?: string;
}

// Of a request; a gateway takes 4 MiB.
const DOCUMENTS_MAX = 1_000;
const CHARACTERS_MAX = 512 * 1024;

/** Yield the bodies of requests with these documents, and the number of documents of each. */
export function* bodies(documents: NewDocument | Iterable<NewDocument>): Generator<string, void, void> {
  let batch: string[] = [];
  let size = 0;
  for (const document of Symbol.iterator in documents ? (documents as Iterable<NewDocument>) : [documents]) {
    const text = JSON.stringify(document);
    if (batch.length > 0 && (batch.length === DOCUMENTS_MAX || size + text.length > CHARACTERS_MAX)) {
      yield `[${batch.join(",")}]`;
      batch = [];
      size = 0;
    }
    batch.push(text);
    size += text.length;
  }
  if (batch.length > 0) yield `[${batch.join(",")}]`;
}

// A query of much time may read for some seconds before a line matches.
const SILENCE_MS_MAX = 60_000;

/** Lines of text; `rest` is the one that has no end yet. */
class LineParser implements Parser<string> {
  rest = "";

  push(text: string): string[] {
    const lines = (this.rest + text).split("\n");
    this.rest = lines.pop()!;
    return lines.filter((line) => line !== "");
  }
}

/** Yield all documents of a query, or its points, as they arrive; throw if the stream breaks off. */
export async function* streamHistory<Line>(
  caller: Caller, query: HistoryQuery, { signal }: Pick<CallOptions, "signal">,
): AsyncGenerator<Line, void, void> {
  caller.checkOpen();
  signal?.throwIfAborted();
  const path = `/v1/history${queryText(Object.entries(query))}`;
  const options = { mediaType: "application/x-ndjson", what: "history", silenceMsMax: SILENCE_MS_MAX };
  const parser = new LineParser();
  const stream = new TextStream(caller, path, parser, options);
  const decode = (line: string): Line => {
    try {
      return JSON.parse(line) as Line;
    } catch (cause) {
      throw caller.unexpected(200, cause);
    }
  };
  const onAbort = () => stream.close();
  signal?.addEventListener("abort", onAbort, { once: true });
  try {
    for await (const line of stream.parts()) yield decode(line);
    if (parser.rest !== "") yield decode(parser.rest);
  } catch (error) {
    signal?.throwIfAborted();
    throw error;
  } finally {
    signal?.removeEventListener("abort", onAbort);
    stream.close();
  }
}

/** Seconds since 1970, a Date, ISO 8601, `1795176000250ms`, `yesterday`, `2 hours ago`. */
export type HistoryTime = number | string | Date;

/** A length of time: `250ms`, `30s`, `5m`, `1h`, `1d`, `1w`, or seconds. */
export type HistorySpan = number | string;

/** Statistics of a span; `p99` and other percentiles too. */
export type HistoryStat =
  | "mean" | "min" | "max" | "sum" | "count" | "first" | "last" | "median" | "stddev" | "variance" | "spread" | "distinct" | "mode" | "integral"
  | `p${number}`;

/**
 * A query of the history: `every` gives points, otherwise documents are given. Any other name is a key of metadata or a
 * field with a value to filter by; names that are parameters are written `metadata[limit]`.
 */
export interface HistoryQuery {
  readonly type?: string | undefined;
  readonly hash?: string | undefined;
  readonly kind?: "snapshot" | "document" | "all" | undefined;
  /** Comparisons: `rows_seen>=1000`, `brand in nike,puma`, `brand exists`. */
  readonly where?: string | readonly string[] | undefined;
  readonly timestamp?: HistoryTime | undefined;
  readonly after?: HistoryTime | undefined;
  readonly before?: HistoryTime | undefined;
  /** Time zone of times without one, and of the days, weeks, months and years of `every`: `Europe/Berlin`. */
  readonly tz?: string | undefined;
  readonly closest?: HistoryTime | undefined;
  readonly last?: number | true | undefined;
  /** Keys: only the newest document for each of their values. */
  readonly per?: string | readonly string[] | undefined;
  readonly limit?: number | undefined;
  readonly page?: number | undefined;
  /** Also `1mo` and `1y`. */
  readonly every?: HistorySpan | undefined;
  readonly stat?: HistoryStat | undefined;
  readonly field?: string | undefined;
  readonly group?: string | readonly string[] | undefined;
  readonly fill?: "none" | "null" | "previous" | "linear" | number | undefined;
  readonly rate?: HistorySpan | undefined;
  readonly nonnegative_rate?: HistorySpan | undefined;
  readonly increase?: boolean | undefined;
  readonly cumulative?: boolean | undefined;
  readonly moving?: number | undefined;
  readonly exponential?: number | undefined;
  readonly top?: number | undefined;
  readonly bottom?: number | undefined;
  readonly series?: number | undefined;
  readonly [name: string]: QueryValue;
}
