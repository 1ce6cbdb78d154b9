"use strict";
// Whatever comes from an event is put on the page as text, never as markup: there is no innerHTML here.

// Where the API is: beside this page, wherever a service has nested it.
const BASE = location.pathname.replace(/\/?$/, "/");
const REFRESH_MS = 5000;
const RUNNING_MS = 1000;
const PAGE = 50;
const TOKEN = "bento-outbox-token";
const ACTOR = "bento-outbox-actor";

const $ = (id) => document.getElementById(id);
let token = sessionStorage.getItem(TOKEN);

// ---- asking the API ----

class Problem extends Error {
  constructor(status, detail) { super(detail); this.status = status; }
}

async function askText(path, body) {
  const headers = {};
  if (token) headers.Authorization = `Bearer ${token}`;
  if (body !== undefined) headers["Content-Type"] = "application/json";
  if (body !== undefined && actor()) headers["Outbox-Actor"] = actor();
  let answer;
  try {
    answer = await fetch(BASE + path, {
      method: body === undefined ? "GET" : "POST", headers, cache: "no-store",
      body: body === undefined ? undefined : JSON.stringify(body),
    });
  } catch {
    throw new Problem(0, "The relay does not answer. It may have stopped, or the connection is gone.");
  }
  const text = await answer.text();
  if (answer.ok || path.startsWith("health/")) return text;
  let detail = `The relay answered ${answer.status}.`;
  try { const said = JSON.parse(text); detail = said.detail || said.title || detail; } catch { /* no JSON */ }
  throw new Problem(answer.status, detail);
}

// What the person calls themselves, of the characters that the API takes.
const actor = () => (sessionStorage.getItem(ACTOR) ?? "").replace(/[^A-Za-z0-9._@+-]/g, "").slice(0, 64);

const ask = async (path, body) => JSON.parse(await askText(path, body));

function query(values) {
  const given = Object.entries(values).filter(([, value]) => value !== "" && value != null);
  return given.length ? "?" + new URLSearchParams(given) : "";
}

// ---- building the page ----

function el(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value == null || value === false) continue;
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else made.setAttribute(key, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child != null).map((child) => child instanceof Node ? child : String(child)));
  return made;
}

const number = new Intl.NumberFormat("en");
const rate = new Intl.NumberFormat("en", { maximumFractionDigits: 1 });
const count = (n, word) => `${number.format(n)} ${word}${n === 1 ? "" : "s"}`;

function age(seconds) {
  if (seconds == null) return "–";
  const s = Math.max(0, Math.floor(seconds));
  if (s < 60) return `${s}s`;
  if (s < 3600) return `${Math.floor(s / 60)}m ${s % 60}s`;
  if (s < 86400) return `${Math.floor(s / 3600)}h ${Math.floor(s % 3600 / 60)}m`;
  return `${Math.floor(s / 86400)}d ${Math.floor(s % 86400 / 3600)}h`;
}

function moment(text) {
  if (!text) return "–";
  const seconds = (Date.now() - Date.parse(text)) / 1000;
  const distance = seconds < 0 ? `in ${age(-seconds)}` : `${age(seconds)} ago`;
  return el("time", { datetime: text, title: `${text}, ${distance}` }, text.slice(0, 19).replace("T", " ") + "Z");
}

const mark = (text, kind = "", title) => el("span", { class: `mark ${kind}`, title }, text);
const button = (text, key, act, kind = "") => el("button", { type: "button", class: kind, "data-key": key, onclick: act }, text);
const aggregate = (row) => [row.aggregate_type, row.aggregate_id].filter((part) => part != null).join(" ") || "–";
const statusMark = (row) => row.status === "ERR" ? mark("ERR", "bad") : row.status === "SENT" ? mark("SENT", "good")
  : row.retry_at ? mark(/^its destination .* is paused$/.test(row.error_message) ? "paused" : "retrying", "warn") : mark("NEW");

