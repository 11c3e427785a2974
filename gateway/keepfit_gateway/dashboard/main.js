// The page: which view is shown, and who calls. Owns nothing that a view shows.

import { call } from "./api.js";
import { element, tell } from "./dom.js";
import * as model from "./model.js";
import * as models from "./models.js";
import * as system from "./system.js";

const root = document.getElementById("content");
let leaving = new AbortController();
let caller = null;

function route() {
  leaving.abort();
  leaving = new AbortController();
  const [, place = "", hash = ""] = (location.hash.match(/^#\/(\w*)\/?([0-9a-f]*)$/) ?? []);
  for (const link of document.querySelectorAll("nav a")) {
    if (link.getAttribute("href") === (place === "system" ? "#/system" : "#/")) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  if (place === "models" && hash) model.show(root, leaving.signal, hash, caller.scopes);
  else if (place === "system") system.show(root, leaving.signal);
  else models.show(root, leaving.signal);
  document.title = `keepfit: ${root.querySelector("h1")?.textContent ?? "models"}`;
}

function signIn() {
  leaving.abort();
  document.getElementById("caller").replaceChildren();
  const key = element("input", { type: "password", id: "key", required: true, autocomplete: "off", maxlength: 512 });
  const wrong = element("p", { class: "bad", role: "alert" });
  const send = async (event) => {
    event.preventDefault();
    wrong.textContent = "";
    try {
      await call("POST", "/v1/session", { key: key.value });
      key.value = "";
      await start();
    } catch (error) {
      wrong.textContent = error.message;
      key.select();
    }
  };
  root.replaceChildren(element("h1", {}, "Sign in"), element("form", { onsubmit: send },
    element("p", {}, "This gateway needs an API key. The page does not keep it: the browser gets a cookie that stands for it for 12 hours."),
    element("div", { class: "bar" }, element("div", {}, element("label", { for: "key" }, "API key"), key), element("button", {}, "Sign in")), wrong));
  key.focus();
}

async function signOut() {
  await call("DELETE", "/v1/session").catch((error) => tell(error.message));
  signIn();
}

async function start() {
  try {
    caller = await call("GET", "/v1/caller");
  } catch (error) {
    if (error.status !== 401) root.replaceChildren(element("p", { class: "bad" }, error.message), element("button", { onclick: start }, "Try again"));
    return;
  }
  if (caller.ends) document.getElementById("caller").replaceChildren(`${caller.name} `, element("button", { onclick: signOut }, "Sign out"));
  route();
}

addEventListener("hashchange", () => { if (caller) { route(); root.focus(); } });
document.addEventListener("signed-out", () => { caller = null; signIn(); });
start();
