import assert from "node:assert/strict";
import { test } from "node:test";

import { ResponseParser } from "../dist/http/response_parser.js";

function reader() {
  const read = { answers: [], interim: 0 };
  let answer;
  read.parser = new ResponseParser({
    onContinue: () => (read.interim += 1),
    onHead: (head) => (answer = { status: head.status, keepAlive: head.keepAlive, xa: head.headers.get("x-a"), body: "" }),
    onBody: (chunk) => (answer.body += chunk.toString()),
    onEnd: () => read.answers.push(answer),
  });
  return read;
}

const ANSWERS =
  "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 5\r\nX-A: 1\r\nx-a:  2 \r\n\r\nhello" +
  "HTTP/1.1 304 Not Modified\r\nETag: W/\"1\"\r\nContent-Length: 7\r\n\r\n" +
  "HTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\nHTTP/1.1 200 \r\nTransfer-Encoding: Chunked\r\n\r\n4;name=x\r\nab\r\n\r\nA\r\n0123456789\r\n0\r\nTrailer: x\r\n\r\n" +
  "HTTP/1.1 204 No Content\r\n\r\nHTTP/1.0 404 Not Found\r\nContent-Length: 0\r\n\r\nHTTP/1.1 503 x\r\nConnection: close\r\n\r\nrest of it";

test("answers are read in the same way wherever their bytes are cut", () => {
  const whole = reader();
  whole.parser.push(Buffer.from(ANSWERS));
  assert.equal(whole.parser.finish(), true);
  assert.deepEqual(whole.answers.map(({ status, body, keepAlive }) => [status, body, keepAlive]), [
    [200, "hello", true], [304, "", true], [200, "ab\r\n0123456789", true], [204, "", true], [404, "", false], [503, "rest of it", false],
  ]);
  assert.equal(whole.answers[0].xa, "1, 2");
  assert.equal(whole.interim, 1);
  for (let size = 1; size <= 40; size++) {
    const parts = reader();
    for (let start = 0; start < ANSWERS.length; start += size) parts.parser.push(Buffer.from(ANSWERS.slice(start, start + size)));
    parts.parser.finish();
    assert.deepEqual([parts.answers, parts.interim], [whole.answers, whole.interim]);
  }
});

const HEAD = "HTTP/1.1 200 OK\r\n";
for (const [name, text] of Object.entries({
  "another protocol": "SSH-2.0-OpenSSH\r\n\r\n",
  "HTTP/2": "HTTP/2 200 OK\r\n\r\n",
  "a status of two digits": "HTTP/1.1 20 OK\r\n\r\n",
  "an upgrade": "HTTP/1.1 101 Switching Protocols\r\n\r\n",
  "two lengths": `${HEAD}Content-Length: 1\r\nContent-Length: 2\r\n\r\n`,
  "a length and chunks": `${HEAD}Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n`,
  "another coding": `${HEAD}Transfer-Encoding: gzip, chunked\r\n\r\n`,
  "a negative length": `${HEAD}Content-Length: -1\r\n\r\n`,
  "a length with a plus": `${HEAD}Content-Length: +1\r\n\r\n`,
  "a space before the colon": `${HEAD}Content-Length : 1\r\n\r\n`,
  "a folded line": `${HEAD}A: 1\r\n Content-Length: 1\r\n\r\n`,
  "a line without a colon": `${HEAD}nonsense\r\n\r\n`,
  "a chunk without a size": `${HEAD}Transfer-Encoding: chunked\r\n\r\nx\r\n`,
  "a longer chunk": `${HEAD}Transfer-Encoding: chunked\r\n\r\n1\r\nabc\r\n0\r\n\r\n`,
  "an endless head": `${HEAD}A: ${"x".repeat(70_000)}`,
  "an endless size": `${HEAD}Transfer-Encoding: chunked\r\n\r\n${"0".repeat(9_000)}`,
})) {
  test(`${name} is refused`, () => assert.throws(() => reader().parser.push(Buffer.from(text)), Error));
}

test("an answer that breaks off is not complete", () => {
  for (const text of [HEAD, `${HEAD}Content-Length: 3\r\n\r\nab`, `${HEAD}Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n`]) {
    const read = reader();
    read.parser.push(Buffer.from(text));
    assert.equal(read.parser.finish(), false);
    assert.equal(read.parser.idle, false);
    assert.deepEqual(read.answers, []);
  }
});
