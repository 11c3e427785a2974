// One model: calls by its hash, which is computed here from its metadata.

import { randomUUID } from "node:crypto";

import type {
  AcceptedAnswer, ChangeAnswer, CurveAnswer, DeadEntry, DiscardedAnswer, HistoryAnswer, JobAnswer, KeepfitEvent, LabelsAnswer, LabelsLearnedAnswer, LateLabel,
  LearnedAnswer, Metadata, ModelAnswer, ModelTraffic, Params, PredictAnswer, Pull, Recipe, RestoredAnswer, RestoreModel, RetriedAnswer, Row, ScoreAnswer, SnapshotAnswer,
  TrainScorePredictAnswer,
} from "./answers.js";
import type { Call, Caller } from "./caller.js";
import { MalformedError, NotFoundError, PROBLEM } from "./errors.js";
import { listen, type EventOptions } from "./events.js";
import type { HistoryQuery } from "./history.js";
import { HASH, hashOf } from "./metadata.js";
import { checkNumber, checkText, type CallOptions } from "./options.js";
import type { Predictor } from "./predictor.js";
import { queryText, type Query } from "./query.js";
import { bodyText, partsOf, rowsText, separate, type Rows } from "./rows.js";

const PAGE = 100;

/** Options of calls that are learned in order. */
export interface LearnOptions extends CallOptions {
  /** Wait for so many seconds (up to 60) until it is learned. Default: 0, the rows are durable and will be learned. */
  readonly wait?: number;
  /** The same key within a day learns nothing twice. Default: a new one for each call, the same for its attempts. */
  readonly idempotencyKey?: string;
}

export interface RowsOptions {
  /** The column of the target, of rows that are objects. */
  readonly target?: string;
}

export interface PredictOptions extends CallOptions {
  /** Also probabilities, or anomaly scores. */
  readonly proba?: boolean;
  /** Keep the row, or each of the rows, under this id until its label comes. */
  readonly id?: string | number | readonly (string | number)[];
  /** Predict with the snapshot of this version, beside the live model. */
  readonly version?: number;
  /** Predict with the newest snapshot not later than this time: seconds since 1970, text, or a Date. */
  readonly at?: number | string | Date;
  /** As of the client, for this call. */
  readonly staleWhileAsking?: boolean;
}

export interface TrainScorePredictRows extends Rows {
  /** The rows to predict. */
  readonly X_pred: readonly Row[];
  /** The share of the rows that is scored, or their number. Default: 0.25 */
  readonly test_size?: number;
  readonly proba?: boolean;
}

/** A model of keepfit. Made by `client.model`; it may not exist yet. */
export class Model {
  /** SHA-256 (64 hex digits) of the metadata. */
  readonly hash: string;
  /** Undefined for a model that was named by its hash. */
  readonly metadata: Metadata | undefined;
  readonly #caller: Caller;
  readonly #predictor: Predictor;
  readonly #path: string;
  readonly #predictPath: string;

  /** @internal */
  constructor(caller: Caller, predictor: Predictor, name: Metadata | string) {
    if (typeof name === "string" && !HASH.test(name)) throw new MalformedError({ type: `${PROBLEM}malformed`, detail: "A model is named by metadata or by a hash of 64 hexadecimal digits." });
    this.#caller = caller;
    this.#predictor = predictor;
    this.hash = typeof name === "string" ? name : hashOf(name);
    // A copy: what the caller changes later would name another model.
    this.metadata = typeof name === "string" ? undefined : (JSON.parse(JSON.stringify(name)) as Metadata);
    this.#path = `/v1/models/${this.hash}`;
    this.#predictPath = `${this.#path}/predict`;
  }

  /** Create the model, unless it exists with this recipe. @throws {ConflictError} if it exists with another one. */
  async create(recipe: Recipe, options: CallOptions = {}): Promise<ModelAnswer> {
    if (this.metadata === undefined) throw new MalformedError({ type: `${PROBLEM}malformed`, detail: "A model is created by its metadata; this one is named by its hash." });
    const body = JSON.stringify({ metadata: this.metadata, recipe });
    return this.#json({ method: "POST", path: "/v1/models", body, isRepeatable: true, ...callOf(options) });
  }

  /** Metadata, recipe in force, warnings, version, rows_seen, metrics, inbox, newest snapshot. @throws {NotFoundError} */
  async describe(options: CallOptions = {}): Promise<ModelAnswer> {
    return this.#json({ method: "GET", path: this.#path, isRepeatable: true, ...callOf(options) });
  }

