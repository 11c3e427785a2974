// Measures predict calls of a small model: alone, by this client, a raw socket, node:http and fetch, in alternating
// rounds, each compared with the raw socket of its round; and 10,000 calls at a concurrency of 32.
// node benchmarks/calls.mjs http://127.0.0.1:8000

import { Agent, request } from "node:http";
import { connect } from "node:net";

import { Keepfit } from "keepfit";

const url = new URL(process.argv[2] ?? "http://127.0.0.1:8000");
const ROUNDS = 9;
const CALLS = 2_000;
const CALLS_OF_FETCH = 200; // it is many times as slow
const CONCURRENT = { calls: 10_000, callers: 32 };

const client = new Keepfit({ url });
const model = await client.create({ type: "benchmark" }, { estimator: "SGDRegressor", features: { make: "category", year: "number" }, scaler: "StandardScaler" });
await model.partialFit({ X: [["nike", 2001], ["puma", 2005]], y: [4, 3] }, { wait: 30 });
const path = `/v1/models/${model.hash}/predict`;
const body = () => JSON.stringify({ X: [["nike", 2001]] });

const socket = connect(Number(url.port), url.hostname).setNoDelay(true);
let received = "";
let answered;
socket.on("data", (data) => {
  received += data.toString();
  const end = received.indexOf("\r\n\r\n") + 4;
  if (end === 3 || received.length < end + Number(/content-length: (\d+)/i.exec(received)[1])) return;
  const text = received.slice(end);
  received = "";
  answered(JSON.parse(text));
});

const agent = new Agent({ keepAlive: true });
const headers = (text) => ({ "Content-Type": "application/json", "Content-Length": text.length });

const ways = {
  "raw socket": () =>
    new Promise((resolve) => {
      answered = resolve;
      const text = body();
      socket.write(`POST ${path} HTTP/1.1\r\nHost: ${url.host}\r\nContent-Type: application/json\r\nContent-Length: ${text.length}\r\n\r\n${text}`);
    }),
  keepfit: () => model.predict([["nike", 2001]]),
  "node:http": () =>
    new Promise((resolve, reject) => {
      const text = body();
      const sent = request({ agent, host: url.hostname, port: url.port, path, method: "POST", headers: headers(text) }, (response) => {
        let answer = "";
        response.setEncoding("utf8").on("data", (data) => (answer += data)).on("end", () => resolve(JSON.parse(answer)));
      });
      sent.on("error", reject).end(text);
    }),
  fetch: async () => {
    const text = body();
    return (await fetch(new URL(path, url), { method: "POST", headers: { "Content-Type": "application/json" }, body: text })).json();
  },
};

/** Return the median of calls one after the other, in milliseconds. */
async function median(call) {
  const times = [];
  const calls = call === ways.fetch ? CALLS_OF_FETCH : CALLS;
  for (let n = 0; n < calls; n++) {
    const start = performance.now();
    await call();
    times.push(performance.now() - start);
  }
  return middle(times);
}

const middle = (values) => values.sort((a, b) => a - b)[values.length >> 1];

async function callsPerSecond(options) {
  const own = new Keepfit({ url, ...options });
  const asked = own.model(model.metadata);
  let left = CONCURRENT.calls;
  let errors = 0;
  const start = performance.now();
  const caller = async () => {
    while (left-- > 0) await asked.predict([["nike", 1900 + (left % 100)]]).catch(() => (errors += 1));
  };
  await Promise.all(Array.from({ length: CONCURRENT.callers }, caller));
  const seconds = (performance.now() - start) / 1000;
  own.close();
  return { perSecond: Math.round(CONCURRENT.calls / seconds), errors };
}

const rounds = Object.fromEntries(Object.keys(ways).map((name) => [name, []]));
for (const call of Object.values(ways)) await median(call); // warm up
for (let round = 0; round < ROUNDS; round++) {
  for (const [name, call] of Object.entries(ways)) rounds[name].push(await median(call));
}
for (const [name, medians] of Object.entries(rounds)) {
  const ratios = medians.map((ms, round) => ms / rounds["raw socket"][round]);
  const each = ratios.map((ratio) => ratio.toFixed(2)).join(" ");
  console.log(`${name.padEnd(12)} ${middle([...medians]).toFixed(3)} ms, ${middle([...ratios]).toFixed(2)} times a raw socket: ${each}`);
}
console.log("merged ", await callsPerSecond({}));
console.log("single ", await callsPerSecond({ batch: false }));
process.exit();
