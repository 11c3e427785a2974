// The list of models: searched, sorted and paged by the gateway, and kept up to date while it is shown.

import { call, listen, repeat, throttled } from "./api.js";
import { element, figure, named, number, putTable, share, table, words } from "./dom.js";

const PAGE = 50;
const REFRESH_MS = 5000;
const SORTS = { rate: "rows per second", error: "error of baseline", inbox: "inbox", rows: "rows seen", hash: "hash" };

/** Return name, value and share of the baseline's error of the main metric over the last rows. */
export function mainMetric(metrics) {
  for (const name of ["mean_absolute_error", "accuracy"]) {
    const recent = typeof metrics.window?.[name] === "number" ? metrics.window : metrics;
    if (typeof recent[name] === "number") return [name, recent[name]];
  }
  return [null, null];
}

function cells(model) {
  const [metric, value] = mainMetric(model.metrics);
  return [
    element("a", { href: `#/models/${model.hash}` }, named(model.metadata)),
    number(model.rows_per_s), number(model.rows_out_per_s), number(model.inbox), number(model.rows_seen), number(model.version),
    metric ? words(metric) : "", figure(value), share(model.error_share),
  ];
}

const COLUMNS = [["model", "wide"], ["rows/s", "number"], ["predicted/s", "number optional"], ["inbox", "number"], ["rows seen", "number"], ["version", "number optional"],
  ["metric", "optional"], ["value", "number"], ["of baseline", "number"]];

export function show(root, signal) {
  const state = { sort: "rate", search: "", after: "", before: [], next: null };
  const list = element("div");
  const previous = element("button", { hidden: true, onclick: () => { state.after = state.before.pop(); read(); } }, "Previous page");
  const following = element("button", { hidden: true, onclick: () => { state.before.push(state.after); state.after = state.next; read(); } }, "Next page");
  let asked = 0;
  let events = new AbortController();
  let followed = "";
  signal.addEventListener("abort", () => events.abort());

  async function read() {
    const number = ++asked;
    const query = new URLSearchParams({ sort: state.sort, limit: PAGE });
    if (state.search) query.set("search", state.search);
    if (state.after) query.set("after", state.after);
    let page;
    try {
      page = await call("GET", `/v1/models?${query}`, undefined, signal);
    } catch (error) {
      if (!signal.aborted) list.replaceChildren(element("p", { class: "bad" }, error.message));
      return;
    }
    // Answers may arrive in another order than they were asked for.
    if (number !== asked || signal.aborted) return;
    const focused = list.contains(document.activeElement) ? document.activeElement.getAttribute("href") : null;
    if (page.models.length) putTable(list, table("Models", COLUMNS, page.models.map(cells)));
    else list.replaceChildren(element("p", {}, "No model is selected."));
    if (focused) list.querySelector(`a[href="${focused}"]`)?.focus();
    state.next = page.next;
    previous.hidden = !state.before.length;
    following.hidden = !page.next;
    follow(page.models.map((model) => model.hash));
  }

  /** Listen to the models that are shown. */
  function follow(hashes) {
    const wanted = [...hashes].sort().join(",");
    if (wanted === followed) return;
    followed = wanted;
    events.abort();
    events = new AbortController();
    if (wanted) listen(`hash=${wanted}&kind=commit,model_deleted,restored`, soon, events.signal);
  }

  const soon = throttled(read, 1000, signal);
  const restart = () => { state.after = ""; state.before = []; read(); };
  let typing = 0;
  const search = element("input", { type: "search", id: "search", maxlength: 256, autocomplete: "off",
    oninput: (event) => { clearTimeout(typing); typing = setTimeout(() => { state.search = event.target.value.trim(); restart(); }, 250); } });
  const sort = element("select", { id: "sort", onchange: (event) => { state.sort = event.target.value; restart(); } },
    Object.entries(SORTS).map(([value, text]) => element("option", { value }, text)));
  root.replaceChildren(element("h1", {}, "Models"),
    element("div", { class: "bar" },
      element("div", {}, element("label", { for: "search" }, "Search metadata and hashes"), search),
      element("div", {}, element("label", { for: "sort" }, "Sort by"), sort)),
    list, element("div", { class: "bar" }, previous, following));
  repeat(read, REFRESH_MS, signal);
}
