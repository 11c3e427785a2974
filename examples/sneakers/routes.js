// The HTTP side: which call gives which answer. JSON in, JSON out, errors as problem+json.

import { pairOf, voteOf } from './fields.js';
import { KeepfitError } from './keepfit.js';
import { Problem } from './problem.js';

const BODY_BYTES_MAX = 16 * 1_024; // a vote has about 50

/** The listener for node:http's server. */
export function routes(votes, keepfit) {
  const table = new Map([
    ['/votes', { POST: vote }],
    ['/true-size', { GET: trueSize }],
    ['/healthz', { GET: health }],
  ]);

  async function vote({ request }) {
    return [201, await votes.add(voteOf(await jsonOf(request)))];
  }

  async function trueSize({ query }) {
    const pair = pairOf(query);
    const average = votes.average(pair);
    // The point of keeping the votes here: a pair that somebody voted on costs no call to keepfit.
    if (average) return [200, { ...average, source: 'votes' }];
    try {
      const { trueSize, version } = await keepfit.predict(pair);
      return [200, { trueSize, votes: 0, source: 'model', version }];
    } catch (error) {
      throw error instanceof KeepfitError ? unpredicted(pair, error) : error;
    }
  }

  function health() {
    return [200, { status: 'ok', votes: votes.total, waiting: votes.waiting }];
  }

  return async (request, response) => {
    const [, path, query] = /^([^?]*)\??(.*)$/s.exec(request.url);
    try {
      const methods = table.get(path);
      if (!methods) throw new Problem(404, `there is no ${path}; there are ${[...table.keys()].join(', ')}`);
      if (!Object.hasOwn(methods, request.method)) {
        const allow = Object.keys(methods).join(', ');
        throw new Problem(405, `${path} takes ${allow}`, { headers: { allow } });
      }
      const [status, body] = await methods[request.method]({ request, query: new URLSearchParams(query) });
      answer(response, status, body);
    } catch (error) {
      if (!(error instanceof Problem)) console.error(error);
      const problem = error instanceof Problem ? error : new Problem(500, 'something broke here; it is logged');
      answer(response, problem.status, problem, { 'content-type': 'application/problem+json', ...problem.headers });
    }
  };
}

function unpredicted({ make, year }, error) {
  const detail = `nobody has voted on ${make} ${year} and keepfit gives no prediction: ${error.message}`;
  if (error.final) return new Problem(502, detail);
  const seconds = Math.max(1, Math.ceil(error.retryAfterMs / 1_000));
  return new Problem(503, detail, { headers: { 'retry-after': seconds } });
}

async function jsonOf(request) {
  const chunks = [];
  let size = 0;
  try {
    for await (const chunk of request) {
      size += chunk.length;
      // A body over the limit is read to its end but not kept: closing on a client that still writes resets the
      // connection, and it would never see the 413. The server's requestTimeout ends a body that doesn't.
      if (size <= BODY_BYTES_MAX) chunks.push(chunk);
    }
  } catch {
    throw new Problem(400, 'the body broke off');
  }
  if (size > BODY_BYTES_MAX) throw new Problem(413, `the body may have ${BODY_BYTES_MAX} bytes`);
  try {
    return JSON.parse(new TextDecoder('utf-8', { fatal: true }).decode(Buffer.concat(chunks)));
  } catch (error) {
    throw new Problem(400, `the body is not JSON: ${error.message}`);
  }
}

function answer(response, status, body, headers = {}) {
  const bytes = Buffer.from(`${JSON.stringify(body)}\n`);
  response.writeHead(status, { 'content-type': 'application/json', 'content-length': bytes.length, ...headers });
  response.end(bytes);
}
