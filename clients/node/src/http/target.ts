// The gateway's address, and sockets to it.

import { connect as connectTcp, isIP, type Socket } from "node:net";
import { connect as connectTls, type ConnectionOptions } from "node:tls";

import { PROBLEM, MalformedError } from "../errors.js";

/** What an https gateway may need: `ca`, `cert`, `key`, `servername`, … as of node:tls. */
export type TlsOptions = Pick<ConnectionOptions, "ca" | "cert" | "key" | "passphrase" | "pfx" | "servername" | "rejectUnauthorized" | "minVersion" | "checkServerIdentity">;

export class Target {
  /** The address without its path, as errors name it. */
  readonly origin: string;
  /** The path before `/v1`, without a slash at its end. */
  readonly prefix: string;
  /** The value of the field Host. */
  readonly host: string;
  readonly #isTls: boolean;
  readonly #hostname: string;
  readonly #port: number;
  readonly #tls: TlsOptions;

  constructor(url: string | URL, tls: TlsOptions = {}) {
    const parsed = parse(url);
    this.origin = parsed.origin;
    this.host = parsed.host;
    this.prefix = parsed.pathname.replace(/\/+$/, "");
    this.#isTls = parsed.protocol === "https:";
    // The name of an IPv6 address has brackets in a URL, and none in a socket's address.
    this.#hostname = parsed.hostname.replace(/^\[(.*)\]$/, "$1");
    this.#port = Number(parsed.port) || (this.#isTls ? 443 : 80);
    this.#tls = tls;
  }

  /** Begin to connect. `onReady` is called when bytes may flow. */
  open(onReady: () => void): Socket {
    // Several addresses of a name (::1 and 127.0.0.1 of localhost) are tried, as browsers do. Node.js before 18.13 ignores it.
    const address = { host: this.#hostname, port: this.#port, noDelay: true, autoSelectFamily: true };
    if (!this.#isTls) return connectTcp(address, onReady);
    const servername = isIP(this.#hostname) ? {} : { servername: this.#hostname };
    return connectTls({ ...address, ALPNProtocols: ["http/1.1"], ...servername, ...this.#tls }, onReady).setNoDelay(true);
  }
}

function parse(url: string | URL): URL {
  let parsed: URL | undefined;
  try {
    parsed = new URL(url);
  } catch {
    parsed = undefined;
  }
  const isValid = parsed !== undefined && /^https?:$/.test(parsed.protocol) && parsed.username === "" && parsed.password === "";
  if (!isValid || parsed!.search !== "" || parsed!.hash !== "") {
    // The address is not repeated: it may hold a password.
    throw new MalformedError({ type: `${PROBLEM}malformed`, detail: "`url` is not the address of a gateway: http://127.0.0.1:8000, without user, query and fragment." });
  }
  return parsed!;
}
