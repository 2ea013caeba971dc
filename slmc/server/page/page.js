// The page of `slmc serve`: search titles, keep a history, show what two engines recommend.
// It asks GET engines, GET items and POST recommend of the server that it came from, and keeps
// nothing. Every text of the server is inserted as text, never as HTML.

const SEARCH_PAUSE_MS = 120; // after a key, before the server is asked
const MATCHES = 20; // items that a search shows

const HELP = "Arrow keys choose, Enter adds, Escape closes the list.";

const at = (id) => document.getElementById(id);
const search = at("search");
const matchList = at("matches");
const latest = {}; // purpose -> AbortController of its newest request
let engines = [];
const history = []; // {item, title}, oldest first
let token = "";
let matches = [];
let active = -1; // index of the chosen match
let timer = 0;
let searching = false; // a key was pressed and its matches are not there yet
let addFirst = false; // Enter was pressed while searching

// A request that was refused (its status) or did not arrive (status 0).
class Problem extends Error {
  constructor(status, message, retryAfter = "") {
    super(message);
    Object.assign(this, { status, retryAfter });
  }
}

function signalFor(purpose) {
  latest[purpose]?.abort();
  latest[purpose] = new AbortController();
  return latest[purpose].signal;
}

async function ask(path, signal, body) {
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  const options = { signal, headers, cache: "no-store" };
  if (body) {
    Object.assign(options, { method: "POST", body: JSON.stringify(body) });
    headers["Content-Type"] = "application/json";
  }
  let response, content;
  try {
    response = await fetch(path, options);
    content = await response.json().catch((error) => {
      if (response.ok || error.name === "AbortError") throw error;
    });
  } catch (error) {
    throw error.name === "AbortError" ? error : new Problem(0, "");
  }
  if (response.ok) return content;
  const reason = content?.error ?? content?.detail ?? response.statusText;
  const text = typeof reason === "string" ? reason : JSON.stringify(reason);
  throw new Problem(response.status, text, response.headers.get("Retry-After") ?? "");
}

// A problem in plain words.
function sentence({ status, message, retryAfter }) {
  const reason = message ? ` It says: ${message}` : "";
  if (status === 0) return "The server does not answer. Check that it is running, then try again.";
  if (status === 401) {
    return token ? "The server did not accept this token." : "This server asks for a token.";
  }
  if (status === 429) {
    const pause = /^\d+$/.test(retryAfter) ? `in ${retryAfter} s` : "in a moment";
    return `Too many requests wait for the server. Try again ${pause}.`;
  }
  if (status === 503 || status === 504) return `The server could not answer in time.${reason}`;
  if (status >= 500) return `The server failed (error ${status}).${reason}`;
  return `The server refused the request (error ${status}).${reason}`;
}

function showProblem(error, engine = "") {
  if (error.name === "AbortError") return;
  if (!(error instanceof Problem)) throw error;
  const line = document.createElement("p");
  line.className = "message";
  line.textContent = (engine ? `${engine}: ` : "") + sentence(error);
  at("problem").replaceChildren(line);
  at("again").hidden = error.status === 401;
  at("token-form").hidden = error.status !== 401;
  if (error.status === 401) at("token").focus();
}

function hideProblem() {
  at("problem").replaceChildren();
  at("again").hidden = at("token-form").hidden = true;
}

function make(tag, className, text = "") {
  const element = document.createElement(tag);
  element.className = className;
  element.textContent = text;
  return element;
}

const nameOf = ({ item, title }) => title || String(item);
const milliseconds = (value) => `${value.toFixed(value < 10 ? 2 : value < 100 ? 1 : 0)} ms`;

// A title with its id behind it, or the id alone.
function named(entry) {
  const element = make("span", "name", nameOf(entry));
  if (entry.title) element.append(" ", make("span", "id", String(entry.item)));
  return element;
}

// The search box: a combobox as in the ARIA Authoring Practices.

function closeMatches() {
  clearTimeout(timer);
  latest.items?.abort();
  matches = [];
  searching = addFirst = false;
  matchList.hidden = true;
  matchList.replaceChildren();
  search.setAttribute("aria-expanded", "false");
  choose(-1);
}

function choose(index) {
  active = index;
  [...matchList.children].forEach((option, place) => {
    option.setAttribute("aria-selected", String(place === index));
  });
  const option = matchList.children[index];
  if (option) {
    search.setAttribute("aria-activedescendant", option.id);
    option.scrollIntoView({ block: "nearest" });
  } else {
    search.removeAttribute("aria-activedescendant");
  }
}

