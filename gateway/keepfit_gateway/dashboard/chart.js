// Charts drawn by hand as SVG, with words for screen readers: lines with a legend, and predictions against truth.
// A chart library from an installed package would be larger than the whole page.

import { element, figure, time } from "./dom.js";

const HEIGHT = 288;
const LEFT = 58;
const RIGHT = 26;
const BOTTOM = 26;
const TOP = 8;

/** Return round values between two limits, about `count` of them. */
function ticks(low, high, count) {
  const rough = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((times) => times * power).find((each) => each >= rough);
  const found = [];
  for (let at = Math.ceil(low / step) * step; at <= high + step / 1e6; at += step) found.push(at);
  return found;
}

/** Return the limits of values, wider if they are equal. */
function limits(values) {
  const low = Math.min(...values);
  const high = Math.max(...values);
  const room = high > low ? 0 : Math.abs(high) || 1;
  return [low - room / 10, high + room / 10];
}

function axis(value, isTime) {
  if (!isTime) return value >= 1e6 ? `${value / 1e6}M` : value >= 1e4 ? `${value / 1e3}k` : String(Number(value.toPrecision(6)));
  return new Date(value * 1000).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", second: "2-digit" });
}

/** Return the width of a chart in `place`, what places values on it, and its axes. */
function plane(place, [left, right], [low, high], isTime) {
  const width = Math.max(place.clientWidth, 280);
  const across = (x) => LEFT + ((x - left) / (right - left)) * (width - LEFT - RIGHT);
  const down = (y) => TOP + ((high - y) / (high - low)) * (HEIGHT - TOP - BOTTOM);
  const lines = ticks(low, high, 5).map((y) => [
    element("svg:line", { class: "grid", x1: LEFT, x2: width, y1: down(y), y2: down(y) }),
    element("svg:text", { x: LEFT - 6, y: down(y) + 4, "text-anchor": "end" }, String(Number(y.toPrecision(4)))),
  ]);
  const below = ticks(left, right, Math.max(3, Math.floor(width / 150))).map((x) =>
    element("svg:text", { x: across(x), y: HEIGHT - 6, "text-anchor": "middle" }, axis(x, isTime)));
  return { width, across, down, grid: [lines, below] };
}

function picture(width, label, ...children) {
  return element("svg:svg", { class: "chart", viewBox: `0 0 ${width} ${HEIGHT}`, preserveAspectRatio: "none", role: "img", "aria-label": label }, children);
}

/**
 * Draw series in `place`, in place of what is there. Each is { name, points: [[x, y], …] } in the order of x; points
 * without a value interrupt its line. `isTime`: x are seconds since 1970.
 */
export function draw(place, title, series, isTime) {
  const shown = series.filter((one) => one.points.length);
  const all = shown.flatMap((one) => one.points).filter(([, y]) => Number.isFinite(y));
  if (!all.length) {
    place.replaceChildren(element("p", { class: "soft" }, "There is no point yet: the curve begins with the first rows that are scored."));
    return;
  }
  const { width, across, down, grid } = plane(place, limits(all.map(([x]) => x)), limits(all.map(([, y]) => y)), isTime);
  const line = (points) => {
    let pen = "M";
    return points.map(([x, y]) => {
      if (!Number.isFinite(y)) { pen = "M"; return ""; }
      const step = `${pen}${across(x).toFixed(1)} ${down(y).toFixed(1)}`;
      pen = "L";
      return step;
    }).join("");
  };
  const last = (one) => one.points.findLast(([, y]) => Number.isFinite(y))?.[1];
  const spoken = shown.map((one) => `${one.name} ${figure(last(one))}`).join(", ");
  const lines = shown.map((one) => element("svg:path", { class: `series-${series.indexOf(one) + 1}`, d: line(one.points) }));
  const legend = shown.map((one) => element("li", {},
    element("svg:svg", { viewBox: "0 0 32 8", "aria-hidden": "true" },
      element("svg:path", { class: `series-${series.indexOf(one) + 1}`, d: "M0 4H32" })), `${one.name}: ${figure(last(one))}`));
  place.replaceChildren(picture(width, `${title}; now ${spoken}`, grid, lines), element("ul", { class: "legend" }, legend));
}

/** Draw predictions against truth in `place`, both lists of numbers, with the line on which they are equal. */
export function scatter(place, truth, prediction) {
  const points = truth.map((each, row) => [each, prediction[row]]).filter(([x, y]) => Number.isFinite(x) && Number.isFinite(y));
  if (!points.length) {
    place.replaceChildren(element("p", { class: "soft" }, "No row is scored yet."));
    return;
  }
  // Both axes have the same range, so that the distance from the line is the error.
  const range = limits(points.flat());
  const { width, across, down, grid } = plane(place, range, range, false);
  const dots = points.map(([x, y]) => element("svg:circle", { cx: across(x).toFixed(1), cy: down(y).toFixed(1), r: 3 }));
  const error = points.reduce((sum, [x, y]) => sum + Math.abs(x - y), 0) / points.length;
  const line = element("svg:path", { class: "series-2", d: `M${across(range[0])} ${down(range[0])}L${across(range[1])} ${down(range[1])}` });
  const words = `${points.length} rows, mean absolute error ${figure(error)}, truth from ${figure(Math.min(...points.map(([x]) => x)))} to ${figure(Math.max(...points.map(([x]) => x)))}`;
  place.replaceChildren(picture(width, `Predictions against truth: ${words}`, grid, line, dots),
    element("p", { class: "soft" }, `Across: truth. Up: the prediction that was scored; on the dashed line both are equal. ${words}.`));
}

/** Return the last points of series as rows of a table: x, then the value of each. */
export function rows(series, isTime, count = 12) {
  const points = series[0].points.slice(-count);
  return points.map(([x], place) => [
    isTime ? time(x) : axis(x, false),
    ...series.map((one) => figure(one.points.slice(-count)[place]?.[1])),
  ]);
}
