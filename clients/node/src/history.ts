// Documents of users, as requests that the gateway takes.

import type { NewDocument } from "./answers.js";
import type { CallOptions } from "./options.js";

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