// columns: [title, cell of a row, class]
function table(name, columns, rows, more = {}) {
  const cell = (column, row, at) => {
    const heads = at === 0 && more.rowHeader;
    const title = typeof column[0] === "string" ? column[0] : null;
    // In one piece, so that beside its title on a narrow screen it stays one.
    return el(heads ? "th" : "td", { class: column[2], scope: heads ? "row" : null, role: heads ? "rowheader" : "cell", "data-title": title },
      ...[[].concat(column[1](row))].map((parts) => parts.length === 1 && parts[0] === "" ? null : el("span", {}, ...parts)));
  };
  return el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": name },
    // The roles are those of the elements, which lose them where a narrow screen makes cards of them.
    el("table", { role: "table" },
      el("thead", { role: "rowgroup" }, el("tr", { role: "row" }, ...columns.map(([title, , kind]) => el("th", { scope: "col", role: "columnheader", class: kind }, ...[].concat(title))))),
      el("tbody", { role: "rowgroup" }, ...rows.map((row) => el("tr", { role: "row", class: more.rowClass?.(row) }, ...columns.map((column, at) => cell(column, row, at)))))));
}

const empty = (text) => el("p", { class: "empty" }, ...code(text));

const shown = new Map();
// Puts something in a place, unless the same is there already; whoever is at a button stays at it.
function show(place, data, build) {
  const now = JSON.stringify(data);
  if (shown.get(place) === now) return;
  shown.set(place, now);
  const node = $(place);
  const key = node.contains(document.activeElement) ? document.activeElement.dataset.key : null;
  const left = node.querySelector(".scroll")?.scrollLeft;
  node.replaceChildren(...[].concat(build()));
  if (left) node.querySelector(".scroll")?.scrollTo(left, 0);
  if (key) node.querySelector(`[data-key="${CSS.escape(key)}"]`)?.focus();
}

let saidUntil;
function say(text) {
  clearTimeout(saidUntil);
  $("said").replaceChildren(el("p", {}, text));
  saidUntil = setTimeout(() => $("said").replaceChildren(), 12000);
}

// What goes wrong with what a person asked for stands until they ask for something else; what goes wrong
// with the page's own questions, until they are answered.
function complain(problem, place = "trouble") {
  if (problem.status === 401) return askForToken(problem);
  const text = problem instanceof Problem ? problem.message : `This page failed: ${problem.message}`;
  const now = $(place).firstChild?.textContent;
  if (now !== text) $(place).replaceChildren(el("p", {}, text));
}

// Does something that a person asked for, once.
async function doing(pressed, work) {
  if (pressed) pressed.disabled = true;
  $("trouble").replaceChildren();
  try {
    await work();
  } catch (problem) {
    complain(problem);
  } finally {
    if (pressed) pressed.disabled = false;
  }
}

// ---- the token ----

function askForToken(problem) {
  const wrong = token !== null;
  token = null;
  sessionStorage.removeItem(TOKEN);
  pulse("locked", "");
  $("forget").hidden = true;
  document.querySelectorAll("main > section").forEach((section) => { section.hidden = true; });
  const first = $("door").hidden;
  $("door").hidden = false;
  $("trouble").replaceChildren(...(wrong ? [el("p", {}, problem.message)] : []));
  if (first || wrong) $("door").elements.token.focus();
}

$("door").addEventListener("submit", (event) => {
  event.preventDefault();
  const field = $("door").elements.token;
  token = field.value;
  field.value = "";
  sessionStorage.setItem(TOKEN, token);
  $("trouble").replaceChildren();
  route();
});

$("forget").addEventListener("click", () => {
  token = null;
  sessionStorage.removeItem(TOKEN);
  location.reload();
});

// ---- dialogs ----

// Asks a question; answers null for no, otherwise the text of the field, if it has one.
function question(title, text, yes, danger, field) {
  const dialog = $("question");
  $("question-title").textContent = title;
  $("question-text").textContent = text;
  const holder = $("question-field");
  holder.hidden = !field;
  holder.querySelector("span").textContent = field ?? "";
  holder.querySelector("input").value = "";
  $("question-yes").textContent = yes;
  $("question-yes").className = danger ? "danger" : "";
  dialog.returnValue = "no";
  dialog.showModal();
  (field ? holder.querySelector("input") : $("question-no")).focus();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => {
      resolve(dialog.returnValue === "yes" ? holder.querySelector("input").value.trim() : null);
    }, { once: true });
  });
}
// Enter in the field means yes, not the first button.
$("question-field").addEventListener("keydown", (event) => {
  if (event.key === "Enter") { event.preventDefault(); $("question").close("yes"); }
});

