// The model at keepfit: its name, its recipe, and what a vote is to it.

import { Keepfit } from 'keepfit';

// The order of features is the order of the columns. "exact" updates are the default: one partial_fit per vote. The
// steps are of a constant size, so that the first votes already count and later ones still do.
const RECIPE = {
  estimator: 'SGDRegressor',
  params: { learning_rate: 'constant', eta0: 0.05 },
  features: { maker: 'category', brand: 'category', year: 'number' },
  scaler: 'StandardScaler',
};

// The model learns how far a vote is from the middle of the scale: a model without votes then answers the middle.
const [LOWEST, MIDDLE, HIGHEST] = [1, 3, 5];

// A shutdown waits so long for an outstanding call, and a user for a prediction.
const TIMEOUT_MS = 5_000;
// The outbox repeats what still fails, for as long as it takes; a user gets a 503.
const RETRIES = 2;

export class FitModel {
  #client;
  #model;

  constructor(url, apiKey, session) {
    this.#client = new Keepfit({ url, apiKey, timeoutMs: TIMEOUT_MS, retries: RETRIES, userAgent: 'sneakers' });
    this.#model = this.#client.model({ type: 'shoes', type_info: 'basic', session });
  }

  /** Creates the model, unless it exists. */
  create() {
    return this.#model.create(RECIPE);
  }

  /** Sends one vote to learn; repeated calls learn the vote once, because its id is the key. */
  learn({ id, maker, brand, year, fit }) {
    return this.#model.partialFit({ X: [{ maker, brand, year }], y: [fit - MIDDLE] }, { idempotencyKey: id });
  }

  /** Returns the estimate for a pair. Those that are asked for at the same time are one request. */
  async predict({ maker, brand, year }) {
    const { predictions, version } = await this.#model.predict([{ maker, brand, year }]);
    return { trueSize: Math.min(HIGHEST, Math.max(LOWEST, MIDDLE + predictions[0])), version };
  }

  /** Returns what the model has learned, and how far its predictions were from the votes that came next. */
  async describe() {
    const { hash, version, rows_seen, metrics } = await this.#model.describe();
    const { mean_absolute_error = null, baseline_mean_absolute_error = null } = metrics;
    return { hash, version, rows_seen, mean_absolute_error, baseline_mean_absolute_error };
  }

  close() {
    this.#client.close();
  }
}
