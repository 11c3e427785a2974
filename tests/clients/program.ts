// Calls a live gateway through types that openapi-typescript generated; prints what it got as JSON.
import createClient from "openapi-fetch";
import type { components, paths } from "./api.d.ts";

type Schemas = components["schemas"];

const [url = "", session = ""] = process.argv.slice(2);
const client = createClient<paths>({ baseUrl: url });

function value<T>(answer: { data?: T; error?: Schemas["Problem"] }): T {
  if (answer.data === undefined) throw new Error(answer.error?.detail ?? "no answer");
  return answer.data;
}

const metadata: Schemas["Metadata"] = { type: "shoes", language: "typescript", session };
const recipe: Schemas["Recipe"] = {
  estimator: "SGDClassifier",
  params: { loss: "log_loss" },
  features: { make: "category", year: { type: "number", missing: "mean" } },
  scaler: "StandardScaler",
  encoding: "onehot",
};
const created = await client.POST("/v1/models", { body: { metadata, recipe } });
const model = value(created);
const path = { hash: model.hash };

const rows: Schemas["PartialFit"] = {
  X: [{ make: "nike", year: 2001 }, ["adidas", null], { make: "nike" }],
  y: ["true to size", "small", "small"],
};
const learned = value(
  await client.POST("/v1/models/{hash}/partial_fit", {
    params: { path, header: { Prefer: "wait=30", "Idempotency-Key": session } },
    body: rows,
  }),
);
const accepted = value(await client.POST("/v1/partial_fit", { body: { metadata, ...rows, sample_weight: [1, 0.5, 2] } }));
const changed = value(
  await client.PATCH("/v1/models/{hash}", { params: { path, header: { Prefer: "wait=30" } }, body: { params: { alpha: 0.01 } } }),
);

const predicted = await client.POST("/v1/models/{hash}/predict", {
  params: { path, query: { timeout: 30 } },
  body: { X: [["nike", 2005]], proba: true },
});
const prediction: Schemas["PredictAnswer"] = value(predicted);
const label = prediction.predictions[0];
const probabilities: Schemas["PredictAnswer"]["probabilities"] = prediction.probabilities;
const byMetadata = value(await client.POST("/v1/predict", { body: { metadata, X: [{ make: "nike", year: 2005 }] } }));
const etag = predicted.response.headers.get("ETag") ?? "";
const again = await client.POST("/v1/models/{hash}/predict", {
  params: { path, header: { "If-None-Match": etag } },
  body: { X: [["nike", 2005]], proba: true },
});
const score = value(await client.POST("/v1/models/{hash}/score", { params: { path }, body: { X: rows.X, y: rows.y ?? null } }));

const invalid = await client.POST("/v1/models/{hash}/partial_fit", {
  params: { path },
  body: { X: [["nike", "old"]], y: ["small"] },
});
const problem: Schemas["Problem"] | undefined = invalid.error;

const listed = value(await client.GET("/v1/models", { params: { query: { metadata: { session, language: "typescript" }, limit: 5 } } }));
const snapshot = value(await client.POST("/v1/models/{hash}/snapshot", { params: { path } }));
const snapshots = value(await client.GET("/v1/models/{hash}/snapshots", { params: { path } }));
// The answer is text only if the request asks for lines.
const history = value(await client.GET("/v1/history", { params: { query: { type: "shoes", metadata: { session } } } })) as Schemas["HistoryAnswer"];
const points = value(
  await client.GET("/v1/history", {
    params: { query: { metadata: { session }, every: "1w", stat: "max", field: "rows_seen" } },
  }),
) as Schemas["HistoryAnswer"];
const described = value(await client.GET("/v1/models/{hash}", { params: { path } }));
const accuracy: number | undefined = described.metrics.window?.accuracy;
const dead = value(await client.GET("/v1/models/{hash}/dead", { params: { path } }));
const restored = value(await client.POST("/v1/models/{hash}/restore", { params: { path }, body: { version: snapshot.version } }));
const ready = await client.GET("/readyz");
const deleted = await client.DELETE("/v1/models/{hash}", { params: { path } });

console.log(
  JSON.stringify({
    hash: model.hash,
    created: created.response.status,
    encoding: model.recipe.encoding,
    learned: "rows_seen" in learned ? learned.rows_seen : null,
    accepted: accepted.accepted,
    alpha: "recipe" in changed ? changed.recipe.params?.["alpha"] : null,
    label,
    same_label: byMetadata.predictions[0] === label,
    probabilities: probabilities?.length,
    classes: prediction.classes,
    not_modified: again.response.status,
    accuracy: score.accuracy !== undefined,
    running: accuracy !== undefined,
    problem: problem && { type: problem.type, errors: problem.errors },
    listed: listed.models.map((one) => one.hash),
    snapshots: snapshots.snapshots.map((one) => one.version === snapshot.version),
    documents: history.documents?.map((one) => one["hash"]),
    points: points.points?.map((one) => one.value),
    dead: dead.dead.length,
    restored: restored.version === snapshot.version,
    ready: ready.data?.status,
    deleted: deleted.response.status,
  }),
);
