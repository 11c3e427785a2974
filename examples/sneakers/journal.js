// An append-only file of JSON lines. It is read once, when it is opened.
// A line is on disk before its append() resolves, and an incomplete line after a crash is removed.

import { mkdir, open } from 'node:fs/promises';
import { dirname } from 'node:path';

export class Journal {
  #file;
  #size;
  #lastWrite = Promise.resolve();

  constructor(file, size) {
    this.#file = file;
    this.#size = size;
  }

  /** Opens or creates the file and calls `replay` with each record, oldest first. */
  static async open(path, replay) {
    await mkdir(dirname(path), { recursive: true });
    const file = await open(path, 'a+');
    const bytes = await file.readFile();
    // Bytes after the last newline were being written during a crash; their append() never resolved.
    const size = bytes.lastIndexOf('\n') + 1;
    await file.truncate(size);
    const lines = bytes.toString('utf8', 0, size).split('\n').slice(0, -1);
    for (const [index, line] of lines.entries()) {
      try {
        replay(JSON.parse(line));
      } catch (error) {
        throw new Error(`${path}, line ${index + 1}: ${error.message}`);
      }
    }
    return new Journal(file, size);
  }

  /** Writes one record; records are written in the order of the calls. */
  append(record) {
    const written = this.#lastWrite.then(() => this.#write(`${JSON.stringify(record)}\n`));
    this.#lastWrite = written.catch(() => {}); // a failed write (a full disk) does not fail the next one
    return written;
  }

  async close() {
    await this.#lastWrite;
    await this.#file.close();
  }

  async #write(line) {
    try {
      await this.#file.appendFile(line);
      await this.#file.datasync();
      this.#size += Buffer.byteLength(line);
    } catch (error) {
      await this.#file.truncate(this.#size); // otherwise the next line would follow half of this one
      throw error;
    }
  }
}
