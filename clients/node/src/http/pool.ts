// The connections of a client: kept alive, as many as calls run at a time, up to a limit. Calls beyond it wait in order.

import { Connection, type Exchange, type RawRequest } from "./connection.js";
import type { Fields, Head } from "./response_parser.js";
import type { Target } from "./target.js";
import type { Phase } from "../errors.js";

// Shorter than the 75 s after which a gateway closes an idle connection.
const IDLE_MS_MAX = 30_000;
// More bytes than the answer of any call has.
const ANSWER_BYTES_MAX = 256 * 1024 * 1024;

export interface RawResponse {
  readonly status: number;
  readonly headers: Fields;
  readonly body: Buffer;
}

/** A connection failed. `isUnsent`: no byte of the request has left this machine. */
export class ConnectionFailure extends Error {
  readonly isUnsent: boolean;

  constructor(cause: Error, isUnsent: boolean) {
    super(cause.message, { cause });
    this.isUnsent = isUnsent;
  }
}

/** A request and its answer, which may be cancelled. */
export class Attempt implements Exchange {
  readonly request: RawRequest;
  readonly answer: Promise<RawResponse>;
  connection: Connection | undefined;
  #resolve!: (response: RawResponse) => void;
  #reject!: (error: Error) => void;
  #head: Head | undefined;
  #chunks: Buffer[] = [];
  #size = 0;
  #isDone = false;

  constructor(request: RawRequest) {
    this.request = request;
    this.answer = new Promise((resolve, reject) => {
      this.#resolve = resolve;
      this.#reject = reject;
    });
  }

  get phase(): Phase {
    if (this.#isDone) return "reading the answer";
    return this.connection?.phase ?? "waiting for a free connection";
  }

  onHead(head: Head): void {
    this.#head = head;
  }

  onBody(chunk: Buffer): void {
    this.#size += chunk.length;
    if (this.#size > ANSWER_BYTES_MAX) throw new Error(`the answer has more than ${ANSWER_BYTES_MAX} bytes`);
    this.#chunks.push(chunk);
  }

  onEnd(): void {
    const { status, headers } = this.#head!;
    this.#isDone = true;
    this.#resolve({ status, headers, body: this.#chunks.length === 1 ? this.#chunks[0]! : Buffer.concat(this.#chunks) });
  }

  onFailure(error: Error, isUnsent: boolean): void {
    this.#reject(new ConnectionFailure(error, isUnsent));
  }

  cancel(reason: Error): void {
    // Another request may be on its connection already.
    if (this.#isDone) return;
    this.#reject(reason);
    // The answer would come on this connection: it cannot carry another request.
    this.connection?.close(reason);
  }
}

export class Pool {
  readonly #target: Target;
  readonly #connectionsMax: number;
  readonly #all = new Set<Connection>();
  /** Connections for one exchange each, which are not counted. */
  readonly #single = new Set<Connection>();
  /** The one used last is at the end, and is used first: others become old and are closed. */
  readonly #idle: Connection[] = [];
  readonly #waiting = new Set<Attempt>();
  #sweep: NodeJS.Timeout | undefined;

  constructor(target: Target, connectionsMax: number) {
    this.#target = target;
    this.#connectionsMax = connectionsMax;
  }

  /** Send a request as soon as a connection is free. */
  send(request: RawRequest): Attempt {
    const attempt = new Attempt(request);
    const connection = this.#idle.pop() ?? (this.#all.size < this.#connectionsMax ? this.#open() : undefined);
    if (connection === undefined) this.#waiting.add(attempt);
    else this.#start(connection, attempt);
    return attempt;
  }

  /** Cancel an attempt of this pool. */
  cancel(attempt: Attempt, reason: Error): void {
    this.#waiting.delete(attempt);
    attempt.cancel(reason);
  }

  /** Send a request on a connection of its own, which no gateway has closed meanwhile. */
  sendAlone(request: RawRequest): Attempt {
    const attempt = new Attempt(request);
    attempt.connection = this.openStream(request, attempt);
    return attempt;
  }

  /** Open a connection of its own for one exchange, which may be a stream. */
  openStream(request: RawRequest, exchange: Exchange): Connection {
    const connection = new Connection(
      this.#target,
      (done) => done.close(new Error("the exchange has ended")),
      (closed) => this.#single.delete(closed),
    );
    this.#single.add(connection);
    connection.start(request, exchange);
    return connection;
  }

  /** Close all connections; what runs or waits fails with the reason. */
  close(reason: Error): void {
    clearInterval(this.#sweep);
    for (const attempt of this.#waiting) attempt.cancel(reason);
    this.#waiting.clear();
    for (const connection of [...this.#all, ...this.#single]) connection.close(reason);
  }

  #open(): Connection {
    const connection = new Connection(this.#target, (idle) => this.#release(idle), (closed) => this.#forget(closed));
    this.#all.add(connection);
    this.#sweep ??= setInterval(() => this.#closeIdle(), IDLE_MS_MAX / 3).unref();
    return connection;
  }

  #start(connection: Connection, attempt: Attempt): void {
    attempt.connection = connection;
    connection.start(attempt.request, attempt);
  }

  #release(connection: Connection): void {
    const next = this.#takeWaiting();
    if (next === undefined) this.#idle.push(connection);
    else this.#start(connection, next);
  }

  #forget(connection: Connection): void {
    this.#all.delete(connection);
    const position = this.#idle.indexOf(connection);
    if (position >= 0) this.#idle.splice(position, 1);
    const next = this.#takeWaiting();
    if (next !== undefined) this.#start(this.#open(), next);
  }

  #takeWaiting(): Attempt | undefined {
    const [next] = this.#waiting;
    if (next !== undefined) this.#waiting.delete(next);
    return next;
  }

  #closeIdle(): void {
    const oldest = performance.now() - IDLE_MS_MAX;
    for (const connection of this.#idle.filter((each) => each.idleSince < oldest)) connection.close(new Error("the connection was idle"));
  }
}
