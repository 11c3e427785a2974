// Traffic: rows in and out, where predictions come from, and how long they take, in the last minute.

import { duration, element, facts, number } from "./dom.js";

const SOURCES = { kept: "kept answers", scored: "computed by gateways", worker: "by workers", stale: "stale answers" };

/** Return the elements that show the traffic of a model, or of all. */
export function traffic(found) {
  const all = Object.values(found.predictions).reduce((sum, count) => sum + count, 0);
  const share = (count) => (all ? `${number(count)} (${Math.round((100 * count) / all)} %)` : number(count));
  return [
    facts([["rows in/s", number(found.rows_in_per_s)], ["rows out/s", number(found.rows_out_per_s)],
      ["latency, median", duration(found.latency_p50_s)], ["latency, 99 %", duration(found.latency_p99_s)],
      ...Object.entries(SOURCES).map(([name, text]) => [text, share(found.predictions[name])])]),
    element("p", { class: "soft" }, `Of the last ${number(found.window_s)} seconds, over all gateways; predict calls by what answered them, up to ten seconds old.`),
  ];
}