  /** Whether the model exists. */
  async exists(options: CallOptions = {}): Promise<boolean> {
    try {
      await this.describe(options);
      return true;
    } catch (error) {
      if (error instanceof NotFoundError) return false;
      throw error;
    }
  }

  /** Change parameters of the estimator, in order with its rows. */
  async setParams(params: Params, options: LearnOptions = {}): Promise<ModelAnswer | ChangeAnswer> {
    return this.#learn("PATCH", "", JSON.stringify({ params }), { wait: 5, ...options });
  }

  /** Delete the model; its snapshots stay. */
  async delete(options: CallOptions = {}): Promise<void> {
    // Without a repetition: another client may have created the model again in between.
    await this.#caller.call({ method: "DELETE", path: this.#path, isRepeatable: false, ...callOf(options) });
  }

  /**
   * Learn rows, exactly once: `{X, y, sample_weight}`, or objects whose column `target` is y.
   *
   * The answer has `rows_seen` once they are learned, if `wait` gives the time.
   *
   * @throws {InvalidError} with row and column of each wrong value; nothing of the call is learned then.
   */
  async partialFit(rows: Rows | readonly Row[], options: LearnOptions & RowsOptions = {}): Promise<AcceptedAnswer | LearnedAnswer> {
    return this.#learn("POST", "/partial_fit", bodyText(separate(rows, options.target)), options);
  }

  /** Learn the first rows, score the last ones, learn those too, and predict `X_pred`, all by one version. */
  async trainScorePredict(rows: TrainScorePredictRows, options: LearnOptions = {}): Promise<TrainScorePredictAnswer | AcceptedAnswer> {
    const { X_pred, test_size, proba, ...own } = rows;
    const parts = [...partsOf(own), `"X_pred":${rowsText(X_pred, "X_pred")}`];
    if (test_size !== undefined) parts.push(`"test_size":${checkNumber(test_size, "test_size", 0, Infinity)}`);
    if (proba !== undefined) parts.push(`"proba":${Boolean(proba)}`);
    return this.#learn("POST", "/train_score_predict", `{${parts.join(",")}}`, { wait: 10, ...options });
  }

