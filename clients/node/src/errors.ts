// The errors of the client. Every error of a call is a KeepfitError: what the gateway reports as a problem document
// (RFC 9457), values that are refused before they are sent, and calls without an answer. A subclass names the kind.
// An aborted AbortSignal is the one exception: its own reason is thrown. No message holds an API key.

import type { ProblemError } from "./answers.js";

/** The beginning of every `type` of keepfit's problem documents. */
export const PROBLEM = "urn:keepfit:problem:";

/** What a problem document holds (RFC 9457), and what the client knows of its call. */
export interface Problem {
  readonly type?: string;
  readonly title?: string;
  readonly status?: number | undefined;
  readonly detail: string;
  readonly errors?: readonly ProblemError[];
  readonly requestId?: string | undefined;
  readonly retryAfterMs?: number | undefined;
  readonly cause?: unknown;
}

/** An error of keepfit. `detail`, which is also the message, is one sentence for a person. */
export class KeepfitError extends Error {
  /** `urn:keepfit:problem:` and a name; "about:blank" if the answer is not one of keepfit. */
  readonly type: string;
  /** The HTTP status; undefined if there was no answer, or nothing was sent. */
  readonly status: number | undefined;
  readonly title: string;
  readonly detail: string;
  /** Up to 20 wrong values by row (from 0) and column. */
  readonly errors: readonly ProblemError[];
  /** Find the request in the gateway's log by it. */
  readonly requestId: string | undefined;
  /** What the answer's Retry-After asks for, in milliseconds. */
  readonly retryAfterMs: number | undefined;
  /** How many times the call was sent. */
  attempts = 0;
  /** The key of a learning call: repeat the call with it, and its rows are learned once. */
  idempotencyKey: string | undefined;

  constructor(problem: Problem) {
    super(problem.detail, problem.cause === undefined ? undefined : { cause: problem.cause });
    this.name = new.target.name;
    this.type = problem.type ?? "about:blank";
    this.status = problem.status;
    this.title = problem.title ?? "";
    this.detail = problem.detail;
    this.errors = problem.errors ?? [];
    this.requestId = problem.requestId;
    this.retryAfterMs = problem.retryAfterMs;
  }

  /** Whether the same call may succeed later without a change. */
  get temporary(): boolean {
    return isTemporary(this.status) || this.type === `${PROBLEM}stale-model`;
  }
}

/** 400 and other answers about the form of a request. */
export class MalformedError extends KeepfitError {}
/** 401: no API key, or an unknown one. */
export class UnauthorizedError extends KeepfitError {}
/** 403: the API key lacks the scope, or is bound to other metadata. */
export class ForbiddenError extends KeepfitError {}
/** 404: no such model, snapshot or path. */
export class NotFoundError extends KeepfitError {}
/** 409: the model exists with another recipe, or its state does not permit the call. */
export class ConflictError extends KeepfitError {}
/** 413: too many rows, or bytes, for one call. */
export class TooLargeError extends KeepfitError {}
/** 422: a wrong value. `errors` names rows and columns. Also thrown before anything is sent; `status` is undefined then. */
export class InvalidError extends KeepfitError {}
/** 422: the idempotency key was used before with another body. */
export class IdempotencyError extends KeepfitError {}
/** 422: the rows were accepted, could not be learned, and are dead letters. */
export class LearningError extends KeepfitError {}
/** 429: too many requests wait, or the API key exceeded its rate, and retries did not help. */
export class OverloadedError extends KeepfitError {}
/** 408, 502, 503: a part of keepfit, or the way to it, is unavailable, and retries did not help. Also: no answer at all, `status` is undefined then. */
export class UnavailableError extends KeepfitError {
  override get temporary(): boolean {
    return true;
  }
}
/** 504: the gateway has no answer in time. */
export class DeadlineError extends KeepfitError {}
/** 500 and other answers about an error inside keepfit. */
export class ServerError extends KeepfitError {}
/** The connection could not be made, or broke. `cause` has the system's error. */
export class ConnectionError extends UnavailableError {}

/** What a call was doing when its time was over. */
export type Phase = "waiting for a free connection" | "connecting" | "sending" | "waiting for the answer" | "reading the answer" | "waiting to retry";

/** The call took longer than `timeoutMs`. `phase` names what took the time. */
export class TimeoutError extends UnavailableError {
  readonly phase: Phase;
  readonly timeoutMs: number;

  constructor(phase: Phase, timeoutMs: number, where: string, cause?: unknown) {
    super({ title: "Timeout", detail: `${where}: timeout of ${Math.round(timeoutMs)} ms while ${phase}${because(cause)}.`, cause });
    this.phase = phase;
    this.timeoutMs = timeoutMs;
  }
}

function because(cause: unknown): string {
  return cause instanceof Error ? `; the last attempt failed: ${cause.message.replace(/\.$/, "")}` : "";
}

type Kind = new (problem: Problem) => KeepfitError;

const BY_TYPE: Readonly<Record<string, Kind>> = {
  malformed: MalformedError,
  unauthorized: UnauthorizedError,
  forbidden: ForbiddenError,
  "foreign-origin": ForbiddenError,
  "not-found": NotFoundError,
  conflict: ConflictError,
  "not-confirmed": ConflictError,
  "stale-model": ConflictError,
  "too-large": TooLargeError,
  invalid: InvalidError,
  idempotency: IdempotencyError,
  learning: LearningError,
  unstorable: LearningError,
};

const BY_STATUS: Readonly<Record<number, Kind>> = {
  401: UnauthorizedError,
  403: ForbiddenError,
  404: NotFoundError,
  408: UnavailableError,
  409: ConflictError,
  413: TooLargeError,
  422: InvalidError,
  429: OverloadedError,
  502: UnavailableError,
  503: UnavailableError,
  504: DeadlineError,
};

/** Return whether the same request may be answered otherwise a moment later. */
export function isTemporary(status: number | undefined): boolean {
  return status === 408 || status === 429 || status === 502 || status === 503 || status === 504;
}

/** Return the error of the class that the problem's type, or else its status, names. */
export function errorOf(problem: Problem): KeepfitError {
  const status = problem.status ?? 0;
  const name = problem.type?.startsWith(PROBLEM) ? problem.type.slice(PROBLEM.length) : "";
  const byStatus = BY_STATUS[status] ?? (status >= 500 ? ServerError : MalformedError);
  return new (Object.hasOwn(BY_TYPE, name) ? BY_TYPE[name]! : byStatus)(problem);
}

/** Return the error for a value that is refused before anything is sent. */
export function invalid(detail: string, errors: readonly ProblemError[] = []): InvalidError {
  return new InvalidError({ type: `${PROBLEM}invalid`, title: "Unprocessable Entity", detail, errors });
}
