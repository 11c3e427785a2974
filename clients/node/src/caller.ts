// Makes calls: one request, repeated while that may help, until it is answered or its time is over.
//
// A call is repeated after 408, 429, 502, 503, 504 and a stale model's 409, and if its connection fails. Only calls for
// which a repetition is harmless are: those that change nothing, those that name their result, and learning calls, whose
// Idempotency-Key is made once for all attempts. Never logs; no error holds the API key.

import { promisify } from "node:util";
import { gunzip, gzip } from "node:zlib";

import { Clock, Deadlines } from "./clock.js";
import { ConnectionError, KeepfitError, UnavailableError, errorOf, isTemporary, type Problem } from "./errors.js";
import type { RawRequest } from "./http/connection.js";
import { ConnectionFailure, Pool, type RawResponse } from "./http/pool.js";
import type { Fields } from "./http/response_parser.js";
import { Target } from "./http/target.js";
import type { CheckedOptions } from "./options.js";

const PAUSE_MS = 100;
const PAUSE_MS_MAX = 5_000;
// No answer inflates to more.
const ANSWER_BYTES_MAX = 256 * 1024 * 1024;

const zip = promisify(gzip);
const unzip = promisify(gunzip);

/** A call of the HTTP API. */
export interface Call {
  readonly method: "GET" | "POST" | "PATCH" | "DELETE";
  /** With the query, percent-encoded, from `/v1` on. */
  readonly path: string;
  /** JSON text. */
  readonly body?: string | undefined;
  /** Lines of header fields, each with its line break. */
  readonly fields?: string;
  /** Whether a second time does no harm. */
  readonly isRepeatable: boolean;
  /** Whether a 304 is an answer. */
  readonly mayBeUnchanged?: boolean;
  /** For how long the gateway may keep the answer back (Prefer: wait), which is added to the timeout. */
  readonly waitMs?: number;
  readonly timeoutMs?: number | undefined;
  readonly signal?: AbortSignal | undefined;
  readonly idempotencyKey?: string | undefined;
}

export interface Answer {
  readonly status: number;
  readonly headers: Fields;
  /** The body, inflated. */
  readonly text: string;
}

export class Caller {
  readonly target: Target;
  readonly pool: Pool;
  readonly #options: CheckedOptions;
  readonly #fields: string;
  readonly #streamFields: string;
  readonly #deadlines = new Deadlines();
  readonly #closing = new AbortController();
  #hasAnswered = false;
  #closed: Error | undefined;

  constructor(options: CheckedOptions) {
    this.#options = options;
    this.target = new Target(options.url, options.tls);
    this.pool = new Pool(this.target, options.connectionsMax);
    const authorization = options.apiKey === undefined ? "" : `Authorization: Bearer ${options.apiKey}\r\n`;
    this.#streamFields = `User-Agent: ${options.userAgent}\r\n${authorization}`;
    this.#fields = `${this.#streamFields}Accept-Encoding: gzip\r\n`;
  }

