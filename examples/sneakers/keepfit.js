// The part of keepfit's REST contract that this service uses. The model is named by metadata alone: no id to keep.

// In the order in which keepfit is to see the columns. "exact" updates are the default: one partial_fit per vote.
const RECIPE = {
  estimator: 'PassiveAggressiveRegressor',
  params: { C: 0.5 },
  features: { make: 'category', year: 'number' },
  scaler: 'StandardScaler',
  encoding: 'ordinal',
};

// Also bounds how long a stop has to wait for the call under way.
const TIMEOUT_MS = 5_000;

// A timer set for longer fires at once.
const TIMER_MS_MAX = 2 ** 31 - 1;

// These answers judge the content itself, so they would be the same next time. All others may change.
const FINAL = new Set([400, 413, 415, 422]);

/** keepfit said no (`status` is its answer's) or said nothing (`status` is undefined). */
export class KeepfitError extends Error {
  constructor(message, { status, retryAfterMs = 0 } = {}) {
    super(message);
    Object.assign(this, { status, retryAfterMs, final: FINAL.has(status) });
  }
}

export class Keepfit {
  #url;
  #metadata;
  #key;

  constructor(url, metadata, key) {
    this.#url = url.replace(/\/+$/, '');
    this.#metadata = metadata;
    this.#key = key ? { authorization: `Bearer ${key}` } : {};
  }

  /** Makes the model, or finds it made. */
  createModel() {
    return this.#post('/v1/models', { recipe: RECIPE });
  }

  /** Hands over one vote to be learned; as often as it is called, the vote is learned once. */
  partialFit({ id, make, year, trueSize }) {
    return this.#post('/v1/partial_fit', { X: [{ make, year }], y: [trueSize] }, { 'idempotency-key': id });
  }

  async predict({ make, year }) {
    const { predictions, version } = await this.#post('/v1/predict', { X: [{ make, year }] });
    return { trueSize: predictions[0], version };
  }

  async #post(path, body, headers = {}) {
    let response, answer;
    try {
      response = await fetch(this.#url + path, {
        method: 'POST',
        headers: { 'content-type': 'application/json', ...this.#key, ...headers },
        body: JSON.stringify({ metadata: this.#metadata, ...body }),
        signal: AbortSignal.timeout(TIMEOUT_MS),
      });
      answer = await response.json();
    } catch (error) {
      // fetch hides the reason (ECONNREFUSED and the like) in the cause. What isn't JSON isn't keepfit's answer.
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

/** Retry-After is in seconds or a date (RFC 9110, 10.2.3). */
function retryAfterMs(response) {
  const header = response?.headers.get('retry-after');
  if (!header) return 0;
  const ms = /^\d+$/.test(header) ? Number(header) * 1_000 : Date.parse(header) - Date.now();
  return ms > 0 ? Math.min(ms, TIMER_MS_MAX) : 0; // 0 for NaN, too
}
