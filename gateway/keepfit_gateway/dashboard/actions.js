// What a user changes of a model: parameters, snapshots, dead letters. Each part has `element` and `read(signal, model)`.

import { call } from "./api.js";
import { confirmed, element, figure, number, table, tell, time } from "./dom.js";
import { mainMetric } from "./models.js";

const LIMIT = 20;

/** Run `work` for a button, which is disabled meanwhile; tell what went wrong. */
async function act(button, work) {
  button.disabled = true;
  try {
    await work();
  } catch (error) {
    tell(error.message);
  } finally {
    button.disabled = false;
  }
}

/** Put content into a place, unless it is what is there: the focus stays where it is. */
function fill(place, content) {
  const focus = place.contains(document.activeElement) ? document.activeElement.getAttribute("aria-label") : null;
  place.replaceChildren(...content);
  if (focus) [...place.querySelectorAll("button")].find((each) => each.getAttribute("aria-label") === focus)?.focus();
}

export function parameters(path, mayChange, done) {
  const text = element("textarea", { id: "params", spellcheck: "false", readonly: !mayChange });
  const button = element("button", { onclick: () => act(button, change) }, "Change parameters");
  let shown = "";

  async function change() {
    const sent = text.value;
    let wanted;
    try {
      wanted = JSON.parse(sent);
    } catch (error) {
      throw new Error(`The parameters are no JSON: ${error.message}`);
    }
    const before = JSON.parse(shown);
    const params = Object.fromEntries(Object.entries(wanted).filter(([name, value]) => JSON.stringify(value) !== JSON.stringify(before[name])));
    if (!Object.keys(params).length) throw new Error("No parameter has another value.");
    const answer = await call("PATCH", path, { params });
    tell(answer.recipe ? `Changed: ${Object.keys(params).join(", ")}, from version ${answer.version} on.` : "The change is accepted and waits behind the pending rows.");
    // What the user writes from here on is the next change.
    shown = sent;
    await done();
  }

  return {
    element: element("section", {}, element("h2", {}, "Parameters"),
      element("label", { for: "params" }, mayChange ? "Parameters of the estimator, as JSON; a change is in order with the rows" : "Parameters of the estimator, as JSON"),
      text, mayChange ? element("div", { class: "bar" }, button) : null),
    async read(signal, model) {
      // What the user has written stays.
      if (!model || (shown && text.value !== shown)) return;
      shown = JSON.stringify(model.recipe.params ?? {}, null, 2);
      text.value = shown;
    },
  };
}

export function snapshots(path, mayChange, live, restored) {
  const list = element("div");
  const save = element("button", { onclick: () => act(save, async () => {
    const made = await call("POST", `${path}/snapshot`);
    tell(`Version ${made.version} is saved.`);
    await read();
  }) }, "Save a snapshot now");

  async function restore(snapshot, button) {
    const model = live();
    const rows = Math.max(0, model.rows_seen - snapshot.rows_seen);
    const yes = await confirmed(`Restore version ${snapshot.version}?`, [
      `It was saved on ${time(snapshot.timestamp)} after ${number(snapshot.rows_seen)} rows. The live model has version ${model.version} and ${number(model.rows_seen)} rows.`,
      rows ? `It forgets ${number(rows)} rows that it has learned since.` : "It forgets no rows.",
      `${number(model.inbox)} requests that wait stay, and are learned on top of it.`,
    ], "Restore");
    if (!yes) return;
    await act(button, async () => {
      const answer = await call("POST", `${path}/restore`, { version: snapshot.version });
      tell(answer.restored ? `Version ${answer.version} is live; ${number(answer.rows_forgotten)} rows are forgotten.` : "The live model already is that version.");
      await restored();
    });
  }

  async function read(signal) {
    const found = await call("GET", `${path}/snapshots?limit=${LIMIT}`, undefined, signal).catch((error) => ({ error }));
    if (signal?.aborted) return;
    if (found.error) { fill(list, [element("p", { class: "bad" }, found.error.message)]); return; }
    const columns = [["version", "number"], ["saved", ""], ["rows seen", "number"], ["size, bytes", "number optional"], ["metric", "number"]];
    const cells = (one) => {
      const button = element("button", { "aria-label": `Restore version ${one.version}`, onclick: () => restore(one, button) }, "Restore");
      return [String(one.version), time(one.timestamp), number(one.rows_seen), number(one.size_bytes), figure(mainMetric(one.metrics)[1]), ...(mayChange ? [button] : [])];
    };
    fill(list, [found.snapshots.length ? table("Snapshots, newest first", mayChange ? [...columns, ["restore", ""]] : columns, found.snapshots.map(cells))
      : element("p", { class: "soft" }, "There is no snapshot yet.")]);
  }

  return { element: element("section", {}, element("h2", {}, "Versions and snapshots"), list, mayChange ? element("div", { class: "bar" }, save) : null), read };
}

export function deadLetters(path, done) {
  const list = element("div");

  async function retry(ids, button) {
    await act(button, async () => {
      const answer = await call("POST", `${path}/dead/retry`, ids ? { ids } : {});
      const refused = answer.refused.map((one) => `${one.id}: ${one.reason}`).join("; ");
      tell(`Requests that wait to be learned again: ${number(answer.accepted)}.${refused && ` Refused: ${refused}`}`);
      await done();
    });
  }

  async function discard(id, button) {
    if (!(await confirmed(`Discard dead letter ${id}?`, ["Its rows are deleted for good and are never learned."], "Discard"))) return;
    await act(button, async () => {
      const answer = await call("POST", `${path}/dead/discard`, { ids: [id] });
      tell(`Dead letters discarded: ${number(answer.discarded)}.`);
      await done();
    });
  }

  async function read(signal) {
    const found = await call("GET", `${path}/dead?limit=${LIMIT}`, undefined, signal).catch((error) => ({ error }));
    if (signal?.aborted) return;
    if (found.error) { fill(list, [element("p", { class: "bad" }, found.error.message)]); return; }
    if (!found.dead.length) { fill(list, [element("p", { class: "soft" }, "There are none.")]); return; }
    const cells = (one) => {
      const again = element("button", { "aria-label": `Retry ${one.id}`, onclick: () => retry([one.id], again) }, "Retry");
      const away = element("button", { class: "danger", "aria-label": `Discard ${one.id}`, onclick: () => discard(one.id, away) }, "Discard");
      return [one.id, time(one.timestamp), number(one.rows), one.reason, again, away];
    };
    const all = element("button", { onclick: () => retry(null, all) }, "Retry the oldest 128");
    fill(list, [table("Dead letters, oldest first", [["id", ""], ["put aside", ""], ["rows", "number"], ["reason", "wide"], ["retry", ""], ["discard", ""]], found.dead.map(cells)),
      element("div", { class: "bar" }, all, found.next ? element("span", { class: "soft" }, `The oldest ${LIMIT} are shown.`) : null)]);
  }

  return { element: element("section", {}, element("h2", {}, "Dead letters"), list), read };
}
