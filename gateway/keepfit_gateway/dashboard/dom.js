// Elements and texts. Never asks the gateway. Text from the service becomes text nodes, never markup.

/** Return an element with properties and children; `on…` are listeners, null children are left out. */
export function element(tag, properties = {}, ...children) {
  const made = tag.includes(":") ? document.createElementNS("http://www.w3.org/2000/svg", tag.slice(4)) : document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined));
  return made;
}

/** Return a table in a region that scrolls: `columns` are [title, class], `rows` lists of cells. */
export function table(caption, columns, rows) {
  const cells = (row) => row.map((cell, place) => element(place ? "td" : "th", { class: columns[place][1], scope: place ? null : "row" }, cell ?? ""));
  const head = columns.map(([title, kind]) => element("th", { scope: "col", class: kind }, title));
  return element("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": caption },
    element("table", {}, element("caption", {}, caption), element("thead", {}, element("tr", {}, head)),
      element("tbody", {}, rows.map((row) => element("tr", {}, cells(row))))));
}

/** Put a table into a place. If the same one is there, only its rows are replaced: it stays scrolled as it is. */
export function putTable(place, made) {
  const heads = (one) => [...one.querySelectorAll("thead th")].map((head) => head.textContent).join();
  const before = place.querySelector(".scroll");
  if (before && heads(before) === heads(made)) before.querySelector("tbody").replaceWith(made.querySelector("tbody"));
  else place.replaceChildren(made);
}

/** Return a list of names with their values. */
export function facts(pairs) {
  return element("dl", { class: "facts" }, pairs.map(([name, value, kind]) =>
    element("div", {}, element("dt", {}, name), element("dd", { class: kind }, value))));
}

/** Ask the user; resolves to whether they confirmed. Escape and Cancel decline. */
export function confirmed(title, text, action) {
  return new Promise((resolve) => {
    const dialog = element("dialog", { "aria-labelledby": "question", onclose: () => { dialog.remove(); resolve(dialog.returnValue === "yes"); } },
      element("form", { method: "dialog" }, element("h2", { id: "question" }, title), text.map((line) => element("p", {}, line)),
        element("div", { class: "bar" }, element("button", { value: "no", autofocus: true }, "Cancel"),
          element("button", { value: "yes", class: "danger" }, action))));
    document.body.append(dialog);
    dialog.showModal();
  });
}

let hiding = 0;
/** Show a message for a while, and have screen readers read it. */
export function tell(text) {
  const place = document.getElementById("message");
  place.textContent = text;
  clearTimeout(hiding);
  hiding = setTimeout(() => { place.textContent = ""; }, 8000);
}

const NUMBER = new Intl.NumberFormat("en", { maximumFractionDigits: 1 });
export const number = (value) => (value === null || value === undefined ? "" : NUMBER.format(value));
export const figure = (value) => (typeof value === "number" ? String(Number(value.toPrecision(4))) : "");
/** Return a time in seconds in the unit that suits it; nothing for 0. */
export const duration = (seconds) => (!seconds ? "" : seconds < 0.001 ? `${figure(1e6 * seconds)} µs` : seconds < 1 ? `${figure(1e3 * seconds)} ms` : `${figure(seconds)} s`);
export const share = (value) => (typeof value === "number" ? `${Math.round(100 * value)} %` : "");
export const time = (seconds) => (seconds ? new Date(seconds * 1000).toLocaleString() : "");
/** Return metadata in a line: the type, then all else by name. */
export function named({ type, ...others }) {
  return [type, ...Object.entries(others).map(([key, value]) => `${key}=${typeof value === "string" ? value : JSON.stringify(value)}`)].join(" ");
}
export const words = (metric) => metric.replaceAll("_", " ");
