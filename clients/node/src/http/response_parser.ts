// Reads the bytes of one connection as responses of HTTP/1.1 (RFC 9112).
//
// node:http is not used: a lone predict of a small model takes three times as long through it as over a socket
// (docs/guides/nodejs-client.md has the measurement). The parser is strict: whatever two readers could understand
// differently ends the connection, so that no byte of one answer is ever taken for a part of another.

const HEAD_BYTES_MAX = 64 * 1024;
const LINE_BYTES_MAX = 8 * 1024;
// A status line and header fields: no folded lines, no spaces in names, no single line feeds.
const HEAD = /^HTTP\/1\.([01]) ([1-5]\d\d)(?: [^\r\n]*)?(?:\r\n[!#$%&'*+.^_`|~0-9A-Za-z-]+:[^\r\n]*)*$/;

/** The header fields of an answer. */
export interface Fields {
  /** Return the value of a field, its name in lower case; values of several fields are joined by commas. */
  get(name: string): string | undefined;
}

export interface Head {
  readonly status: number;
  readonly headers: Fields;
  /** Whether the connection may be used again after this response. */
  readonly keepAlive: boolean;
}

export interface Receiver {
  /** An interim 100: the body is expected. */
  onContinue(): void;
  onHead(head: Head): void;
  onBody(chunk: Buffer): void;
  onEnd(): void;
}

type State = "head" | "fixed" | "chunk size" | "chunk" | "chunk end" | "trailer" | "until close";

export class ResponseParser {
  #receiver: Receiver;
  #state: State = "head";
  #rest: Buffer | undefined;
  /** Bytes that the body, or the chunk, still has. */
  #left = 0;

  constructor(receiver: Receiver) {
    this.#receiver = receiver;
  }

  /** Whether nothing of the next response has arrived. */
  get idle(): boolean {
    return this.#state === "head" && this.#rest === undefined;
  }

  /** Read the next bytes. Throws an Error if they are not HTTP. */
  push(chunk: Buffer): void {
    let data: Buffer | undefined = this.#rest === undefined ? chunk : Buffer.concat([this.#rest, chunk]);
    this.#rest = undefined;
    while (data !== undefined && data.length > 0) data = this.#step(data);
  }

  /** Read the end of the connection. Return whether it completes a response. */
  finish(): boolean {
    if (this.#state !== "until close") return false;
    this.#end();
    return true;
  }

  /** Take what the state needs of `data`; return what is left, or undefined if it waits for more. */
  #step(data: Buffer): Buffer | undefined {
    switch (this.#state) {
      case "head":
        return this.#takeHead(data);
      case "chunk size":
        return this.#takeLine(data, (line) => this.#startChunk(line));
      case "chunk end":
        return this.#takeLine(data, (line) => {
          if (line !== "") throw new Error("a chunk of the answer is longer than announced");
          this.#state = "chunk size";
        });
      case "trailer":
        return this.#takeLine(data, (line) => {
          if (line === "") this.#end();
        });
      case "until close":
        this.#receiver.onBody(data);
        return undefined;
      default:
        return this.#takeBody(data);
    }
  }

  #takeHead(data: Buffer): Buffer | undefined {
    const end = data.indexOf("\r\n\r\n");
    if (end > HEAD_BYTES_MAX || (end < 0 && data.length > HEAD_BYTES_MAX)) throw new Error("the head of the answer is too long");
    if (end < 0) {
      this.#rest = data;
      return undefined;
    }
    const head = parseHead(data.toString("latin1", 0, end));
    const rest = data.subarray(end + 4);
    if (head.status === 100) this.#receiver.onContinue();
    else if (head.status === 101) throw new Error("the connection was switched to another protocol");
    else if (head.status >= 200) this.#startBody(head);
    return rest;
  }

  #startBody(head: Head): void {
    this.#receiver.onHead(head);
    const coding = head.headers.get("transfer-encoding");
    const length = head.headers.get("content-length");
    if (head.status === 204 || head.status === 304) return this.#end();
    if (coding !== undefined) {
      if (coding.toLowerCase() !== "chunked" || length !== undefined) throw new Error("the length of the answer is ambiguous");
      this.#state = "chunk size";
    } else if (length !== undefined) {
      if (!/^\d{1,15}$/.test(length)) throw new Error("the length of the answer is not a number");
      this.#left = Number(length);
      if (this.#left === 0) this.#end();
      else this.#state = "fixed";
    } else {
      this.#state = "until close";
    }
  }

  #takeBody(data: Buffer): Buffer | undefined {
    const part = data.length <= this.#left ? data : data.subarray(0, this.#left);
    this.#left -= part.length;
    this.#receiver.onBody(part);
    if (this.#left === 0) {
      if (this.#state === "chunk") this.#state = "chunk end";
      else this.#end();
    }
    return data.length > part.length ? data.subarray(part.length) : undefined;
  }

  #takeLine(data: Buffer, take: (line: string) => void): Buffer | undefined {
    const end = data.indexOf("\r\n");
    if (end > LINE_BYTES_MAX || (end < 0 && data.length > LINE_BYTES_MAX)) throw new Error("a line of the answer is too long");
    if (end < 0) {
      this.#rest = data;
      return undefined;
    }
    take(data.toString("latin1", 0, end));
    return data.subarray(end + 2);
  }

  #startChunk(line: string): void {
    const size = /^([0-9a-fA-F]{1,12})(?:[ \t]*;.*)?$/.exec(line)?.[1];
    if (size === undefined) throw new Error("the size of a chunk of the answer is not a number");
    this.#left = Number.parseInt(size, 16);
    this.#state = this.#left === 0 ? "trailer" : "chunk";
  }

  #end(): void {
    this.#state = "head";
    this.#receiver.onEnd();
  }
}

function parseHead(text: string): Head {
  const start = HEAD.exec(text);
  if (start === null) throw new Error("the answer is not HTTP/1.1");
  const headers = new HeadFields(text);
  const connection = headers.get("connection")?.toLowerCase();
  const keepAlive = start[1] === "1" ? connection !== "close" : connection === "keep-alive";
  return { status: Number(start[2]), headers, keepAlive };
}

const patterns = new Map<string, RegExp>();

/** Fields that are looked up in the text of a head: of most answers two or three are needed. */
class HeadFields implements Fields {
  readonly #text: string;

  constructor(text: string) {
    this.#text = text;
  }

  get(name: string): string | undefined {
    let pattern = patterns.get(name);
    if (pattern === undefined) {
      pattern = new RegExp(`\\r\\n${name}:[ \\t]*([^\\r\\n]*)`, "gi");
      patterns.set(name, pattern);
    }
    pattern.lastIndex = 0;
    let value: string | undefined;
    for (let found = pattern.exec(this.#text); found !== null; found = pattern.exec(this.#text)) {
      value = value === undefined ? found[1]!.trimEnd() : `${value}, ${found[1]!.trimEnd()}`;
    }
    return value;
  }
}
