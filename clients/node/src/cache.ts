// Answers of predict calls, kept as text within a bound of memory; the one that was used longest ago goes first.

/** What is kept of an answer. Texts, so that a caller who changes an answer changes no other's. */
export interface Kept {
  readonly text: string;
  /** Names the answer for If-None-Match; undefined if it came together with others. */
  readonly etag: string | undefined;
  /** When the gateway gave or confirmed it, by performance.now(). */
  readonly confirmedAt: number;
}

// What a key and an entry take besides their texts, about.
const ENTRY_BYTES = 200;

export class AnswerCache {
  readonly #bytesMax: number;
  /** In the order of their last use. */
  readonly #entries = new Map<string, Kept>();
  #bytes = 0;

  constructor(bytesMax: number) {
    this.#bytesMax = bytesMax;
  }

  /** Whether nothing is kept at all. */
  get isOff(): boolean {
    return this.#bytesMax === 0;
  }

  get size(): number {
    return this.#entries.size;
  }

  get bytes(): number {
    return this.#bytes;
  }

  get(key: string): Kept | undefined {
    const kept = this.#entries.get(key);
    if (kept === undefined) return undefined;
    this.#entries.delete(key);
    this.#entries.set(key, kept);
    return kept;
  }

  set(key: string, kept: Kept): void {
    this.delete(key);
    const bytes = bytesOf(key, kept);
    // One large answer must not push out all others.
    if (bytes > this.#bytesMax / 4) return;
    this.#entries.set(key, kept);
    this.#bytes += bytes;
    for (const oldest of this.#entries.keys()) {
      if (this.#bytes <= this.#bytesMax) break;
      this.delete(oldest);
    }
  }

  delete(key: string): void {
    const kept = this.#entries.get(key);
    if (kept === undefined) return;
    this.#entries.delete(key);
    this.#bytes -= bytesOf(key, kept);
  }
}

/** An upper bound: a character takes one or two bytes. */
function bytesOf(key: string, { text, etag }: Kept): number {
  return ENTRY_BYTES + 2 * (key.length + text.length + (etag?.length ?? 0));
}
