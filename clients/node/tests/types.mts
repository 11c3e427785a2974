// What the types of the package permit, and what they refuse: `tsc --project tests` must pass. Nothing here runs.

import { Keepfit, InvalidError, type KeepfitEvent, type LearnedAnswer, type PredictAnswer, type Recipe } from "keepfit";

const client = new Keepfit({ url: new URL("http://127.0.0.1:8000"), apiKey: process.env["KEEPFIT_API_KEY"], timeoutMs: 5_000, staleWhileAsking: true });
const recipe: Recipe = { estimator: "SGDRegressor", features: { make: "category", year: { type: "number", missing: "mean" } }, scaler: "StandardScaler" };
const model = await client.create({ type: "shoes", brand: "nike" }, recipe);

interface Pair {
  make: string;
  year: number;
  fit?: number;
}
const pairs: Pair[] = [{ make: "nike", year: 2001, fit: 4 }];
const frozen = [["nike", 2001], ["puma", null]] as const;
await model.partialFit([...pairs.map((pair) => ({ ...pair }))], { target: "fit", wait: 5, idempotencyKey: "vote-1", signal: AbortSignal.timeout(100) });
const learned = await model.partialFit({ X: frozen, y: [4, "a"], sample_weight: new Float64Array([1, 2]) });
if ("rows_seen" in learned) learned satisfies LearnedAnswer;
// @ts-expect-error: the rows may not be learned yet
learned.rows_seen.toFixed();

const answer: PredictAnswer = await model.predict([[new Date(), true, null], new Float64Array(3)], { proba: true, at: new Date(), timeoutMs: 100 });
// @ts-expect-error: a prediction may be a label, a list, or null
answer.predictions[0].toFixed();
(await model.score({ X: frozen, y: [1, 2] })).mean_absolute_error satisfies number | null | undefined;
await model.label([{ id: "pair-1", y: 4 }, { id: 7, y: "small", sample_weight: 2 }]);
await model.restore({ at: new Date() });
for await (const snapshot of model.snapshots()) snapshot.version satisfies number;
for await (const event of client.events({ kind: ["commit", "drift"], metadata: { brand: "nike" } })) event satisfies KeepfitEvent;
const workers = await client.request<{ workers: unknown[] }>("GET", "/v1/workers", { query: { limit: 1 } });
workers.workers.length satisfies number;
const error = new InvalidError({ detail: "" });
error.errors.map(({ row, column }) => [row, column]);

// @ts-expect-error: metadata have a type
client.model({ brand: "nike" });
// @ts-expect-error: there is no such option
new Keepfit({ adress: "http://127.0.0.1:8000" });
// @ts-expect-error: a recipe has other fields
await client.create({ type: "shoes" }, { estimater: "SGDRegressor" });
// @ts-expect-error: rows are lists or objects
await model.predict([1, 2]);
// @ts-expect-error: no such kind
client.events({ kind: "commmit" });
