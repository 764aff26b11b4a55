"use strict";
// The live page: a list of searches that is pushed, the chosen one drawn anew when its version changes, and the store.
const byId = (id) => document.getElementById(id);
let runs = [], chosen = null, shownVersion = null, loading = false;

function made(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

function listItem(run) {
  const kind = run.running ? "now" : run.state === "interrupted" || run.state === "error" ? "bad" : "";
  const button = made("button", { type: "button", "data-key": run.key, "aria-current": String(run.key === chosen) },
    made("span", { class: "name" }, run.name, made("span", { class: `badge ${kind}` }, run.running ? "running" : run.state)));
  if (run.error) button.append(made("span", { class: "soft" }, run.error));
  else {
    button.append(made("progress", { max: run.budget || 1, value: run.settled, "aria-label": "settled plans" }));
    button.append(made("span", { class: "soft" },
      `${run.count}${run.best ? ` · best ${run.best}` : ""} · ${run.where}`));
  }
  button.addEventListener("click", () => choose(run.key));
  return made("li", {}, button);
}

function list() {
  const focused = document.activeElement?.dataset?.key;
  byId("runs").replaceChildren(...runs.map(listItem));
  if (focused) byId("runs").querySelector(`[data-key="${focused}"]`)?.focus();
}

function choose(key) {
  chosen = key;
  location.hash = key;
  list();
  show();
}

async function show() {
  const run = runs.find((one) => one.key === chosen);
  if (!run || loading || shownVersion === `${run.key} ${run.version}`) return;
  loading = true;
  try {
    const answer = await fetch(`/api/runs/${run.key}`);
    const told = await answer.json();
    if (told.error || told.key !== chosen) return;
    const open = [...byId("shown").querySelectorAll("details[open]")].map((one) => one.closest("section").getAttribute("aria-labelledby"));
    const parsed = new DOMParser().parseFromString(told.html, "text/html");
    place(byId("shown"), [...parsed.body.children], told.figures);
    for (const name of open) byId("shown").querySelector(`section[aria-labelledby="${name}"] details`)?.setAttribute("open", "");
    for (const [key, figure] of Object.entries(told.figures)) await draw(byId(key), figure);
    shownVersion = `${told.key} ${told.version}`;
  } catch (error) {
    if (!(error instanceof TypeError)) throw error;  // the server cannot be reached: the badge says so
  } finally {
    loading = false;
  }
}

// Puts new content in place and keeps the drawings that are there, so that nothing flickers or jumps.
function place(target, fresh, figures) {
  for (const key of Object.keys(figures)) {
    const old = target.querySelector(`#${key}.plot`), place = fresh.map((one) => one.querySelector(`#${key}`)).find(Boolean);
    if (old && place) place.replaceWith(old);
  }
  target.replaceChildren(...fresh);
}

function table(heads, rows) {
  const cell = (kind) => (value) => made(kind, {}, ...[value].flat());
  return made("div", { class: "scroll", tabindex: "0" }, made("table", {},
    made("thead", {}, made("tr", {}, ...heads.map(cell("th")))),
    made("tbody", {}, ...rows.map((row) => made("tr", {}, ...row.map(cell("td")))))));
}

function section(title, about, ...children) {
  return made("section", {}, made("h2", {}, title), made("p", { class: "soft" }, about), ...children);
}

async function knowledge() {
  const answer = await fetch("/api/knowledge").catch(() => null);
  if (!answer) return;
  const told = await answer.json();
  const where = made("p", { class: "soft" }, "Knowledge base: ", made("code", {}, told.store));
  if (told.error) return byId("knowledge").replaceChildren(where, made("p", { class: "missing" }, told.error));
  const short = (key) => made("code", { title: key }, key.slice(0, 12));
  const tiles = made("div", { class: "tiles" }, ...[[told.models.length, "architectures"], [told.rows, "measured plans"],
    [told.origins.length, "origins"]].map(([value, what]) => made("div", { class: "tile" }, made("b", {}, String(value)), made("span", {}, what))));
  const models = told.models.map((one) => [short(one.key), one.family, one.parameters.toLocaleString("en"), String(one.layers),
    String(one.plans), String(one.samples), String(one.origins.length),
    one.neighbours.flatMap((near) => [short(near.key), ` ${near.family} ${(100 * near.similarity).toFixed(1)} %`, made("br")])]);
  const origins = told.origins.map((one) => [short(one.origin), one.name || "—", String(one.records), String(one.epochs),
    one.revoked ? "withdrawn" : one.trust === null ? "not named: see model-opt identity" : one.trust.toFixed(2)]);
  byId("knowledge").replaceChildren(where, tiles,
    section("Architectures", "Signatures that something was measured for, and those most like them (cosine of their vectors).",
      table(["signature", "family", "parameters", "layers", "plans", "samples", "origins", "most alike"], models)),
    section("Origins", "Who has measured, and how far they are believed here.",
      table(["origin", "called", "records", "epochs", "trust"], origins)));
}

const tabs = [byId("tab-runs"), byId("tab-knowledge")];
function open(tab) {
  for (const each of tabs) {
    const on = each === tab;
    each.setAttribute("aria-selected", String(on));
    each.tabIndex = on ? 0 : -1;
    byId(each.getAttribute("aria-controls")).hidden = !on;
  }
  if (tab === tabs[1]) knowledge();
  else redraw();  // what was hidden has missed every change of width
}
for (const tab of tabs) {
  tab.addEventListener("click", () => open(tab));
  tab.addEventListener("keydown", (event) => {
    if (!["ArrowLeft", "ArrowRight"].includes(event.key)) return;
    const other = tabs[1 - tabs.indexOf(tab)];
    other.focus();
    open(other);
  });
}

const source = new EventSource("/events");
source.addEventListener("open", () => { byId("link").textContent = "live"; byId("link").className = "badge good"; });
source.addEventListener("error", () => { byId("link").textContent = "not connected"; byId("link").className = "badge bad"; });
source.addEventListener("runs", (event) => {
  const ended = runs.filter((one) => one.running).length;
  runs = JSON.parse(event.data);
  if (!runs.some((one) => one.key === chosen)) {
    const wanted = location.hash.slice(1);
    chosen = (runs.find((one) => one.key === wanted) || runs[0] || {}).key || null;
  }
  list();
  show();
  if (!byId("knowledge").hidden && ended !== runs.filter((one) => one.running).length) knowledge();
});
setInterval(() => { if (!byId("knowledge").hidden) knowledge(); else show(); }, 5000);
