// An append-only file of JSON lines: read once when it is opened, then only added to.
// A line is on the disk before its append() resolves, and a line torn by a crash never stays in the file.

import { mkdir, open } from 'node:fs/promises';
import { dirname } from 'node:path';

export class Journal {
  #file;
  #size;
  #last = Promise.resolve();

  constructor(file, size) {
    this.#file = file;
    this.#size = size;
  }

  /** Opens or makes the file and gives each of its records to `replay`, oldest first. */
  static async open(path, replay) {
    await mkdir(dirname(path), { recursive: true });
    const file = await open(path, 'a+');
    const bytes = await file.readFile();
    // What follows the last newline was being written when the process died: nobody was told it is stored.
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

  /** Writes one record; records land in the order of the calls. */
  append(record) {
    const written = this.#last.then(() => this.#write(`${JSON.stringify(record)}\n`));
    this.#last = written.catch(() => {}); // one failed write (a full disk) doesn't fail the next
    return written;
  }

  async close() {
    await this.#last;
    await this.#file.close();
  }

  async #write(line) {
    try {
      await this.#file.appendFile(line);
      await this.#file.datasync();
      this.#size += Buffer.byteLength(line);
    } catch (error) {
      await this.#file.truncate(this.#size); // or the next line would be glued to half of this one
      throw error;
    }
  }
}