// The text of a member of a JSON object as it stands there: numbers keep their digits.
function rawMember(json, name) {
  const string = (at) => { for (at++; json[at] !== '"'; at++) if (json[at] === "\\") at++; return at + 1; };
  let at = json.indexOf("{") + 1;
  while (at < json.length) {
    const nameEnd = string(json.indexOf('"', at));
    const found = JSON.parse(json.slice(json.indexOf('"', at), nameEnd)) === name;
    const from = json.indexOf(":", nameEnd) + 1;
    let depth = 0;
    for (at = from; at < json.length; at++) {
      const c = json[at];
      if (c === '"') at = string(at) - 1;
      else if (c === "{" || c === "[") depth++;
      else if (depth > 0 && (c === "}" || c === "]")) depth--;
      else if (depth === 0 && (c === "," || c === "}")) break;
    }
    if (found) return json.slice(from, at);
    if (json[at] === "}") return null;
    at++;
  }
  return null;
}

async function openEvent(id, withPayload = false) {
  const path = `api/v1/events/${encodeURIComponent(id)}`;
  const [text, why] = await Promise.all([askText(path + (withPayload ? "?payload=true" : "")), ask(`${path}/why`)]);
  const row = JSON.parse(text);
  const body = $("detail-body");
  const columns = Object.entries(row).filter(([name]) => name !== "payload" && name !== "data");
  let payload = button("Show the payload", "payload", (event) => doing(event.target, () => openEvent(id, true)), "quiet");
  if (withPayload) {
    const json = rawMember(text, "payload");
    payload = el("div", {}, el("h3", {}, row.data == null ? "Payload" : "Payload, in base64"),
      el("pre", { tabindex: "0", "aria-label": "payload" }, row.data == null ? json : row.data));
  }
  const after = async (done) => { $("detail").close(); await done(); refresh(); };
  const actions = [];
  if (row.status === "ERR") {
    actions.push(button("Retry", "retry", () => after(() => changeLetters("retry", { ids: [id] }, 1))));
    actions.push(button("Discard", "discard", () => after(() => changeLetters("discard", { ids: [id] }, 1)), "danger"));
  }
  if (row.status === "SENT") {
    actions.push(button("Publish again…", "replay", () => after(() => startReplay({ ids: [id] }, ""))));
  }
  body.replaceChildren(
    el("h2", { id: "detail-title", tabindex: "-1" }, row.type, " ", statusMark(row)),
    el("p", { class: "why" }, ...code(sentence(why.explanation)), "\n", ...code(sentence(why.advice))),
    ...(why.behind ? [el("p", {}, button(`Open the event before it, ${why.behind.id}`, "behind",
      (event) => doing(event.target, () => openEvent(why.behind.id)), "link"))] : []),
    el("dl", { class: "columns" }, ...columns.flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, cellText(value))])),
    payload,
    el("div", { class: "actions" }, ...actions, el("span", { class: "gap" }),
      button("Close", "close", () => $("detail").close(), "quiet")));
  if (!$("detail").open) $("detail").showModal();
  if (withPayload) body.querySelector("pre").focus(); else { $("detail-title").focus(); $("detail").scrollTop = 0; }
}

const sentence = (text) => text ? text[0].toUpperCase() + text.slice(1) + (/[.!?]$/.test(text) ? "" : ".") : "";
// What stands between backticks is a command.
const code = (text) => text.split("`").map((part, at) => at % 2 ? el("code", {}, part) : part);
const cellText = (value) => value == null ? "–" : typeof value === "object" ? JSON.stringify(value) : String(value);
const idButton = (row) => button(row.id, `id-${row.id}`, (event) => doing(event.target, () => openEvent(row.id)), "link mono");

// ---- filters ----

// `2h` before now, or a time; as RFC 3339.
function time(text, label) {
  const ago = /^(\d+(?:\.\d+)?)\s*(s|m|h|d)$/.exec(text);
  if (ago) return new Date(Date.now() - ago[1] * { s: 1e3, m: 6e4, h: 36e5, d: 864e5 }[ago[2]]).toISOString();
  // A time without its zone is taken as UTC, as all times are shown.
  const zoned = /(?:z|[+-]\d\d:?\d\d)$/i.test(text) ? text : text.replace(" ", "T") + (text.length > 10 ? "Z" : "");
  const parsed = new Date(zoned);
  if (/^\d{4}-\d\d-\d\d/.test(text) && !Number.isNaN(parsed.valueOf())) return parsed.toISOString();
  throw new Problem(0, `"${text}" under "${label}" is no time: write 2h, 7d, or a date and time in UTC such as 2026-01-31T08:00Z.`);
}