async function findMatches() {
  const query = search.value.trim();
  const engine = panels[0].engine ?? panels[1].engine;
  if (!engine) return;
  const parameters = new URLSearchParams({ engine: engine.name, q: query, limit: MATCHES });
  searching = true;
  try {
    matches = (await ask(`items?${parameters}`, signalFor("items"))).items;
  } catch (error) {
    if (error.name !== "AbortError") closeMatches();
    return showProblem(error);
  }
  searching = false;
  if (addFirst && matches.length) return add(matches[0]);
  addFirst = false;
  matchList.replaceChildren(...matches.map(optionOf));
  matchList.hidden = matches.length === 0;
  search.setAttribute("aria-expanded", String(matches.length > 0));
  choose(query && matches.length ? 0 : -1);
  at("found").textContent = `Matches: ${matches.length}`;
  at("search-help").textContent = matches.length ? HELP : `${engine.name} has no such title or id.`;
}

function optionOf(entry, place) {
  const option = make("li", "");
  option.id = `match-${place}`;
  option.setAttribute("role", "option");
  option.append(named(entry));
  option.addEventListener("click", () => add(entry));
  return option;
}

function onKey(event) {
  const open = !matchList.hidden;
  if (event.isComposing || !["ArrowDown", "ArrowUp", "Enter", "Escape"].includes(event.key)) return;
  event.preventDefault();
  if (event.key === "Enter") {
    if (searching && search.value.trim()) addFirst = true;
    else if (open && active >= 0) add(matches[active]);
  } else if (event.key === "Escape") {
    if (!open) search.value = "";
    closeMatches();
  } else if (open) {
    const step = event.key === "ArrowDown" ? 1 : -1;
    choose((Math.max(active, step < 0 ? 0 : -1) + step + matches.length) % matches.length);
  } else if (!searching) {
    findMatches();
  }
}

function add(entry) {
  history.push({ item: entry.item, title: entry.title });
  at("found").textContent = `Added ${nameOf(entry)}`;
  search.value = "";
  closeMatches();
  search.focus();
  showHistory();
  recommend();
}

function remove(index, count = 1) {
  const removed = history.splice(index, count).map(nameOf);
  at("found").textContent = `Removed ${removed.join(", ")}`;
  showHistory();
  const buttons = at("history").querySelectorAll("button");
  (buttons[Math.min(index, buttons.length - 1)] ?? search).focus();
  recommend();
}

function showHistory() {
  const lines = history.map((entry, index) => {
    const line = make("li", "");
    const button = make("button", "", "✕");
    button.type = "button";
    button.setAttribute("aria-label", `Remove ${nameOf(entry)}`);
    button.addEventListener("click", () => remove(index));
    line.append(named(entry), button);
    return line;
  });
  at("history").replaceChildren(...lines);
  at("history").hidden = at("clear").hidden = history.length === 0;
  at("history-empty").hidden = history.length > 0;
}

// One of the two engines and what it recommends.
class Panel {
  constructor(id) {
    this.root = at(id);
    this.select = this.root.querySelector("select");
    this.part = (name) => this.root.querySelector(`.${name}`);
    this.answer = null; // the newest answer, with its round trip
    this.select.addEventListener("change", () => changeEngines());
  }

  get engine() {
    return engines.find(({ name }) => name === this.select.value);
  }

  // Fill the list of engines; keep the choice if that engine is still there.
  offer(preferred) {
    const before = this.select.value;
    const names = engines.map(({ name }) => name);
    this.select.replaceChildren(...["", ...names].map((name) => new Option(name || "none", name)));
    this.select.value = names.includes(before) ? before : names[preferred] ?? "";
  }

  async recommend(k, signal) {
    const start = performance.now();
    const options = { engine: this.engine.name, k, exclude_seen: at("exclude").checked };
    const body = { ...options, history: history.map(({ item }) => item) };
    const answer = await ask("recommend", signal, body);
    this.answer = { ...answer, roundTrip: performance.now() - start };
  }

  show(other) {
    const { engine, answer } = this;
    this.part("about").textContent = engine
      ? `${engine.precision} · ${engine.items.toLocaleString("en")} items · reads the newest ${engine.history}`
      : "";
    this.root.classList.remove("waiting");
    this.part("latency").replaceChildren();
    this.part("note").textContent = engine || engines.length > 1
      ? "" : "Only one engine is served; `slmc serve` takes several.";
    this.part("items").replaceChildren();
    if (!engine || !answer) return;
    const latency = make("strong", "server", milliseconds(answer.latency_ms));
    const trip = make("span", "trip dim", `round trip ${milliseconds(answer.roundTrip)}`);
    this.part("latency").append(latency, " server · ", trip);
    this.part("note").textContent = this.notes().join(" ");
    const places = other.engine && other.answer && placesOf(other.answer);
    this.part("items").append(...answer.items.map((entry, index) => line(entry, index, places)));
  }

