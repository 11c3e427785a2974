/**
 * Client for keepfit: models that learn from every row as it arrives.
 *
 * @packageDocumentation
 */

export type * from "./answers.js";
export { canonical } from "./canonical.js";
export { Keepfit, type RequestOptions } from "./client.js";
export {
  ConflictError, ConnectionError, DeadlineError, ForbiddenError, IdempotencyError, InvalidError, KeepfitError, LearningError, MalformedError, NotFoundError,
  OverloadedError, ServerError, TimeoutError, TooLargeError, UnauthorizedError, UnavailableError, type Phase, type Problem,
} from "./errors.js";
export type { EventOptions } from "./events.js";
export type { TlsOptions } from "./http/target.js";
export type { AddHistoryOptions, HistoryQuery, HistorySpan, HistoryStat, HistoryTime } from "./history.js";
export { hashOf } from "./metadata.js";
export { Model, type LearnOptions, type PredictOptions, type RowsOptions, type TrainScorePredictRows } from "./model.js";
export type { CallOptions, KeepfitOptions } from "./options.js";
export type { Rows } from "./rows.js";
export type { components } from "./schemas.js";
export { VERSION } from "./version.js";
