// Starts the service from its settings (README.md lists them) and stops it in order.

import { once } from 'node:events';
import { createServer } from 'node:http';

import { Keepfit } from './keepfit.js';
import { deliver } from './outbox.js';
import { routes } from './routes.js';
import { Votes } from './votes.js';

async function main({
  HOST = '127.0.0.1',
  PORT = '3000',
  KEEPFIT_URL = 'http://127.0.0.1:8000',
  KEEPFIT_API_KEY,
  DATA_FILE = 'votes.jsonl',
  SESSION = '1',
}) {
  const votes = await Votes.open(DATA_FILE);
  const keepfit = new Keepfit(KEEPFIT_URL, { type: 'shoes', type_info: 'basic', session: SESSION }, KEEPFIT_API_KEY);

  // The check's interval is 30 s by default, which would make the timeout of 10 s one of 40.
  const limits = { requestTimeout: 10_000, headersTimeout: 10_000, connectionsCheckingInterval: 1_000 };
  const server = createServer(limits, routes(votes, keepfit));
  server.listen(Number(PORT), HOST);
  await once(server, 'listening');

  // Beside the listening, not before it: votes are taken and averages given while keepfit is away.
  const stopping = new AbortController();
  const delivery = deliver(votes, keepfit, stopping.signal);

  const stop = async () => {
    server.keepAliveTimeout = 1; // an answer still under way is the last on its connection
    server.close();
    server.closeIdleConnections(); // Node 18 doesn't do this in close()
    stopping.abort();
    await Promise.all([once(server, 'close'), delivery]);
    await votes.close();
  };
  // once: a second signal ends the process at once, and loses nothing that was answered.
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
