// Servers that answer as a test says, for what a healthy gateway does not do.

import { createServer } from "node:http";
import { createServer as createTcpServer } from "node:net";

import { Keepfit } from "keepfit";

/** Start an HTTP server for a test; return its URL and the requests it received, their bodies as they were sent. */
export async function httpServer(t, handle) {
  const requests = [];
  const server = createServer(async (request, response) => {
    const chunks = [];
    for await (const chunk of request) chunks.push(chunk);
    const received = { method: request.method, url: request.url, headers: request.headers, body: Buffer.concat(chunks), port: request.socket.remotePort };
    requests.push(received);
    try {
      await handle(received, response, requests.length);
    } catch (error) {
      response.writeHead(400).end(JSON.stringify({ detail: `the test's server failed: ${error.stack}` }));
    }
  });
  return { url: await listen(t, server), requests };
}

/** Start a TCP server, which calls `handle` with each socket and the number of the connection. */
export async function tcpServer(t, handle) {
  let count = 0;
  const sockets = new Set();
  const server = createTcpServer((socket) => {
    sockets.add(socket);
    socket.on("error", () => {});
    socket.on("close", () => sockets.delete(socket));
    handle(socket, ++count);
  });
  t.after(() => sockets.forEach((socket) => socket.destroy()));
  return listen(t, server);
}

function listen(t, server) {
  t.after(() => {
    server.close();
    server.closeAllConnections?.();
  });
  return new Promise((resolve) => server.listen(0, "127.0.0.1", () => resolve(`http://127.0.0.1:${server.address().port}`)));
}

/** Make a client that the test closes. */
export function client(t, options) {
  const made = new Keepfit(options);
  t.after(() => made.close());
  return made;
}

export function json(response, body, status = 200, headers = {}) {
  response.writeHead(status, { "Content-Type": status < 400 ? "application/json" : "application/problem+json", ...headers });
  response.end(JSON.stringify(body));
}

export function problem(response, status, name, headers = {}) {
  json(response, { type: `urn:keepfit:problem:${name}`, title: "Problem", status, detail: `This is ${name}.` }, status, headers);
}

export const METADATA = { type: "shoes" };
export const HASH = "a".repeat(64);
