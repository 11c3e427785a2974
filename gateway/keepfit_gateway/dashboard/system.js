// The system: dependencies, gateways, workers, what waits, snapshots, and what happens.

import { call, listen, repeat } from "./api.js";
import { element, facts, named, number, table, time } from "./dom.js";
import { traffic } from "./traffic.js";

const REFRESH_MS = 3000;
const EVENTS_MAX = 50;
const KINDS = "drift,dead_letter,snapshot,restored,model_created,model_patched,model_deleted,worker_joined,worker_left,worker_died,worker_lost";

/** Return an event as an element of a list. */
export function eventLine(event) {
  const about = event.metadata ? element("a", { href: `#/models/${event.hash}` }, named(event.metadata)) : event.worker ?? "";
  const rest = [event.version === undefined ? "" : `version ${event.version}`, event.reason ?? "",
    event.drift ? `${event.drift.metric}: ${event.drift.before} → ${event.drift.recent}` : ""].filter(Boolean).join(", ");
  return element("li", {}, element("span", { class: "soft" }, `${time(event.timestamp)} `), `${event.kind.replaceAll("_", " ")} `, about, rest && `: ${rest}`);
}

/** Put an event first in a list, which keeps the newest ones. */
export function noteEvent(list, event) {
  list.prepend(eventLine(event));
  while (list.children.length > EVENTS_MAX) list.lastChild.remove();
}

function state(text) {
  return text === "ok" ? "ok" : element("span", { class: "bad" }, text);
}

function parts(system) {
  const { ready, waiting, models, snapshots } = system;
  const dependencies = ["redis", "queue", "mongo", "snapshots", "row_log"].filter((name) => name in ready);
  const worker = (each) => [each.name, each.host, String(each.pid), each.state.replace("_", " "), number(each.models_held), number(each.rows_per_s)];
  const gateway = (each) => [each.name, each.host, String(each.pid), time(each.started), number(each.requests_per_s), number(each.connections), number(each.event_streams)];
  const unknown = (what) => element("p", { class: "bad" }, `${what} cannot be read at present.`);
  return [
    facts([
      ["state", ready.status, ready.status === "ok" ? "" : "bad"],
      ["models", models ? number(models.registered) : "unknown"], ["in Redis", models ? number(models.live) : "unknown"],
      ["requests that wait", waiting ? number(waiting.requests) : "unknown"], ["oldest, seconds", waiting ? number(waiting.oldest_s) : "unknown"],
      ["changed since snapshot", snapshots ? number(snapshots.changed) : "unknown"], ["last snapshot pass", snapshots?.ended ? time(snapshots.ended) : "none yet"],
      ["pull jobs", number(system.pull_jobs)], ["unloadable models", number(system.unloadable), system.unloadable ? "bad" : ""],
    ]),
    element("h2", {}, "Traffic"), ...(system.traffic ? traffic(system.traffic) : [unknown("Traffic")]),
    ready.detail ? element("p", { class: "bad" }, ready.detail) : null,
    element("h2", {}, "Dependencies"), table("Dependencies", [["dependency", ""], ["state", "wide"]], dependencies.map((name) => [name.replace("_", " "), state(ready[name])])),
    element("h2", {}, "Gateways"), system.gateways ? table("Gateways", [["gateway", "wide"], ["host", ""], ["pid", "number"], ["started", ""], ["requests/s", "number"], ["connections", "number"], ["listeners", "number"]], system.gateways.map(gateway)) : unknown("Gateways"),
    element("h2", {}, "Workers"), system.workers ? table("Workers", [["worker", "wide"], ["host", ""], ["pid", "number"], ["state", ""], ["models held", "number"], ["rows/s", "number"]], system.workers.map(worker)) : unknown("Workers"),
  ];
}

export function show(root, signal) {
  const now = element("div");
  const events = element("ol", { class: "events" });
  root.replaceChildren(element("h1", {}, "System"), now, element("h2", {}, "Events"), events);
  listen(`kind=${KINDS}`, (event) => noteEvent(events, event), signal);
  repeat(async () => {
    try {
      const system = await call("GET", "/v1/system", undefined, signal);
      if (!signal.aborted) now.replaceChildren(...parts(system).filter(Boolean));
    } catch (error) {
      if (!signal.aborted) now.replaceChildren(element("p", { class: "bad" }, error.message));
    }
  }, REFRESH_MS, signal);
}
