// Names of the gateway's forms, as users of this package see them. schemas.ts is generated from the OpenAPI document.

import type { components } from "./schemas.js";

type Schemas = components["schemas"];

/** The JSON object that names a model. It has a non-empty string `type`, and no `timestamp`. */
export type Metadata = Schemas["Metadata"];
/** How a model is built: estimator or steps, parameters, features, scaler, encoding, classes. */
export type Recipe = Schemas["Recipe"];
export type Params = Schemas["Params"];
export type ModelAnswer = Schemas["ModelAnswer"];
export type ChangeAnswer = Schemas["ChangeAnswer"];
export type Metrics = Schemas["Metrics"];
export type AcceptedAnswer = Schemas["AcceptedAnswer"];
export type LearnedAnswer = Schemas["LearnedAnswer"];
export type PredictAnswer = Schemas["PredictAnswer"];
export type Prediction = Schemas["Prediction"];
export type ScoreAnswer = Schemas["ScoreAnswer"];
export type TrainScorePredictAnswer = Schemas["TrainScorePredictAnswer"];
/** A label that comes later: the `id` with which its row was predicted, and `y`. */
export type LateLabel = Schemas["LateLabel"];
export type LabelsAnswer = Schemas["LabelsAnswer"];
export type LabelsLearnedAnswer = Schemas["LabelsLearnedAnswer"];
export type SnapshotAnswer = Schemas["SnapshotAnswer"];
export type RestoredAnswer = Schemas["RestoredAnswer"];
export type RestoreModel = Schemas["RestoreModel"];
export type DeadEntry = Schemas["DeadEntry"];
export type RetriedAnswer = Schemas["RetriedAnswer"];
export type DiscardedAnswer = Schemas["DiscardedAnswer"];
export type Pull = Schemas["Pull"];
export type JobAnswer = Schemas["JobAnswer"];
export type JobDocument = Schemas["JobDocument"];
export type CurveAnswer = Schemas["CurveAnswer"];
export type ModelTraffic = Schemas["ModelTraffic"];
export type HistoryAnswer = Schemas["HistoryAnswer"];
export type HistoryDocument = Schemas["HistoryDocument"];
export type HistoryPoint = Schemas["HistoryPoint"];
/** A document to store in the history: a `type`, the time, and any other fields. */
export type NewDocument = Schemas["NewDocument"];
export type StoredAnswer = Schemas["StoredAnswer"];
export type DeletedAnswer = Schemas["DeletedAnswer"];
export type WorkerAnswer = Schemas["WorkerAnswer"];
export type Ready = Schemas["Ready"];
export type EventKind = Schemas["EventKind"];
export type ProblemError = Schemas["ProblemError"];
/** One value of a row. A `Date` is sent as ISO 8601 text. */
export type Value = Schemas["Value"] | Date;
export type Target = Schemas["Target"];

/** A row: values in the order of the recipe's features, or an object by their names. */
export type Row = readonly Value[] | { readonly [column: string]: Value | undefined } | Float64Array | Float32Array;

/** An event of the stream, with its position. */
export type KeepfitEvent = Schemas["Event"] & { readonly id: string };