function filterOf(form) {
  const filter = {};
  for (const field of form.querySelectorAll("input, select")) {
    const value = field.value.trim();
    if (value === "" || field.name === "rate" || field.name === "id") continue;
    const timed = field.name === "since" || field.name === "until";
    filter[field.name] = timed ? time(value, field.labels[0].firstChild.textContent.trim()) : value;
  }
  return filter;
}

// ---- overview ----

async function overview() {
  const [status, tenants, destinations, relays, held] = await Promise.all(
    ["status", "tenants", "destinations", "relays", "held-keys?limit=50"].map((path) => ask(`api/v1/${path}`)));
  figures(status.total);
  const pauses = new Map(tenants.tenants.map((tenant) => [tenant.tenant_id, tenant.paused]));
  show("tenants", [status, [...pauses]], () => tenantTable(status.tenants, pauses, status.total));
  show("destinations", destinations, () => destinationTable(destinations.destinations));
  show("relays", relays, () => relays.relays.length === 0
    ? empty("No relay is alive on this database. Events are written and nobody carries them: start one with `bento-outbox run`.")
    : table("Relays", [
      ["Relay", (relay) => el("span", { class: "mono" }, relay.id)],
      ["Carries", (relay) => relay.tenants === "*" ? "all tenants" : relay.tenants.split(",").join(", "), "text"],
      ["Partitions", (relay) => number.format(relay.partitions), "number"],
      ["Lease until", (relay) => moment(relay.until)],
    ], relays.relays));
  show("held", held, () => held.held.length === 0
    ? empty("No aggregate's events wait for an earlier one.")
    : [table("Keys that wait", [
      ["Tenant", (key) => key.tenant_id],
      ["Aggregate", (key) => aggregate(key), "text"],
      ["Waiting", (key) => count(key.waiting, "event"), "number"],
      ["Because", (key) => [mark(key.because, key.because === "dead" ? "bad" : "warn")]],
      ["Until", (key) => moment(key.until)],
      ["Behind event", idButton],
    ], held.held), held.held_more ? empty("And more.") : ""]);
}

function figures(total) {
  const tile = (title, value, bad) => el("div", { class: bad ? "bad" : "" }, el("dt", {}, title), el("dd", {}, value));
  show("figures", total, () => [
    tile("new", number.format(total.new)), tile("retrying", number.format(total.retrying)),
    tile("dead letters", number.format(total.dead), total.dead > 0), tile("sent, still kept", number.format(total.sent)),
    tile("oldest unsent", age(total.oldest_new_seconds)), tile("sent a second", rate.format(total.sent_per_second)),
  ]);
  $("dead-count").hidden = total.dead === 0;
  $("dead-count").textContent = number.format(total.dead);
  document.title = total.dead > 0 ? `(${number.format(total.dead)}) bento-outbox` : "bento-outbox";
}

function pauseMark(pause) {
  return mark("paused", "warn", `since ${pause.since}, by ${pause.by}${pause.reason ? `: ${pause.reason}` : ""}`);
}

function tenantTable(rows, pauses, total) {
  if (rows.length === 0) {
    return empty("The outbox is empty: no event was written yet, or all were sent and are no longer kept.");
  }
  const amount = (name) => [(row) => number.format(row[name]), "number"];
  const column = (title, name) => [title, ...amount(name)];
  const all = rows.length > 1 ? [...rows, { ...total, all: true }] : rows;
  return table("Tenants", [
    ["Tenant", (row) => row.all ? "all" : pauses.get(row.tenant_id) ? [row.tenant_id, " ", pauseMark(pauses.get(row.tenant_id))] : row.tenant_id],
    column("New", "new"), column("Retrying", "retrying"),
    ["Dead", (row) => row.dead ? el("span", { class: "badtext" }, number.format(row.dead)) : "0", "number"],
    ["Oldest unsent", (row) => age(row.oldest_new_seconds), "number"],
    ["Sent a second", (row) => rate.format(row.sent_per_second), "number"],
    column("Sent, kept", "sent"),
    [el("span", { class: "unseen" }, "Pause or resume"), (row) => row.all ? "" : pauseButton("tenants", row.tenant_id, pauses.get(row.tenant_id)), "act"],
  ], all, { rowHeader: true, rowClass: (row) => row.all ? "total" : null });
}

