// Errors of the HTTP API as problem+json (RFC 9457), the format of keepfit's own errors.

import { STATUS_CODES } from 'node:http';

export class Problem extends Error {
  /** `errors` is a list of `{field, detail}`; `headers` are added to the answer (Allow, Retry-After). */
  constructor(status, detail, { errors, headers = {} } = {}) {
    super(detail);
    Object.assign(this, { status, errors, headers });
  }

  toJSON() {
    const { status, message: detail, errors } = this;
    return { type: 'about:blank', title: STATUS_CODES[status], status, detail, errors };
  }
}
