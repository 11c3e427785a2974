// The client of one gateway.

import { randomUUID } from "node:crypto";

import type { DeletedAnswer, HistoryAnswer, HistoryDocument, JobDocument, KeepfitEvent, Metadata, ModelAnswer, NewDocument, Ready, Recipe, StoredAnswer, WorkerAnswer } from "./answers.js";
import { Caller } from "./caller.js";
import { PROBLEM, MalformedError } from "./errors.js";
import { listen, type EventOptions } from "./events.js";
import { bodies, streamHistory, type AddHistoryOptions, type HistoryQuery } from "./history.js";
import { Model, pages } from "./model.js";
import { checkOptions, checkText, type CallOptions, type KeepfitOptions } from "./options.js";
import { Predictor } from "./predictor.js";
import { queryText, type QueryValue } from "./query.js";

/** A call that has no method of its own. */
export interface RequestOptions extends CallOptions {
  readonly query?: Readonly<Record<string, QueryValue>>;
  /** Sent as JSON. */
  readonly body?: unknown;
  readonly headers?: Readonly<Record<string, string>>;
  /** Whether a second time does no harm, so that the call may be repeated. Default: for GET */
  readonly repeatable?: boolean;
}

/**
 * A client of the gateway at `url`. One client for a process is enough: it keeps connections alive, and merges calls.
 *
 * Idle connections do not keep a process running; `close` ends them, and everything that runs.
 */
export class Keepfit {
  readonly #caller: Caller;
  readonly #predictor: Predictor;

  /** @throws {KeepfitError} for options that cannot be used. */
  constructor(options: KeepfitOptions = {}) {
    const checked = checkOptions(options);
    this.#caller = new Caller(checked);
    this.#predictor = new Predictor(this.#caller, checked);
  }

  /** The gateway's address. */
  get url(): string {
    return `${this.#caller.target.origin}${this.#caller.target.prefix}`;
  }

  /** Return the model with this metadata, or this hash. Nothing is sent. @throws {InvalidError} for invalid metadata. */
  model(name: Metadata | string): Model {
    return new Model(this.#caller, this.#predictor, name);
  }

  /** Create a model, unless it exists with this recipe. @throws {ConflictError} if it exists with another one. */
  async create(metadata: Metadata, recipe: Recipe, options: CallOptions = {}): Promise<Model> {
    const model = this.model(metadata);
    await model.create(recipe, options);
    return model;
  }

  /** Iterate over the models with these values in their metadata, by hash. */
  models(metadata: Readonly<Record<string, string | number | boolean>> = {}, options: CallOptions = {}): AsyncGenerator<ModelAnswer, void, void> {
    const query = Object.entries(metadata).map(([name, value]) => [`metadata[${name}]`, value] as const);
    return pages(this.#caller, "/v1/models", query, "models", options);
  }

  /** Iterate over events of models and workers, as they happen. */
  events(options: EventOptions = {}): AsyncGenerator<KeepfitEvent, void, void> {
    return listen(this.#caller, options);
  }

  /** Documents by time, or points of their numbers. */
  async history(query: HistoryQuery = {}, options: CallOptions = {}): Promise<HistoryAnswer> {
    return this.request("GET", "/v1/history", { query, ...options });
  }

  /** Iterate over all documents of a query, or over its points (`HistoryPoint`), as they arrive, however many there are. */
  streamHistory<Line = HistoryDocument>(query: HistoryQuery = {}, options: Pick<CallOptions, "signal"> = {}): AsyncGenerator<Line, void, void> {
    return streamHistory<Line>(this.#caller, query, options);
  }

  /** Store documents of your own in the history, a thousand in a request, and return their number. */
  async addHistory(documents: NewDocument | Iterable<NewDocument>, options: AddHistoryOptions = {}): Promise<number> {
    const { keys = [], idempotencyKey = randomUUID(), signal, timeoutMs } = options;
    const path = `/v1/history${queryText(keys.map((name) => ["keys", name] as const))}`;
    let stored = 0;
    for (const body of bodies(documents)) {
      const key = checkText(stored === 0 ? idempotencyKey : `${idempotencyKey}-${stored}`, "idempotencyKey", 128);
      const fields = `Idempotency-Key: ${key}\r\n`;
      stored += (await this.#caller.json<StoredAnswer>({ method: "POST", path, body, fields, isRepeatable: true, idempotencyKey: key, signal, timeoutMs })).stored;
    }
    return stored;
  }

  /** Delete documents that users stored, never those of snapshots, and return their number. A filter is needed. */
  async deleteHistory(query: Readonly<Record<string, QueryValue>>, options: CallOptions = {}): Promise<number> {
    for (let deleted = 0; ; ) {
      const answer = await this.request<DeletedAnswer>("DELETE", "/v1/history", { query, repeatable: true, ...options });
      deleted += answer.deleted;
      if (answer.complete) return deleted;
    }
  }

  /** Describe a job of `pull`. */
  async job(id: string, options: CallOptions = {}): Promise<JobDocument> {
    return this.request("GET", `/v1/jobs/${encodeURIComponent(id)}`, options);
  }

  /** The workers that are alive. */
  async workers(options: CallOptions = {}): Promise<WorkerAnswer[]> {
    return (await this.request<{ workers: WorkerAnswer[] }>("GET", "/v1/workers", options)).workers;
  }

  /** The state of the gateway and of what it needs, asked once. @throws {UnavailableError} if it cannot work. */
  async ready(options: CallOptions = {}): Promise<Ready> {
    return this.request("GET", "/readyz", { ...options, repeatable: false });
  }

  /** Make a call of the HTTP API that has no method here, and return its JSON (undefined without a body). */
  async request<T = unknown>(method: "GET" | "POST" | "PATCH" | "DELETE", path: string, options: RequestOptions = {}): Promise<T> {
    const { query = {}, body, headers = {}, repeatable = method === "GET", signal, timeoutMs } = options;
    if (!/^\/[\x21-\x7e]*$/.test(path)) throw new MalformedError({ type: `${PROBLEM}malformed`, detail: "A path begins with a slash, and is percent-encoded." });
    const fields = Object.entries(headers).map(([name, value]) => {
      if (!/^[\w!#$%&'*+.^`|~-]+$/.test(name)) throw new MalformedError({ type: `${PROBLEM}malformed`, detail: "The name of a header field has other characters than RFC 9110 permits." });
      return `${name}: ${checkText(value, name)}\r\n`;
    });
    return this.#caller.json<T>({
      method,
      path: `${path}${queryText(Object.entries(query))}`,
      body: body === undefined ? undefined : JSON.stringify(body),
      fields: fields.join(""),
      isRepeatable: repeatable,
      signal,
      timeoutMs,
    });
  }

  /** Close all connections. Calls that run fail with UnavailableError. */
  close(): void {
    this.#caller.close();
  }
}