function destinationTable(destinations) {
  if (destinations.length === 0) return empty("This process has no destination.");
  return table("Destinations", [
    ["Destination", (one) => one.paused ? [one.destination, " ", pauseMark(one.paused)] : one.destination, "text"],
    [el("span", { class: "unseen" }, "Pause or resume"), (one) => pauseButton("destinations", one.destination, one.paused), "act"],
  ], destinations, { rowHeader: true });
}

function pauseButton(kind, name, pause) {
  const verb = pause ? "resume" : "pause";
  const label = pause ? "Resume" : "Pause";
  return el("button", {
    type: "button", class: "small quiet", "data-key": `${kind}-${name}`, "aria-label": `${label} ${name}`,
    onclick: (event) => doing(event.target, async () => {
      const what = kind === "tenants" ? `tenant ${name}` : `destination ${name}`;
      const text = pause ? `Paused since ${pause.since} by ${pause.by}${pause.reason ? `: ${pause.reason}` : ""}\n\nIts events go out again, in order.`
        : "Its events stay in the outbox and nothing of them is published until somebody resumes it. Other events go on.";
      const reason = await question(`${label} ${what}?`, text, label, !pause, pause ? null : "Why, for those who see it paused (may be empty)");
      if (reason === null) return;
      await ask(`api/v1/${kind}/${verb}`, { names: [name], ...(reason ? { reason } : {}) });
      say(`${sentence(what).slice(0, -1)} ${pause ? "goes on" : "is paused"}.`);
      await overview();
    }),
  }, label);
}

// ---- lists with pages ----

// A list that grows by "More": `path` gives a page, `rows` takes its entries, `build` shows them.
function lister(place, path, member, build, none) {
  let entries = [], next = null, values = {};
  const paint = () => show(place, [entries, next, values], () => entries.length === 0 ? empty(none(values)) : [
    build(entries),
    next ? el("div", { class: "actions" }, button("More", "more", (event) => doing(event.target, () => load(next)), "quiet"),
      el("span", { class: "hint" }, `${count(entries.length, "row")} shown`)) : "",
  ]);
  async function load(cursor) {
    const page = await ask(`api/v1/${path}${query({ ...values, limit: PAGE, cursor })}`);
    entries = cursor ? entries.concat(page[member]) : page[member];
    next = page.next;
    paint();
  }
  return {
    find: (filter) => { values = filter; return load(null); },
    // What is shown is asked for again, unless somebody has paged on: that would tear it away.
    again: () => entries.length <= PAGE ? load(null) : undefined,
    entries: () => entries, values: () => values, paint: () => { shown.delete(place); paint(); },
  };
}

const events = lister("events-found", "events", "events", (rows) => table("Events", [
  ["Status", (row) => statusMark(row)],
  ["Written", (row) => moment(row.created_at)],
  ["Tenant", (row) => row.tenant_id],
  ["Type", (row) => row.type, "text"],
  ["Aggregate", (row) => aggregate(row), "text"],
  ["Attempts", (row) => row.retry_cnt, "number"],
  ["Id", idButton],
], rows), (values) => Object.keys(values).length ? "No event matches." : "The outbox has no events.");

$("events-filter").addEventListener("submit", (event) => {
  event.preventDefault();
  const id = $("events-filter").elements.id.value.trim();
  doing(event.submitter, () => id ? openEvent(id) : events.find(filterOf($("events-filter"))));
});

// ---- dead letters ----

const chosen = new Set();

const letters = lister("dead-found", "dead-letters", "dead_letters", (rows) => table("Dead letters", [
  [el("input", { type: "checkbox", "aria-label": "Select all that are shown", "data-key": "all",
    onchange: (event) => { rows.forEach((row) => event.target.checked ? chosen.add(row.id) : chosen.delete(row.id)); choose(); letters.paint(); } }),
  (row) => {
    const box = el("input", { type: "checkbox", "aria-label": `Select ${row.type} ${row.id}`, "data-key": `box-${row.id}`,
      onchange: (event) => { event.target.checked ? chosen.add(row.id) : chosen.delete(row.id); choose(); } });
    box.checked = chosen.has(row.id);
    return box;
  }],
  ["Written", (row) => moment(row.created_at)],
  ["Tenant", (row) => row.tenant_id],
  ["Type", (row) => row.type],
  ["Aggregate", (row) => aggregate(row)],
  ["Attempts", (row) => row.retry_cnt, "number"],
  ["Reason", (row) => row.error_message ?? "–", "text"],
  ["Id", idButton],
], rows), (values) => Object.keys(values).length ? "No dead letter matches." : "There are no dead letters: nothing needs a person.");

