// Calls of the gateway and its events. Stores nothing: who calls is in a cookie that no script can read.

export class ApiError extends Error {
  constructor(status, detail) {
    super(detail);
    this.status = status;
  }
}

/** Call the gateway; return the JSON of its answer, or raise ApiError with what is wrong. */
export async function call(method, path, body, signal) {
  const headers = body === undefined ? {} : { "Content-Type": "application/json" };
  let response;
  try {
    response = await fetch(path, { method, headers, body: body === undefined ? undefined : JSON.stringify(body), signal, cache: "no-store" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(0, "The gateway does not answer.");
  }
  const answer = response.status === 204 ? null : await response.json().catch(() => null);
  if (!response.ok) {
    if (response.status === 401 && path !== "/v1/session") document.dispatchEvent(new Event("signed-out"));
    throw new ApiError(response.status, answer?.detail ?? `The gateway answers ${response.status}.`);
  }
  return answer;
}

/** Call `receive` with each event that a query selects until `signal` aborts. The browser continues where it was. */
export function listen(query, receive, signal) {
  const live = document.getElementById("live");
  let source = null;
  let waiting = 0;
  const open = () => {
    source = new EventSource(`/v1/events?${query}`);
    source.onopen = () => { live.textContent = "live"; };
    source.onmessage = (message) => receive(JSON.parse(message.data));
    source.onerror = () => {
      live.textContent = "connecting again …";
      // The browser connects again, except after an answer that is an error.
      if (source.readyState === EventSource.CLOSED) waiting = setTimeout(open, 5000);
    };
  };
  signal.addEventListener("abort", () => { clearTimeout(waiting); source?.close(); live.textContent = "not connected"; });
  if (!signal.aborted) open();
}

/** Call `work` now, and `interval` ms after it has ended each time, while the page is visible, until `signal` aborts. */
export function repeat(work, interval, signal) {
  let timer = 0;
  const turn = async () => {
    if (!document.hidden) await work();
    if (!signal.aborted) timer = setTimeout(turn, interval);
  };
  signal.addEventListener("abort", () => clearTimeout(timer));
  turn();
}

/** Return a function that calls `work` at most once in `interval` ms, the last time after the last call. */
export function throttled(work, interval, signal) {
  let timer = 0;
  signal.addEventListener("abort", () => clearTimeout(timer));
  return () => { timer ||= setTimeout(() => { timer = 0; if (!signal.aborted) work(); }, interval); };
}