  /** Predict rows. Calls of one turn of the event loop become one request. */
  async predict(X: readonly Row[], options: PredictOptions = {}): Promise<PredictAnswer> {
    const { proba, id, version, at, timeoutMs, signal, staleWhileAsking } = options;
    const fields = `${proba ? ',"proba":true' : ""}${id === undefined ? "" : `,"id":${JSON.stringify(id)}`}`;
    return this.#predictor.predict({
      path: version === undefined && at === undefined && timeoutMs === undefined ? this.#predictPath : `${this.#predictPath}${predictQuery(options)}`,
      rows: rowsText(X),
      rowsCount: X.length,
      fields,
      isPlain: id === undefined,
      signal,
      timeoutMs,
      staleWhileAsking,
    });
  }

  /** Score the model on rows and their target. */
  async score(rows: Rows | readonly Row[], options: CallOptions & RowsOptions = {}): Promise<ScoreAnswer> {
    const body = bodyText(separate(rows, options.target));
    return this.#json({ method: "POST", path: `${this.#path}/score`, body, isRepeatable: true, ...callOf(options) });
  }

  /** Join rows that were predicted with an `id` with their labels, up to 512, and learn them. */
  async label(labels: readonly LateLabel[], options: LearnOptions = {}): Promise<LabelsAnswer | LabelsLearnedAnswer> {
    return this.#learn("POST", "/labels", JSON.stringify({ labels }), options);
  }

  /** Make a job that learns a source which the gateway is allowed to read; `client.job` follows it. */
  async pull(source: Pull, options: CallOptions & Pick<LearnOptions, "idempotencyKey"> = {}): Promise<JobAnswer> {
    return this.#learn("POST", "/pull", JSON.stringify(source), options);
  }

  /** Save the model as it is now. */
  async snapshot(options: CallOptions = {}): Promise<SnapshotAnswer> {
    return this.#json({ method: "POST", path: `${this.#path}/snapshot`, isRepeatable: true, ...callOf(options) });
  }

  /** Iterate over the snapshots, newest first. */
  snapshots(options: CallOptions = {}): AsyncGenerator<SnapshotAnswer, void, void> {
    return pages(this.#caller, `${this.#path}/snapshots`, [], "snapshots", options);
  }

  /** Restore what Redis lost, or rewind to the newest snapshot not later than `at`, or to `version`. Never repeated. */
  async restore(to: Omit<RestoreModel, "at"> & { at?: RestoreModel["at"] | Date } = {}, options: CallOptions = {}): Promise<RestoredAnswer> {
    const at = to.at instanceof Date ? to.at.getTime() / 1000 : to.at;
    return this.#json({ method: "POST", path: `${this.#path}/restore`, body: JSON.stringify({ ...to, at }), isRepeatable: false, ...callOf(options) });
  }

  /** Iterate over the dead letters: accepted requests that could not be learned, oldest first. */
  deadLetters(options: CallOptions = {}): AsyncGenerator<DeadEntry, void, void> {
    return pages(this.#caller, `${this.#path}/dead`, [], "dead", options);
  }

  /** Move dead letters to the end of the inbox: those with these ids, or the oldest 128. */
  async retryDeadLetters(ids?: readonly string[], options: CallOptions = {}): Promise<RetriedAnswer> {
    return this.#json({ method: "POST", path: `${this.#path}/dead/retry`, body: JSON.stringify({ ids }), isRepeatable: false, ...callOf(options) });
  }

  /** Delete dead letters for good. */
  async discardDeadLetters(ids: readonly string[], options: CallOptions = {}): Promise<DiscardedAnswer> {
    return this.#json({ method: "POST", path: `${this.#path}/dead/discard`, body: JSON.stringify({ ids }), isRepeatable: true, ...callOf(options) });
  }

  /** The learning curve: the running metrics after some of the rows, at most 1,000 points, oldest first. */
  async curve(options: CallOptions = {}): Promise<CurveAnswer> {
    return this.#json({ method: "GET", path: `${this.#path}/curve`, isRepeatable: true, ...callOf(options) });
  }

  /** The last minute of this model, over all gateways: rows in and out, predictions by source, and their latency. */
  async traffic(options: CallOptions = {}): Promise<ModelTraffic> {
    return this.#json({ method: "GET", path: `${this.#path}/traffic`, isRepeatable: true, ...callOf(options) });
  }

  /** The history of this model: `every`, `stat` and `field` give points, otherwise documents are given. */
  async history(query: HistoryQuery = {}, options: CallOptions = {}): Promise<HistoryAnswer> {
    const path = `/v1/history${queryText([["hash", this.hash], ...Object.entries(query)])}`;
    return this.#json({ method: "GET", path, isRepeatable: true, ...callOf(options) });
  }

  /** Iterate over the events of this model, as they happen. */
  events(options: Omit<EventOptions, "hash" | "metadata"> = {}): AsyncGenerator<KeepfitEvent, void, void> {
    return listen(this.#caller, { ...options, hash: this.hash });
  }

  async #learn<T>(method: "POST" | "PATCH", path: string, body: string, options: LearnOptions): Promise<T> {
    const key = options.idempotencyKey === undefined ? randomUUID() : checkText(options.idempotencyKey, "idempotencyKey", 128);
    const wait = checkNumber(options.wait ?? 0, "wait", 0, 60);
    const prefer = wait > 0 || options.wait === 0 ? `Prefer: wait=${wait}\r\n` : "";
    return this.#json({
      method,
      path: `${this.#path}${path}`,
      body,
      fields: `${prefer}Idempotency-Key: ${key}\r\n`,
      isRepeatable: true,
      waitMs: wait * 1000,
      idempotencyKey: key,
      ...callOf(options),
    });
  }

  #json<T>(call: Call): Promise<T> {
    return this.#caller.json<T>(call);
  }
}

function predictQuery({ version, at, timeoutMs }: PredictOptions): string {
  return queryText([
    ["version", version],
    ["at", at instanceof Date ? at.getTime() / 1000 : at],
    // Nothing is computed for a caller that has gone.
    ["timeout", timeoutMs === undefined ? undefined : Math.min(checkNumber(timeoutMs, "timeoutMs", 1, 2 ** 31 - 1) / 1000, 600)],
  ]);
}

function callOf({ signal, timeoutMs }: CallOptions): Pick<CallOptions, "signal" | "timeoutMs"> {
  return { signal, timeoutMs: timeoutMs === undefined ? undefined : checkNumber(timeoutMs, "timeoutMs", 1, 2 ** 31 - 1) };
}

/** Yield the entries of a list that comes in pages. @internal */
export async function* pages<T>(caller: Caller, path: string, query: Query, name: string, options: CallOptions): AsyncGenerator<T, void, void> {
  let after: string | number | undefined;
  do {
    const text = queryText([...query, ["limit", PAGE], ["after", after]]);
    const page: Record<string, T[]> & { next: string | number | null } = await caller.json({ method: "GET", path: `${path}${text}`, isRepeatable: true, ...callOf(options) });
    yield* page[name]!;
    after = page.next ?? undefined;
  } while (after !== undefined);
}
