// Client for the part of keepfit's REST API that this service uses. Calls name the model by its metadata, not by an id.

// The order of features is the order of the columns. "exact" updates are the default: one partial_fit per vote. The
// steps are of a constant size, so that the first votes already count and later ones still do.
const RECIPE = {
  estimator: 'SGDRegressor',
  params: { learning_rate: 'constant', eta0: 0.05 },
  features: { make: 'category', year: 'number' },
  scaler: 'StandardScaler',
};

// The model learns how far a vote is from the middle of the scale: a model without votes then answers the middle.
const [LOWEST, MIDDLE, HIGHEST] = [1, 3, 5];

// This is also the longest time that a shutdown waits for an outstanding call.
const TIMEOUT_MS = 5_000;

// A timer with a longer delay fires immediately.
const TIMER_MS_MAX = 2 ** 31 - 1;

// These statuses are about the content of the request, so a retry would get the same answer. Others are retried.
const FINAL = new Set([400, 413, 415, 422]);

/** keepfit answered with an error (`status` is set) or did not answer (`status` is undefined). */
export class KeepfitError extends Error {
  constructor(message, { status, retryAfterMs = 0 } = {}) {
    super(message);
    Object.assign(this, { status, retryAfterMs, final: FINAL.has(status) });
  }
}

export class Keepfit {
  #url;
  #metadata;
  #authorization;

  constructor(url, metadata, key) {
    this.#url = url.replace(/\/+$/, '');
    this.#metadata = metadata;
    this.#authorization = key ? { authorization: `Bearer ${key}` } : {};
  }

  /** Creates the model, unless it exists. */
  createModel() {
    return this.#post('/v1/models', { recipe: RECIPE });
  }

  /** Sends one vote to learn; repeated calls learn the vote once. */
  partialFit({ id, make, year, trueSize }) {
    return this.#post('/v1/partial_fit', { X: [{ make, year }], y: [trueSize - MIDDLE] }, { 'idempotency-key': id });
  }

  async predict({ make, year }) {
    const { predictions, version } = await this.#post('/v1/predict', { X: [{ make, year }] });
    return { trueSize: Math.min(HIGHEST, Math.max(LOWEST, MIDDLE + predictions[0])), version };
  }

  async #post(path, body, headers = {}) {
    let response, answer;
    try {
      response = await fetch(this.#url + path, {
        method: 'POST',
        headers: { 'content-type': 'application/json', ...this.#authorization, ...headers },
        body: JSON.stringify({ metadata: this.#metadata, ...body }),
        signal: AbortSignal.timeout(TIMEOUT_MS),
      });
      answer = await response.json();
    } catch (error) {
      // fetch has the reason (such as ECONNREFUSED) in the cause. A body that is not JSON is not from keepfit.
      const reason = error.cause?.code ?? error.cause?.message ?? error.message;
      throw new KeepfitError(`no answer from ${this.#url} (${reason})`, { retryAfterMs: retryAfterMs(response) });
    }
    if (response.ok) return answer;
    throw new KeepfitError(`${response.status} from ${this.#url}: ${answer?.detail ?? response.statusText}`, {
      status: response.status,
      retryAfterMs: retryAfterMs(response),
    });
  }
}

/** Returns Retry-After, which is a number of seconds or a date (RFC 9110, 10.2.3), in milliseconds. */
function retryAfterMs(response) {
  const header = response?.headers.get('retry-after');
  if (!header) return 0;
  const ms = /^\d+$/.test(header) ? Number(header) * 1_000 : Date.parse(header) - Date.now();
  return ms > 0 ? Math.min(ms, TIMER_MS_MAX) : 0; // also 0 for NaN
}
