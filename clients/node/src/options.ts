// The options of a client, checked before anything is sent.

import { invalid } from "./errors.js";
import type { TlsOptions } from "./http/target.js";
import { VERSION } from "./version.js";

const TIMER_MS_MAX = 2 ** 31 - 1;

export interface KeepfitOptions {
  /** The address of a gateway. Default: "http://127.0.0.1:8000" */
  readonly url?: string | URL;
  /** The API key, where the gateway requires one. */
  readonly apiKey?: string | undefined;
  /** The time for a call with all its attempts, in milliseconds; a `wait` is added. Default: 60,000 */
  readonly timeoutMs?: number;
  /** How many times a call is repeated after 408, 429, 502, 503, 504 or a broken connection. Default: 10 */
  readonly retries?: number;
  /** Connections at a time; more calls wait in order. Default: 64 */
  readonly connectionsMax?: number;
  /** Bodies from this size on are compressed; Infinity compresses none. Default: 65,536 */
  readonly gzipBytesMin?: number;
  /** Whether predict calls of one turn of the event loop become one request. Default: true */
  readonly batch?: boolean;
  /** Memory for answers of predict calls, in bytes; 0 keeps none. Default: 8,388,608 */
  readonly cacheBytesMax?: number;
  /** Whether a predict call that was answered before is answered with that at once, while the gateway is asked. Default: false */
  readonly staleWhileAsking?: boolean;
  /** For how long such an answer is used without being confirmed, in milliseconds. Default: 60,000 */
  readonly staleMsMax?: number;
  /** Certificates and keys for an https gateway, as of node:tls. */
  readonly tls?: TlsOptions;
  /** Text in front of the `User-Agent`, such as "shop/1.2". */
  readonly userAgent?: string;
}

export interface CallOptions {
  /** Ends the call, which throws the signal's reason. */
  readonly signal?: AbortSignal | undefined;
  /** As of the client, for this call. */
  readonly timeoutMs?: number | undefined;
}

export interface CheckedOptions extends Required<Omit<KeepfitOptions, "apiKey">> {
  readonly apiKey: string | undefined;
}

/**
 * @throws {InvalidError} for an option of another form, or a text that cannot be sent in a header.
 */
export function checkOptions(options: KeepfitOptions): CheckedOptions {
  const { apiKey, url = "http://127.0.0.1:8000", tls = {}, batch = true, staleWhileAsking = false } = options;
  const agent = `keepfit-node/${VERSION} node/${process.versions.node}`;
  return {
    url,
    tls,
    batch,
    staleWhileAsking,
    apiKey: apiKey === undefined || apiKey === "" ? undefined : checkText(apiKey, "apiKey"),
    timeoutMs: checkNumber(options.timeoutMs ?? 60_000, "timeoutMs", 1, TIMER_MS_MAX),
    retries: checkNumber(options.retries ?? 10, "retries", 0, Infinity),
    connectionsMax: checkNumber(options.connectionsMax ?? 64, "connectionsMax", 1, Infinity),
    gzipBytesMin: checkNumber(options.gzipBytesMin ?? 65_536, "gzipBytesMin", 0, Infinity),
    cacheBytesMax: checkNumber(options.cacheBytesMax ?? 8 * 1024 * 1024, "cacheBytesMax", 0, Infinity),
    staleMsMax: checkNumber(options.staleMsMax ?? 60_000, "staleMsMax", 0, Infinity),
    userAgent: options.userAgent === undefined ? agent : `${checkText(options.userAgent, "userAgent")} ${agent}`,
  };
}

/** Return a number between the bounds. */
export function checkNumber(value: number, name: string, least: number, most: number): number {
  if (typeof value !== "number" || !(value >= least && value <= most)) throw invalid(`${name} must be a number ${most === Infinity ? `of ${least} or more` : `from ${least} to ${most}`}.`);
  return value;
}

/** Return a text that may be sent in a header; the error does not repeat it. */
export function checkText(value: string, name: string, most = 8_192): string {
  if (typeof value !== "string" || value.length > most || !/^[\x21-\x7e](?:[\x20-\x7e]*[\x21-\x7e])?$/.test(value)) {
    throw invalid(`${name} cannot be sent in a header: 1 to ${most} visible ASCII characters can.`);
  }
  return value;
}
