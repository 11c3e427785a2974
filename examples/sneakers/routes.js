// HTTP API of the service: JSON requests and answers, errors as problem+json, and its two pages.

import { readFileSync } from 'node:fs';

import { KeepfitError } from 'keepfit';

import { DOCUMENT } from './api.js';
import { PAIR, SIZED_VOTE, VOTE, parse } from './fields.js';
import { isAboutContent } from './outbox.js';
import { Problem } from './problem.js';

const BODY_BYTES_MAX = 16 * 1_024; // a vote has about 100 bytes
const FILES = {
  '/': ['index.html', 'text/html; charset=utf-8'],
  '/page.js': ['page.js', 'text/javascript; charset=utf-8'],
  '/style.css': ['style.css', 'text/css; charset=utf-8'],
  '/api': ['api.html', 'text/html; charset=utf-8'],
  '/api.js': ['api.js', 'text/javascript; charset=utf-8'],
};
// A page runs the files of this service alone.
const POLICY = "default-src 'none'; script-src 'self'; style-src 'self'; img-src data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/** Returns the request listener for a node:http server. */
export function routes(votes, model) {
  const table = new Map([
    ['/true/add', { POST: (request) => add(request, VOTE) }],
    ['/true/addsize', { POST: (request) => add(request, SIZED_VOTE) }],
    ['/true/single', { POST: single }],
    ['/true/score', { GET: score }],
    ['/healthz', { GET: health }],
    ['/api.json', { GET: () => [200, DOCUMENT] }],
    ...Object.entries(FILES).map(([path, [name, type]]) => [path, { GET: file(name, type) }]),
  ]);

  async function add(request, names) {
    const { vote, isNew } = await votes.add(parse(await readJson(request), names));
    return [isNew ? 201 : 200, vote];
  }

  async function single(request) {
    const pair = parse(await readJson(request), PAIR);
    const average = votes.average(pair);
    // A pair with votes needs no call to keepfit.
    if (average) return [200, { ...average, source: 'votes' }];
    try {
      const { trueSize, version } = await model.predict(pair);
      return [200, { trueSize, votes: 0, source: 'model', version }];
    } catch (error) {
      throw error instanceof KeepfitError ? predictionProblem(pair, error) : error;
    }
  }

  async function score() {
    const counts = votes.counts;
    try {
      return [200, { ...counts, model: await model.describe() }];
    } catch (error) {
      if (!(error instanceof KeepfitError)) throw error;
      return [200, { ...counts, model: null }];
    }
  }

  function health() {
    const { votes: total, waiting } = votes.counts;
    return [200, { status: 'ok', votes: total, waiting }];
  }

  return async (request, response) => {
    const path = request.url.replace(/\?.*/s, '');
    try {
      const methods = table.get(path);
      if (!methods) throw new Problem(404, `${path} does not exist; GET /api lists the calls`);
      if (!Object.hasOwn(methods, request.method)) {
        const allow = Object.keys(methods).join(', ');
        throw new Problem(405, `${path} allows ${allow}`, { headers: { allow } });
      }
      answer(response, ...(await methods[request.method](request)));
    } catch (error) {
      if (!(error instanceof Problem)) console.error(error);
      const problem = error instanceof Problem ? error : new Problem(500, 'internal error; see the log');
      answer(response, problem.status, problem, { 'content-type': 'application/problem+json', ...problem.headers });
    }
  };
}

/** Returns a handler that answers with a file of this folder, which is read once. */
function file(name, type) {
  const bytes = readFileSync(new URL(`public/${name}`, import.meta.url));
  const headers = { 'content-type': type, 'cache-control': 'no-cache', 'content-security-policy': POLICY, 'x-content-type-options': 'nosniff' };
  return () => [200, bytes, headers];
}

function predictionProblem({ maker, brand, year }, error) {
  const detail = `${maker} ${brand} ${year} has no votes, and keepfit gives no prediction: ${error.message}`;
  if (isAboutContent(error)) return new Problem(502, detail);
  const seconds = Math.max(1, Math.ceil((error.retryAfterMs ?? 0) / 1_000));
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
  const bytes = Buffer.isBuffer(body) ? body : Buffer.from(`${JSON.stringify(body)}\n`);
  response.writeHead(status, { 'content-type': 'application/json', 'content-length': bytes.length, ...headers });
  response.end(bytes);
}
