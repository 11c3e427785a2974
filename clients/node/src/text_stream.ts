// A stream of text from a gateway, on a connection of its own: its parts as an async iterator that waits for its reader.

import { StringDecoder } from "node:string_decoder";

import { problemOf, type Caller } from "./caller.js";
import { ConnectionError, isTemporary } from "./errors.js";
import type { Connection, Exchange } from "./http/connection.js";
import type { Head } from "./http/response_parser.js";

// So many parts wait for the reader before the connection is paused.
const WAITING_MAX = 256;

/** What is made of the text of a stream. */
export interface Parser<Part> {
  /** Take text; return the parts that it completes. */
  push(text: string): Part[];
}

/** What a stream is, and how long it may be silent. */
export interface TextStreamOptions {
  readonly mediaType: string;
  /** What it has, for messages: "events". */
  readonly what: string;
  readonly silenceMsMax: number;
  /** Header fields of the request besides `Accept`. */
  readonly fields?: string;
}

/** One connection with a stream. */
export class TextStream<Part> implements Exchange {
  mayConnectAgain = true;
  retryAfterMs = 0;
  readonly #caller: Caller;
  readonly #connection: Connection;
  readonly #parser: Parser<Part>;
  readonly #options: TextStreamOptions;
  readonly #decoder = new StringDecoder("utf8");
  readonly #timer: NodeJS.Timeout;
  #head: Head | undefined;
  #isStream = false;
  #refusal: Buffer[] = [];
  #waiting: Part[] = [];
  #isDone = false;
  #failure: Error | undefined;
  #wake: (() => void) | undefined;

  constructor(caller: Caller, path: string, parser: Parser<Part>, options: TextStreamOptions) {
    this.#caller = caller;
    this.#parser = parser;
    this.#options = options;
    const request = caller.prepareStream(path, `Accept: ${options.mediaType}\r\n${options.fields ?? ""}`);
    const silent = () => this.#connection.close(new Error(`nothing arrived for ${options.silenceMsMax / 1000} s`));
    this.#timer = setTimeout(silent, options.silenceMsMax);
    this.#connection = caller.pool.openStream(request, this);
  }

  /** Yield parts until the stream ends; throw if it is refused, or breaks. */
  async *parts(): AsyncGenerator<Part, void, void> {
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
    const mediaType = (head.headers.get("content-type") ?? "").split(";")[0]!.trim().toLowerCase();
    this.#isStream = head.status === 200 && mediaType === this.#options.mediaType;
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
    this.#failure ??= new ConnectionError({ title: "No answer", detail: `The ${this.#options.what} of ${this.#caller.target.origin} broke off: ${cause.message}.`, cause });
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
