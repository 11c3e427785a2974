// One connection to the gateway, which carries one exchange after the other.

import type { Socket } from "node:net";

import type { Phase } from "../errors.js";
import { type Head, ResponseParser } from "./response_parser.js";
import type { Target } from "./target.js";

// A body from this size on is sent after the gateway has accepted its head, or has not answered for a second.
const EXPECT_BYTES_MIN = 1024 * 1024;
const EXPECT_MS_MAX = 1000;
// Up to this size, head and body are written as one text.
const ONE_WRITE_LENGTH_MAX = 32 * 1024;

/** A request as it is sent. `fields` are lines of header fields, each with its line break. */
export interface RawRequest {
  readonly method: string;
  /** With the query, percent-encoded. */
  readonly path: string;
  readonly fields: string;
  readonly body?: string | Buffer | undefined;
}

/** Who receives the answer of a request. One of `onEnd` and `onFailure` is called, once. */
export interface Exchange {
  onHead(head: Head): void;
  onBody(chunk: Buffer): void;
  onEnd(): void;
  /** `isUnsent`: no byte of the request has left this machine. */
  onFailure(error: Error, isUnsent: boolean): void;
}

export class Connection {
  /** When it became idle, by performance.now(). */
  idleSince = 0;
  readonly #target: Target;
  readonly #socket: Socket;
  readonly #parser: ResponseParser;
  readonly #onIdle: (connection: Connection) => void;
  readonly #onClose: (connection: Connection) => void;
  #exchange: Exchange | undefined;
  #head: Head | undefined;
  #isConnected = false;
  #isComplete = false;
  #isClosed = false;
  #expected: { body: Buffer; timer: NodeJS.Timeout } | undefined;

  /** Begin to connect. `onIdle` is called after each exchange, `onClose` once, when the connection is of no more use. */
  constructor(target: Target, onIdle: (connection: Connection) => void, onClose: (connection: Connection) => void) {
    this.#target = target;
    this.#onIdle = onIdle;
    this.#onClose = onClose;
    this.#parser = new ResponseParser({
      onContinue: () => this.#sendExpected(),
      onHead: (head) => this.#receiveHead(head),
      onBody: (chunk) => this.#exchange?.onBody(chunk),
      onEnd: () => {
        this.#isComplete = true;
      },
    });
    this.#socket = target.open(() => {
      this.#isConnected = true;
    });
    this.#socket.on("data", (chunk: Buffer) => this.#receive(chunk));
    this.#socket.on("error", (error) => this.close(error));
    this.#socket.on("end", () => {
      if (this.#exchange !== undefined && this.#parser.finish()) this.#finish(false);
      else this.close(new Error("the gateway closed the connection"));
    });
    this.#socket.on("close", () => this.close(new Error("the connection was closed")));
  }

  /** What the exchange waits for. */
  get phase(): Phase {
    if (!this.#isConnected) return "connecting";
    if (this.#head !== undefined) return "reading the answer";
    return this.#socket.writableLength > 0 || this.#expected !== undefined ? "sending" : "waiting for the answer";
  }

  /** Send a request; the connection is idle. */
  start(request: RawRequest, exchange: Exchange): void {
    this.#exchange = exchange;
    this.#head = undefined;
    this.#socket.ref();
    const { method, path, fields, body } = request;
    const start = `${method} ${this.#target.prefix}${path} HTTP/1.1\r\nHost: ${this.#target.host}\r\n${fields}`;
    if (body === undefined) {
      // A POST without a body has a length, so that no proxy waits for one.
      this.#socket.write(method === "GET" ? `${start}\r\n` : `${start}Content-Length: 0\r\n\r\n`);
    } else if (typeof body === "string" && body.length <= ONE_WRITE_LENGTH_MAX) {
      const length = Buffer.byteLength(body);
      // ASCII, as most bodies are, is written as it is.
      this.#socket.write(`${start}Content-Length: ${length}\r\n\r\n${body}`, length === body.length ? "latin1" : "utf8");
    } else {
      this.#writeLarge(start, typeof body === "string" ? Buffer.from(body) : body);
    }
  }

  /** Stop reading until `resume`, because the receiver is slower than the gateway. */
  pause(): void {
    this.#socket.pause();
  }

  resume(): void {
    this.#socket.resume();
  }

  /** End the connection; an exchange that is not complete fails with the error. */
  close(error: Error): void {
    if (this.#isClosed) return;
    this.#isClosed = true;
    clearTimeout(this.#expected?.timer);
    this.#socket.destroy();
    this.#onClose(this);
    const exchange = this.#exchange;
    this.#exchange = undefined;
    exchange?.onFailure(error, !this.#isConnected);
  }

  #writeLarge(start: string, body: Buffer): void {
    this.#socket.cork();
    if (body.length < EXPECT_BYTES_MIN) {
      this.#socket.write(`${start}Content-Length: ${body.length}\r\n\r\n`);
      this.#socket.write(body);
    } else {
      this.#socket.write(`${start}Content-Length: ${body.length}\r\nExpect: 100-continue\r\n\r\n`);
      this.#expected = { body, timer: setTimeout(() => this.#sendExpected(), EXPECT_MS_MAX) };
    }
    this.#socket.uncork();
  }

  #sendExpected(): void {
    if (this.#expected === undefined) return;
    clearTimeout(this.#expected.timer);
    const { body } = this.#expected;
    this.#expected = undefined;
    this.#socket.write(body);
  }

  #receive(chunk: Buffer): void {
    if (this.#exchange === undefined) return this.close(new Error("the gateway sent something without a request"));
    let failure: Error | undefined;
    try {
      this.#parser.push(chunk);
    } catch (error) {
      failure = error as Error;
    }
    // Bytes after the answer belong to no request: they must not become the answer to the next one.
    if (this.#isComplete) this.#finish(failure === undefined && this.#parser.idle);
    else if (failure !== undefined) this.close(failure);
  }

  #receiveHead(head: Head): void {
    if (this.#isComplete) throw new Error("the gateway sent a second answer");
    this.#head = head;
    this.#exchange?.onHead(head);
  }

  #finish(isClean: boolean): void {
    const exchange = this.#exchange;
    this.#exchange = undefined;
    this.#isComplete = false;
    // A request whose body was not sent completely cannot be followed by another one.
    const isSent = this.#expected === undefined && this.#socket.writableLength === 0;
    if (isClean && isSent && this.#head!.keepAlive && !this.#isClosed) {
      this.idleSince = performance.now();
      // An idle connection does not keep the process running.
      this.#socket.unref();
      this.#onIdle(this);
    } else {
      this.close(new Error("the connection is not kept alive"));
    }
    exchange?.onEnd();
  }
}
