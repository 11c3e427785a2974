// Starts the service with its settings (README.md lists them) and shuts it down cleanly.

import { once } from 'node:events';
import { createServer } from 'node:http';

import { FitModel } from './model.js';
import { deliver } from './outbox.js';
import { routes } from './routes.js';
import { Votes } from './votes.js';

async function main({
  HOST = '127.0.0.1',
  PORT = '3000',
  KEEPFIT_URL = 'http://127.0.0.1:8000',
  KEEPFIT_API_KEY,
  DATA_FILE = 'votes.sqlite',
  SESSION = '1',
}) {
  const votes = new Votes(DATA_FILE);
  const model = new FitModel(KEEPFIT_URL, KEEPFIT_API_KEY, SESSION);

  // With the default check interval of 30 s, a timeout of 10 s could last 40 s.
  const limits = { requestTimeout: 10_000, headersTimeout: 10_000, connectionsCheckingInterval: 1_000 };
  const server = createServer(limits, routes(votes, model));
  server.listen(Number(PORT), HOST);
  await once(server, 'listening');

  // Delivery runs concurrently, so that votes and averages work while keepfit is unavailable.
  const stopping = new AbortController();
  const delivery = deliver(votes, model, stopping.signal);

  const stop = async () => {
    server.keepAliveTimeout = 1; // an outstanding answer is the last one on its connection
    server.close();
    stopping.abort();
    await Promise.all([once(server, 'close'), delivery]);
    votes.close();
    model.close();
  };
  // once: a second signal ends the process immediately; every acknowledged vote is stored by then.
  process.once('SIGTERM', stop);
  process.once('SIGINT', stop);

  const { address, family, port } = server.address();
  const host = family === 'IPv6' ? `[${address}]` : address;
  console.log(JSON.stringify({ listening: `http://${host}:${port}` }));
}

try {
  await main(process.env);
} catch (error) {
  console.error(`sneakers: ${error.message}`);
  process.exitCode = 1;
}
