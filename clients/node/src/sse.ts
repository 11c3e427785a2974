// Server-sent events: reads text as messages (HTML Living Standard, section 9.2).

const LINE_LENGTH_MAX = 4 * 1024 * 1024;

export interface Message {
  /** The position after this message, if it has one. */
  readonly id: string | undefined;
  /** Undefined for a message that only moves the position. */
  readonly data: string | undefined;
}

export class MessageParser {
  /** The pause before the next connection that the stream asks for, in milliseconds. */
  retryMs: number | undefined;
  #line = "";
  #id: string | undefined;
  #data: string[] = [];
  #isFirst = true;

  /** Read the next part of the text; return the messages that it completes. */
  push(text: string): Message[] {
    const messages: Message[] = [];
    let all = this.#line + text;
    if (this.#isFirst && all.length > 0) {
      this.#isFirst = false;
      if (all.startsWith("\ufeff")) all = all.slice(1);
    }
    // A carriage return at the end may be the first half of a line break.
    const held = all.endsWith("\r") ? 1 : 0;
    const lines = all.slice(0, all.length - held).split(/\r\n|\n|\r/);
    this.#line = lines.pop()! + (held ? "\r" : "");
    if (this.#line.length > LINE_LENGTH_MAX) throw new Error("a line of the stream is too long");
    for (const line of lines) {
      const message = this.#read(line);
      if (message !== undefined) messages.push(message);
    }
    return messages;
  }

  #read(line: string): Message | undefined {
    if (line === "") return this.#dispatch();
    const [, name, value = ""] = /^([^:]*)(?:: ?(.*))?$/s.exec(line)!;
    if (name === "data") this.#data.push(value);
    else if (name === "id" && !value.includes("\0")) this.#id = value;
    else if (name === "retry" && /^\d{1,9}$/.test(value)) this.retryMs = Number(value);
    return undefined;
  }

  #dispatch(): Message | undefined {
    const message = { id: this.#id, data: this.#data.length > 0 ? this.#data.join("\n") : undefined };
    this.#id = undefined;
    this.#data = [];
    return message.id === undefined && message.data === undefined ? undefined : message;
  }
}
