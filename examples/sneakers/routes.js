// HTTP API of the service: JSON requests and answers, errors as problem+json.

import { parsePair, parseVote } from './fields.js';
import { KeepfitError } from './keepfit.js';
import { Problem } from './problem.js';

const BODY_BYTES_MAX = 16 * 1_024; // a vote has about 50 bytes

/** Returns the request listener for a node:http server. */
export function routes(votes, keepfit) {
  const table = new Map([
    ['/votes', { POST: vote }],
    ['/true-size', { GET: trueSize }],
    ['/healthz', { GET: health }],
  ]);

  async function vote({ request }) {
    return [201, await votes.add(parseVote(await readJson(request)))];
  }

  async function trueSize({ query }) {
    const pair = parsePair(query);
    const average = votes.average(pair);
    // A pair with votes needs no call to keepfit.
    if (average) return [200, { ...average, source: 'votes' }];
    try {
      const { trueSize, version } = await keepfit.predict(pair);
      return [200, { trueSize, votes: 0, source: 'model', version }];
    } catch (error) {
      throw error instanceof KeepfitError ? predictionProblem(pair, error) : error;
    }
  }

  function health() {
    return [200, { status: 'ok', votes: votes.total, waiting: votes.waiting }];
  }

  return async (request, response) => {
    const [, path, query] = /^([^?]*)\??(.*)$/s.exec(request.url);
    try {
      const methods = table.get(path);
      if (!methods) throw new Problem(404, `${path} does not exist; use ${[...table.keys()].join(', ')}`);
      if (!Object.hasOwn(methods, request.method)) {
        const allow = Object.keys(methods).join(', ');
        throw new Problem(405, `${path} allows ${allow}`, { headers: { allow } });
      }
      const [status, body] = await methods[request.method]({ request, query: new URLSearchParams(query) });
      answer(response, status, body);
    } catch (error) {
      if (!(error instanceof Problem)) console.error(error);
      const problem = error instanceof Problem ? error : new Problem(500, 'internal error; see the log');
      answer(response, problem.status, problem, { 'content-type': 'application/problem+json', ...problem.headers });
    }
  };
}

function predictionProblem({ make, year }, error) {
  const detail = `${make} ${year} has no votes, and keepfit gives no prediction: ${error.message}`;
  if (error.final) return new Problem(502, detail);
  const seconds = Math.max(1, Math.ceil(error.retryAfterMs / 1_000));
  return new Problem(503, detail, { headers: { 'retry-after': seconds } });
}

async function readJson(request) {
  const chunks = [];
  let size = 0;
  try {
    for await (const chunk of request) {
      size += chunk.length;
      // A body over the limit is read to its end and discarded: closing the connection while the client writes
      // would reset it, and the client would never see the 413. requestTimeout bounds an endless body.
      if (size <= BODY_BYTES_MAX) chunks.push(chunk);
    }
  } catch {
    throw new Problem(400, 'the body is incomplete');
  }
  if (size > BODY_BYTES_MAX) throw new Problem(413, `the body may have at most ${BODY_BYTES_MAX} bytes`);
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