  /** Throw the error of a closed client. */
  checkOpen(): void {
    if (this.#closed !== undefined) throw this.#closed;
  }

  /** Aborts when the client is closed. */
  get closing(): AbortSignal {
    return this.#closing.signal;
  }

  /** End everything that runs, also pauses between attempts. */
  close(): void {
    this.#closed ??= new UnavailableError({ detail: "The client is closed." });
    this.pool.close(this.#closed);
    this.#deadlines.endAll(this.#closed);
    this.#closing.abort(this.#closed);
  }

  /**
   * Make a call. Return the answer if its status is below 300. Redirects are not followed: they could lead anywhere, with the API key.
   *
   * @throws {KeepfitError} the error that the gateway reports, ConnectionError or TimeoutError.
   */
  async call(call: Call): Promise<Answer> {
    this.checkOpen();
    call.signal?.throwIfAborted();
    const timeoutMs = (call.timeoutMs ?? this.#options.timeoutMs) + (call.waitMs ?? 0);
    const clock = new Clock(this.#deadlines, timeoutMs, call, this.target.origin);
    try {
      const request = this.#prepare(call);
      return await this.#repeat(call, request instanceof Promise ? await request : request, clock);
    } catch (error) {
      if (error instanceof KeepfitError) {
        error.attempts = clock.attempts;
        error.idempotencyKey = call.idempotencyKey;
      }
      throw error;
    } finally {
      clock.stop();
    }
  }

  /** Make a call and return the JSON of its answer; undefined without a body. */
  async json<T>(call: Call): Promise<T> {
    return this.parse<T>(await this.call(call));
  }

  /** @throws {UnavailableError} for an answer that is not JSON. */
  parse<T>({ status, text }: Answer): T {
    if (text === "") return undefined as T;
    try {
      return JSON.parse(text) as T;
    } catch (cause) {
      throw this.unexpected(status, cause);
    }
  }

  /** Return the error for an answer that no gateway gives. */
  unexpected(status: number, cause?: unknown): UnavailableError {
    return new UnavailableError({ status, cause, detail: `${this.target.origin} answers ${status} and something that is not the answer of a gateway of keepfit: a proxy answers for it.` });
  }

  /** Return the request of a call for a stream, without a body. */
  prepareStream(path: string, fields: string): RawRequest {
    return { method: "GET", path, fields: `${this.#streamFields}${fields}` };
  }

  #prepare({ method, path, body, fields = "" }: Call): RawRequest | Promise<RawRequest> {
    if (body === undefined) return { method, path, fields: `${this.#fields}${fields}`, body };
    const json = `${this.#fields}${fields}Content-Type: application/json\r\n`;
    if (body.length < this.#options.gzipBytesMin) return { method, path, fields: json, body };
    return zip(body, { level: 1 }).then((zipped) => ({ method, path, fields: `${json}Content-Encoding: gzip\r\n`, body: zipped }));
  }

  async #repeat(call: Call, request: RawRequest, clock: Clock): Promise<Answer> {
    for (let pauseMs = PAUSE_MS; ; pauseMs = Math.min(2 * pauseMs, PAUSE_MS_MAX)) {
      let failure: KeepfitError;
      let mayRepeat: boolean;
      try {
        const response = await this.#attempt(call, request, clock);
        this.#hasAnswered = true;
        if (response.status < 300 || (response.status === 304 && call.mayBeUnchanged)) return response.headers.get("content-encoding") === "gzip" ? await inflate(response) : plain(response);
        failure = await problemOf(response, this.target.origin);
        mayRepeat = call.isRepeatable && (isTemporary(response.status) || failure.temporary);
      } catch (error) {
        if (!(error instanceof ConnectionFailure)) throw error;
        failure = this.#unreachable(error);
        // A gateway that has never answered is most likely not at this address.
        mayRepeat = this.#hasAnswered && (call.isRepeatable || error.isUnsent);
      }
      if (!mayRepeat || clock.attempts > this.#options.retries) throw failure;
      await clock.pause(Math.max(failure.retryAfterMs ?? 0, pauseMs * (0.5 + Math.random() / 2)), failure);
    }
  }

  #attempt(call: Call, request: RawRequest, clock: Clock): Promise<RawResponse> {
    this.checkOpen();
    clock.check();
    const attempt = call.isRepeatable ? this.pool.send(request) : this.pool.sendAlone(request);
    clock.watch(attempt, this.pool);
    return attempt.answer;
  }

  #unreachable({ message, cause }: ConnectionFailure): KeepfitError {
    if (this.#closed !== undefined) return this.#closed as KeepfitError;
    return new ConnectionError({ title: "No answer", detail: `No answer from ${this.target.origin}: ${message || (cause as NodeJS.ErrnoException).code}.`, cause });
  }
}

function plain({ status, headers, body }: RawResponse): Answer {
  return { status, headers, text: body.toString() };
}

async function inflate({ status, headers, body }: RawResponse): Promise<Answer> {
  try {
    return { status, headers, text: (await unzip(body, { maxOutputLength: ANSWER_BYTES_MAX })).toString() };
  } catch (cause) {
    throw new ConnectionError({ title: "No answer", detail: "The answer cannot be inflated.", status, cause });
  }
}

/** Return the error that an answer reports. The answer may be that of a proxy. */
export async function problemOf(response: RawResponse, origin: string): Promise<KeepfitError> {
  const { status, headers } = response;
  const own: Problem = {
    status,
    detail: `${origin} answers ${status} without a problem document: a proxy, or not a gateway of keepfit.`,
    requestId: headers.get("x-request-id"),
    retryAfterMs: retryAfterMs(headers.get("retry-after")),
  };
  try {
    const document = JSON.parse((headers.get("content-encoding") === "gzip" ? await inflate(response) : plain(response)).text) as Partial<Problem> | null;
    // The answer of /readyz has the state of each dependency.
    if (typeof document?.status === "string") return errorOf({ ...own, detail: `${origin} is not ready: ${JSON.stringify(document)}.` });
    if (typeof document?.detail !== "string") return errorOf(own);
    const { type, title, detail, errors } = document;
    return errorOf({ ...own, detail, ...(type && { type }), ...(title && { title }), ...(Array.isArray(errors) && { errors }) });
  } catch {
    return errorOf(own);
  }
}

/** Return Retry-After, a number of seconds or a date (RFC 9110, 10.2.3), in milliseconds. */
function retryAfterMs(value: string | undefined): number | undefined {
  if (value === undefined) return undefined;
  const ms = /^\d{1,9}$/.test(value) ? Number(value) * 1000 : Date.parse(value) - Date.now();
  return Number.isNaN(ms) ? undefined : Math.max(0, ms);
}