function choose() {
  const here = new Set(letters.entries().map((row) => row.id));
  chosen.forEach((id) => { if (!here.has(id)) chosen.delete(id); });
  for (const act of $("dead-actions").querySelectorAll("button")) {
    act.disabled = act.dataset.which === "chosen" ? chosen.size === 0 : here.size === 0;
    if (act.dataset.which === "chosen") act.textContent = `${act.dataset.act === "retry" ? "Retry" : "Discard"} selected${chosen.size ? ` (${chosen.size})` : ""}`;
  }
}

// Asks, and then changes the letters that match, as many as there are.
async function changeLetters(verb, filter, known) {
  const path = `api/v1/dead-letters/${verb}`;
  const probe = known === undefined ? await ask(path, { filter, dry_run: true }) : { matched: known, next: null };
  if (probe.matched === 0) return say("No dead letter matches: there is none, or somebody dealt with it already.");
  const many = `${probe.next ? "more than " : ""}${count(probe.matched, "dead letter")}`;
  const text = verb === "retry"
    ? "They become new again, under the same ids and with the same bytes, and their attempts are counted from none."
    : "They are deleted for good. Nobody will ever receive them.";
  const title = verb === "retry" ? `Retry ${many}?` : `Discard ${many}?`;
  if (await question(title, text, verb === "retry" ? "Retry" : "Discard for good", verb === "discard") === null) return;
  let changed = 0, next = null;
  do {
    const done = await ask(path, { filter, ...(next ? { cursor: next } : {}) });
    changed += done.changed;
    next = done.next;
    say(`${count(changed, "dead letter")} ${verb === "retry" ? "retried" : "discarded"}${next ? " so far" : ""}.`);
  } while (next);
  chosen.clear();
  await letters.again();
  choose();
}

$("dead-filter").addEventListener("submit", (event) => {
  event.preventDefault();
  doing(event.submitter, async () => { await letters.find(filterOf($("dead-filter"))); choose(); });
});

$("dead-actions").addEventListener("click", (event) => {
  const act = event.target.closest("button");
  if (!act) return;
  doing(act, async () => {
    const filter = act.dataset.which === "chosen" ? { ids: [...chosen] } : letters.values();
    await changeLetters(act.dataset.act, Object.keys(filter).length ? filter : { all: true },
      act.dataset.which === "chosen" ? chosen.size : undefined);
  }).then(choose);
});

// ---- replay ----

const STATES = { counting: "", running: "", stopping: "warn", done: "good", stopped: "warn", refused: "bad", failed: "bad" };

function replayRow(run) {
  const bar = run.ended_at === null && run.matched ? el("progress", { max: run.matched, value: run.published, "aria-label": "published" }) : "";
  return [`${number.format(run.published)} of ${run.matched == null ? "…" : number.format(run.matched)} `, bar];
}

async function replayRuns() {
  const { replays } = await ask("api/v1/replays");
  show("replays", replays, () => replays.length === 0 ? empty("Nothing was replayed since this process began.") : table("Runs", [
    ["State", (run) => mark(run.state, STATES[run.state])],
    ["Begun", (run) => moment(run.started_at)],
    ["Published", replayRow],
    ["Which", (run) => parts(run.filter), "text"],
    ["A second, at most", (run) => run.rate ?? "no limit", "number"],
    ["Said", (run) => run.waits_for ? `waits: ${run.waits_for}` : run.reason ?? "", "text"],
    [el("span", { class: "unseen" }, "Stop"), (run) => run.ended_at !== null || run.state === "stopping" ? "" : button("Stop", `stop-${run.id}`, (event) => doing(event.target, async () => {
      await ask(`api/v1/replays/${run.id}/cancel`, {});
      say("The replay stops; what it has published stays published.");
      await replayRuns();
    }), "small danger"), "act"],
  ], replays));
  return replays.some((run) => run.ended_at === null);
}
async function startReplay(filter, perSecond) {
  const { matched } = await ask("api/v1/replays", { filter, dry_run: true });
  if (matched === 0) return say("No sent event matches that is still kept.");
  const sure = await question(`Publish ${count(matched, "event")} again?`,
    "Under the same ids and with the same bytes: consumers that do not remember ids handle them twice.", "Publish again", true);
  if (sure === null) return;
  await ask("api/v1/replays", { filter, ...(perSecond ? { rate: Number(perSecond) } : {}) });
  say("The replay has begun.");
  location.hash = "#replay";
  await replayRuns();
}

