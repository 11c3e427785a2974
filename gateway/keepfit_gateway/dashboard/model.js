// One model: how it learns, its parameters, snapshots and dead letters, kept up to date by its events.

import { call, listen, repeat, throttled } from "./api.js";
import { draw, rows as tableRows, scatter } from "./chart.js";
import { deadLetters, parameters, snapshots } from "./actions.js";
import { element, facts, figure, named, number, table, time, words } from "./dom.js";
import { noteEvent } from "./system.js";
import { traffic } from "./traffic.js";

// Between two readings; commits come in between, at most one a second.
const REFRESH_MS = 15000;
const TRAFFIC_MS = 5000;
const SOON_MS = 1000;
// Commits by which the rate is measured.
const RATE_S = 30;
const METRICS = ["mean_absolute_error", "root_mean_squared_error", "r2", "accuracy", "f1", "log_loss"];

/** The learning curve: the points of the service, and after them the newest commit. */
class Curve {
  constructor(path, signal) {
    Object.assign(this, { path, signal, points: [], scored: [], spacing: 0, tail: null });
  }

  async read() {
    const since = this.points.at(-1)?.rows_seen;
    const answer = await call("GET", `${this.path}/curve${since ? `?since_rows=${since}` : ""}`, undefined, this.signal);
    if (since && (answer.spacing !== this.spacing || answer.rows_seen < since)) {
      // It was thinned, or the model restored: all of it is another one.
      this.clear();
      return this.read();
    }
    this.spacing = answer.spacing;
    this.points.push(...answer.points);
    this.scored = answer.scored;
    return undefined;
  }

  clear() {
    this.points = [];
    this.tail = null;
  }

  series(metric, isTime) {
    const x = isTime ? (point) => point.time : (point) => point.rows_seen;
    const all = this.tail && this.tail.rows_seen > (this.points.at(-1)?.rows_seen ?? 0) ? [...this.points, this.tail] : this.points;
    const points = all.filter((point) => x(point) !== null);
    const name = words(metric);
    const of = (read) => points.map((point) => [x(point), read(point) ?? NaN]);
    return [
      { name: `${name}, last rows`, points: of((point) => point.window?.[metric]) },
      { name: "baseline, last rows", points: of((point) => point.window?.[`baseline_${metric}`]) },
      { name: `${name}, all rows`, points: of((point) => point[metric]) },
      { name: "baseline, all rows", points: of((point) => point[`baseline_${metric}`]) },
    ].filter((one) => one.points.some(([, y]) => Number.isFinite(y)));
  }
}

function metricsTable(metrics) {
  const names = METRICS.filter((name) => name in metrics);
  return table("Metrics", [["metric", ""], ["last rows", "number"], ["its baseline", "number"], ["all rows", "number"], ["its baseline", "number"]],
    names.map((name) => [words(name), figure(metrics.window?.[name]), figure(metrics.window?.[`baseline_${name}`]), figure(metrics[name]), figure(metrics[`baseline_${name}`])]));
}

function confusion(metrics) {
  const found = metrics.window?.confusion ?? metrics.confusion;
  if (!found) return null;
  const heads = [["truth", ""], ...found.classes.map((label) => [`predicted ${label}`, "number"])];
  return [element("h3", {}, "Predictions against truth, of the last scored rows"),
    table("Confusion of the last scored rows", heads, found.counts.map((counts, place) => [String(found.classes[place]), ...counts.map(number)]))];
}