  notes() {
    const { items, by, unknown } = this.answer;
    const titles = new Map(history.map((entry) => [String(entry.item), nameOf(entry)]));
    const missing = (unknown ?? []).map((item) => titles.get(String(item)) ?? String(item));
    const notes = [];
    if (missing.length) notes.push(`Not known to this engine: ${missing.join(", ")}.`);
    if (by === "popular") {
      notes.push("The most popular items; the number is their count in the training data.");
    }
    if (!items.length) notes.push("No item can be recommended.");
    return notes;
  }
}

const panels = [new Panel("first"), new Panel("second")];
const placesOf = ({ items }) => new Map(items.map(({ item }, index) => [String(item), index]));

// One recommended item; `places`: item -> its place in the other list.
function line(entry, index, places) {
  const element = make("li", "");
  const name = named(entry);
  const place = places?.get(String(entry.item));
  if (places && place === undefined) {
    element.classList.add("differs");
    name.append(make("span", "badge", "only here"));
  } else if (places && place !== index) {
    name.append(make("span", "badge", `other list: ${place + 1}`));
  }
  const digits = Number.isInteger(entry.score) ? 0 : 3;
  element.append(name, make("span", "score", entry.score.toFixed(digits)));
  return element;
}

function summary() {
  const [first, second] = panels.map(({ engine, answer }) => engine && answer);
  if (!first || !second) return "";
  const places = placesOf(first);
  const both = second.items.filter(({ item }) => places.has(String(item))).length;
  const most = Math.max(first.items.length, second.items.length);
  const marked = both < most ? " Items in one list only are marked." : "";
  return `${both} of ${most} items are in both lists.${marked}`;
}

function show() {
  panels[0].show(panels[1]);
  panels[1].show(panels[0]);
  at("summary").textContent = summary();
}

// The largest number of items that the chosen engines give; Infinity without an engine.
function largest() {
  const chosen = panels.map(({ engine }) => engine).filter(Boolean);
  return Math.min(...chosen.flatMap(({ top_k, items }) => [top_k, items]));
}

// The wanted number of items, or null if it is out of range.
function wanted() {
  const most = largest();
  const k = at("k").valueAsNumber;
  const valid = Number.isInteger(k) && k >= 1 && k <= most;
  at("k").max = most;
  at("k").setAttribute("aria-invalid", String(!valid));
  at("k-help").textContent = valid ? "" : `a whole number from 1 to ${most}`;
  return valid ? k : null;
}

// Ask the engines, one after the other, so that neither slows the other.
async function recommend() {
  const signal = signalFor("recommend");
  const asked = panels.filter(({ engine }) => engine);
  const k = asked.length ? wanted() : null;
  if (k === null) return show();
  const problems = [];
  asked.forEach(({ root }) => root.classList.add("waiting"));
  for (const panel of asked) {
    try {
      await panel.recommend(k, signal);
    } catch (error) {
      if (error.name === "AbortError") return;
      panel.answer = null;
      problems.push([error, panel.engine.name]);
    }
  }
  if (problems.length) showProblem(...problems[0]);
  else hideProblem();
  show();
}

function changeEngines() {
  for (const panel of panels) panel.answer = null;
  if (at("k").valueAsNumber > largest()) at("k").value = largest();
  closeMatches();
  recommend();
}

async function load() {
  try {
    engines = (await ask("engines", signalFor("engines"))).engines;
  } catch (error) {
    return showProblem(error);
  }
  hideProblem();
  search.disabled = engines.length === 0;
  panels.forEach((panel, preferred) => panel.offer(preferred));
  changeEngines();
}

search.addEventListener("keydown", onKey);
search.addEventListener("blur", closeMatches);
search.addEventListener("click", () => {
  if (matchList.hidden) findMatches();
});
search.addEventListener("input", () => {
  clearTimeout(timer);
  latest.items?.abort();
  searching = true;
  timer = setTimeout(findMatches, SEARCH_PAUSE_MS);
});
// A press on the list must not take the focus from the search box, which would close the list.
matchList.addEventListener("mousedown", (event) => event.preventDefault());
at("k").addEventListener("input", recommend);
at("exclude").addEventListener("change", recommend);
at("again").addEventListener("click", load);
at("clear").addEventListener("click", () => remove(0, history.length));
at("token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  token = at("token").value.trim();
  at("token").value = "";
  load();
});
showHistory();
load();