$("replay-filter").addEventListener("submit", (event) => {
  event.preventDefault();
  doing(event.submitter, async () => {
    const filter = filterOf($("replay-filter"));
    if (Object.keys(filter).length === 0) throw new Problem(0, "Which events? Give a tenant, a type, an aggregate or a time.");
    await startReplay(filter, $("replay-filter").elements.rate.value);
  });
});

// ---- audit ----

const NAMED = 3;

// `tenant acme, type order.placed`, and of many ids the first few.
function parts(what) {
  const list = (value) => value.slice(0, NAMED).join(", ") + (value.length > NAMED ? ` and ${number.format(value.length - NAMED)} more` : "");
  return Object.entries(what ?? {}).map(([name, value]) => `${name} ${Array.isArray(value) ? list(value) : cellText(value)}`).join(", ") || "–";
}

const audit = lister("audit-found", "audit", "acts", (rows) => table("Audit", [
  ["When", (act) => moment(act.at)],
  ["Who", (act) => act.by],
  ["What", (act) => act.verb],
  ["Changed", (act) => number.format(act.changed), "number"],
  ["Of what", (act) => parts(act.what), "text"],
  ["Note", (act) => act.note ?? "–", "text"],
], rows), () => "Nobody has retried, discarded, paused, resumed or replayed anything yet.");

$("actor").value = actor();
$("actor").addEventListener("change", () => {
  sessionStorage.setItem(ACTOR, $("actor").value);
  $("actor").value = actor();
});

// ---- moving between sections, and staying up to date ----

const SECTIONS = {
  overview, events: () => events.again(), dead: async () => { await letters.again(); choose(); },
  replay: replayRuns, audit: () => audit.again(),
};
const section = () => SECTIONS[location.hash.slice(1)] ? location.hash.slice(1) : "overview";

function pulse(text, kind) {
  $("pulse-dot").className = kind;
  $("pulse-text").textContent = text;
}

let timer, turn = 0;
async function refresh() {
  clearTimeout(timer);
  const mine = ++turn;
  let running = false;
  try {
    running = await SECTIONS[section()]() === true;
    if (section() !== "overview") figures((await ask("api/v1/status")).total);
    const health = await ask("health/ready");
    const wrong = [health.database, health.bus].filter(Boolean).join("; ");
    pulse(health.status === "ready" ? `ready, ${new Date().toISOString().slice(11, 19)}Z` : "not ready", health.status === "ready" ? "good" : "bad");
    if (wrong) complain(new Problem(503, `Nothing can be carried: ${wrong}`), "away"); else $("away").replaceChildren();
    $("door").hidden = true;
    $("forget").hidden = token === null;
    $(section()).hidden = false;
  } catch (problem) {
    if (problem.status !== 401) { pulse("no answer", "bad"); $(section()).hidden = false; }
    complain(problem, "away");
    if (problem.status === 401) return;
  }
  if (mine === turn) timer = setTimeout(() => document.hidden ? undefined : refresh(), running ? RUNNING_MS : REFRESH_MS);
}
document.addEventListener("visibilitychange", () => { if (!document.hidden) refresh(); });
$("refresh").addEventListener("click", (event) => doing(event.target, refresh));

function route() {
  for (const one of document.querySelectorAll("main > section")) one.hidden = one.id !== section();
  for (const link of document.querySelectorAll("nav a")) {
    if (link.hash === `#${section()}`) link.setAttribute("aria-current", "page"); else link.removeAttribute("aria-current");
  }
  refresh();
}
window.addEventListener("hashchange", () => { route(); $("main").focus(); });
route();