export function show(root, signal, hash, scopes) {
  const path = `/v1/models/${hash}`;
  const may = (scope) => scopes.includes(scope);
  const curve = new Curve(path, signal);
  const part = () => element("div");
  const [head, chart, values, numbers, dots, flow] = [part(), part(), part(), part(), part(), part()];
  const title = element("h1", {}, "Model");
  const events = element("ol", { class: "events" });
  const commits = [];
  let model = null;

  const metric = element("select", { id: "metric", onchange: redraw });
  const along = element("select", { id: "along", onchange: redraw }, element("option", { value: "rows" }, "rows"), element("option", { value: "time" }, "time"));
  const output = element("select", { id: "output", onchange: redraw });
  const compared = element("div", { hidden: true }, element("h2", {}, "Predictions against truth"),
    element("div", { class: "bar" }, element("div", {}, element("label", { for: "output" }, "Output"), output)), dots);
  const panels = [parameters(path, may("admin"), refresh), snapshots(path, may("admin"), () => model, restored), may("admin") ? deadLetters(path, refresh) : null].filter(Boolean);

  function redraw() {
    const isTime = along.value === "time";
    const series = metric.value ? curve.series(metric.value, isTime) : [];
    draw(chart, `Learning curve of ${words(metric.value)}`, series, isTime);
    compareRows();
    const open = values.querySelector("details")?.open ?? false;
    values.replaceChildren(...(series.length ? [element("details", { open }, element("summary", {}, "Last points as a table"),
      table("Last points of the learning curve", [[along.value, "number"], ...series.map((one) => [one.name, "number"])], tableRows(series, isTime)))] : []));
  }

  function compareRows() {
    compared.hidden = !curve.scored.length;
    if (compared.hidden) return;
    const names = curve.scored.map((each) => each.target ?? String(each.output));
    if (names.join() !== [...output.options].map((option) => option.value).join()) output.replaceChildren(...names.map((name) => element("option", { value: name }, name)));
    output.parentElement.hidden = names.length < 2;
    const { truth, prediction } = curve.scored[Math.max(0, output.selectedIndex)];
    scatter(dots, truth, prediction);
  }

  function rate() {
    const [first, last] = [commits[0], commits.at(-1)];
    return commits.length < 2 || last.timestamp === first.timestamp ? 0 : Math.max(0, last.rows_seen - first.rows_seen) / (last.timestamp - first.timestamp);
  }

  function describe() {
    title.textContent = named(model.metadata);
    document.title = `keepfit: ${title.textContent}`;
    head.replaceChildren(element("p", { class: "hash" }, model.hash),
      ...model.warnings.map((text) => element("p", { class: "bad" }, text)),
      facts([["estimator", model.recipe.estimator ?? model.object?.name ?? "pipeline"], ["rows seen", number(model.rows_seen)], ["rows/s", number(rate())],
        ["inbox", number(model.inbox)], ["open rows", number(model.open_rows ?? 0)], ["version", number(model.version)],
        ["last snapshot", model.snapshot ? time(model.snapshot.timestamp) : "none"]]));
    const names = METRICS.filter((name) => name in model.metrics);
    if (names.join() !== [...metric.options].map((option) => option.value).join()) metric.replaceChildren(...names.map((name) => element("option", { value: name }, words(name))));
    numbers.replaceChildren(...[names.length ? metricsTable(model.metrics) : element("p", { class: "soft" }, "No row is scored yet."), confusion(model.metrics)].flat().filter(Boolean));
  }

  async function read() {
    try {
      model = await call("GET", path, undefined, signal);
      describe();
      await curve.read();
      redraw();
    } catch (error) {
      if (!signal.aborted) head.replaceChildren(element("p", { class: "bad" }, error.message));
    }
  }

  async function readTraffic() {
    const found = await call("GET", `${path}/traffic`, undefined, signal).catch((error) => ({ error }));
    if (!signal.aborted) flow.replaceChildren(...(found.error ? [element("p", { class: "bad" }, found.error.message)] : traffic(found)));
  }

  async function refresh() {
    await Promise.all([read(), ...panels.map((panel) => panel.read(signal, model))]);
  }

  function restored() {
    curve.clear();
    commits.length = 0;
    return refresh();
  }

  const soon = throttled(refresh, SOON_MS, signal);
  function receive(event) {
    if (event.kind === "commit" && model) {
      commits.push({ timestamp: event.timestamp, rows_seen: event.rows_seen });
      while (commits[0].timestamp < event.timestamp - RATE_S) commits.shift();
      Object.assign(model, { version: event.version, rows_seen: event.rows_seen, metrics: event.metrics ?? model.metrics });
      curve.tail = event.metrics ? { ...event.metrics, rows_seen: event.rows_seen, time: event.timestamp } : null;
      describe();
      redraw();
      catchUp();
      return;
    }
    noteEvent(events, event);
    if (event.kind === "model_deleted") head.replaceChildren(element("p", { class: "bad" }, "This model was deleted."));
    else if (event.kind === "restored" || event.kind === "gap") restored();
    else soon();
  }
  // The inbox, and the points of the curve, of a model that goes on learning.
  const catchUp = throttled(read, 3000, signal);

  root.replaceChildren(title, head, element("h2", {}, "Learning curve"),
    element("div", { class: "bar" }, element("div", {}, element("label", { for: "metric" }, "Metric"), metric),
      element("div", {}, element("label", { for: "along" }, "Over"), along)),
    chart, values, element("h2", {}, "Metrics"), numbers, compared, element("h2", {}, "Traffic"), flow, ...panels.map((panel) => panel.element), element("h2", {}, "Events"), events);
  const resized = new ResizeObserver(throttled(redraw, 100, signal));
  resized.observe(root);
  signal.addEventListener("abort", () => resized.disconnect());
  listen(`hash=${hash}`, receive, signal);
  repeat(refresh, REFRESH_MS, signal);
  repeat(readTraffic, TRAFFIC_MS, signal);
}
