"use strict";
// The page itself: fills the form from the signature, asks the server, draws answers and writes the snippets.
const ROWS_SHOWN = 500, BARS = 10, SNIPPET_SHOWN = 3000;
let model = JSON.parse($("model").textContent);
let token = "", tab = "curl", example = 0, snippets = {}, last = null;
const needsToken = model === null;
const fields = new Map(), params = new Map();

const url = () => `${location.origin}/v1/models/${encodeURIComponent(model.name)}:predict`;
const outputs = () => model.signature.outputs.map((o) => o.name);
const row = () => Object.fromEntries([...fields].map(([name, f]) => [name, f.get()]));
const isObject = (v) => v !== null && typeof v === "object" && !Array.isArray(v);
// as in the server's answers: a failed row is {"error": {column, reason, value}} and nothing else
const failure = (a) => (isObject(a) && !outputs().includes("error") && isObject(a.error) ? a.error : null);
const whole = (a) => (isObject(a) && outputs().some((o) => o in a) ? a : { [outputs()[0]]: a });

function body(rows) {
  const changed = model.signature.params.filter((p) => JSON.stringify(params.get(p.name).get()) !== JSON.stringify(p.default));
  return { instances: rows, ...(changed.length ? { params: Object.fromEntries(changed.map((p) => [p.name, params.get(p.name).get()])) } : {}) };
}

async function ask(rows) {
  let response, answer;
  try {
    const headers = { "Content-Type": "application/json", ...(token ? { Authorization: `Bearer ${token}` } : {}) };
    response = await fetch(url(), { method: "POST", headers, body: JSON.stringify(body(rows)) });
    answer = await response.json();
  } catch { throw new Error(say("unreachable")); }
  if (!response.ok) throw new Error(answer.error);
  return answer.predictions;
}

// --- answers -----------------------------------------------------------------------------------------------------

const six = (v) => (typeof v === "number" ? String(Number(v.toPrecision(6))) : String(v));
function text(value) {
  if (value === null || value === undefined) return say("missing");
  if (Array.isArray(value)) return value.map(text).join(", ") || `∅ ${say("none")}`;
  return isObject(value) ? JSON.stringify(value) : six(value);
}

// the words that the server will see: a text is cut at blanks, Han characters one by one
const HAN = "\\u3005\\u3007\\u3400-\\u4dbf\\u4e00-\\u9fff\\uf900-\\ufaff\\u{20000}-\\u{323af}";
const UNIT = new RegExp(`[${HAN}]|[^\\s${HAN}]+`, "gu");
const wordsOf = (value) => (Array.isArray(value) ? value.map(String) : String(value ?? "").match(UNIT) || []);

// a sentence with its entities marked and named
function marked(words, entities) {
  const found = [];
  let at = 0;
  for (const e of entities) {
    if (e.start > at) found.push(`${words.slice(at, e.start).join(" ")} `);
    found.push(make("mark", {}, e.text, make("sub", {}, e.type)), " ");
    at = e.end;
  }
  return [...found, words.slice(at).join(" ")];
}

function bars(scores, chosen) {
  const sorted = Object.entries(scores).sort((a, b) => b[1] - a[1]);
  return sorted.slice(0, BARS).map(([label, score]) => make("div", { class: chosen.includes(label) ? "bar chosen" : "bar" },
    make("span", { title: label }, label), make("progress", { max: 1, value: score ?? 0, "aria-label": label }),
    make("span", {}, score === null ? "—" : `${(100 * score).toFixed(1)} %`)));
}

function show() {
  const box = $("answer");
  box.replaceChildren();
  for (const f of fields.values()) f.fail("");
  if (last === null) return void box.append(make("p", { class: "soft", "data-say": "empty" }));
  if (last.message) return void box.append(make("p", { class: "bad", role: "alert" }, last.message));
  const wrong = failure(last.answer);
  if (wrong) {
    const sentence = `${wrong.reason}${wrong.value ? ` (${wrong.value})` : ""}`;
    if (fields.has(wrong.column)) fields.get(wrong.column).fail(sentence);
    return void box.append(make("p", { class: "bad", role: "alert" }, make("strong", {}, wrong.column), ` ${sentence}`));
  }
  const answer = whole(last.answer);
  for (const name of outputs()) {
    const value = answer[name], low = answer[`${name}.low`], high = answer[`${name}.high`], set = answer[`${name}.set`], scores = answer[`${name}.scores`];
    const entities = answer[`${name}.entities`], of = model.signature.outputs.find((o) => o.name === name).of;
    const told = Array.isArray(entities) && of ? marked(wordsOf(last.row[of]), entities) : [text(value)];
    const part = make("div", { class: "output" }, make("div", { class: "soft" }, name), make("div", { class: "big" }, ...told));
    box.append(part);
    if (Array.isArray(entities)) part.append(make("p", { class: "soft small" }, text(value)));
    if (typeof low === "number") part.append(make("p", { class: "soft" }, `${say("from")} ${six(low)} ${say("to")} ${six(high)}`));
    if (set) part.append(make("p", { class: "soft" }, `{ ${text(set)} }`));
    if (isObject(scores)) part.append(...bars(scores, Array.isArray(value) ? value : [String(value)]));
  }
  box.append(make("p", { class: "soft small" }, `${say("took")} ${last.milliseconds.toFixed(last.milliseconds < 10 ? 1 : 0)} ms`));
}

async function predict(event) {
  if (event) event.preventDefault();
  snippet();
  const began = performance.now(), asked = row();
  try {
    const [answer] = await ask([asked]);
    last = { answer, row: asked, milliseconds: performance.now() - began };
  } catch (error) { last = { message: error.message }; }
  show();
  $("answer").scrollIntoView({ block: "nearest" });
}

// --- many rows ---------------------------------------------------------------------------------------------------

function parseCsv(source) {
  const header = source.split("\n", 1)[0];
  const cut = ["\t", ";", ","].find((c) => header.includes(c)) || ",";
  const rows = [[]];
  let value = "", quoted = false;
  const end = () => { rows[rows.length - 1].push(value); value = ""; };
  for (let i = 0; i < source.length; i++) {
    const c = source[i];
    if (quoted) {
      if (c !== '"') value += c;
      else if (source[i + 1] === '"') { value += '"'; i++; }
      else quoted = false;
    } else if (c === '"') quoted = true;
    else if (c === cut) end();
    else if (c === "\n") { end(); rows.push([]); }
    else if (c !== "\r") value += c;
  }
  end();
  const [head, ...lines] = rows.filter((r) => r.length > 1 || r[0] !== "");
  return lines.map((r) => Object.fromEntries(head.map((h, i) => [h.trim(), r[i] === "" || r[i] === undefined ? null : r[i]])));
}

function parseRows(source) {
  if (source.startsWith("[")) return JSON.parse(source);
  if (!source.startsWith("{")) return parseCsv(source);
  return source.split("\n").map((l, i) => [l.trim(), i + 1]).filter(([l]) => l).map(([l, n]) => {
    try { return JSON.parse(l); } catch { throw new Error(say("wrong_json", { n })); }
  });
}

function cells(answer) {
  const wrong = failure(answer);
  if (wrong) return [make("td", { class: "bad", colspan: outputs().length }, `${wrong.column} ${wrong.reason}`)];
  const found = whole(answer);
  return outputs().map((name) => {
    const value = found[name], scores = found[`${name}.scores`], entities = found[`${name}.entities`];
    if (Array.isArray(entities)) return make("td", {}, entities.map((e) => `${e.text} (${e.type})`).join(", ") || "—");
    const top = isObject(scores) && !Array.isArray(value) && typeof scores[value] === "number" ? ` (${(100 * scores[value]).toFixed(1)} %)` : "";
    return make("td", {}, `${text(value)}${top}`);
  });
}

async function batch() {
  const source = $("batch").value.trim(), box = $("batch-answer");
  $("download").hidden = true;
  if (!source) return;
  try {
    const answers = await ask(parseRows(source));
    const head = make("tr", {}, make("th", { scope: "col", "data-say": "row" }), ...outputs().map((o) => make("th", { scope: "col" }, o)));
    const lines = answers.slice(0, ROWS_SHOWN).map((a, i) => make("tr", {}, make("td", {}, String(i + 1)), ...cells(a)));
    box.replaceChildren(make("table", {}, make("thead", {}, head), make("tbody", {}, ...lines)));
    if (answers.length > ROWS_SHOWN) box.append(make("p", { class: "soft" }, say("shown", { n: ROWS_SHOWN, all: answers.length })));
    URL.revokeObjectURL($("download").href);
    $("download").href = URL.createObjectURL(new Blob([answers.map((a) => `${JSON.stringify(a)}\n`).join("")], { type: "application/jsonl" }));
    $("download").hidden = false;
  } catch (error) { box.replaceChildren(make("p", { class: "bad", role: "alert" }, error.message)); }
}

// --- snippets ----------------------------------------------------------------------------------------------------

// Python's literals differ from JSON's in three words; a JSON text of ASCII is a Python text
const ascii = (v) => JSON.stringify(v).replace(/[\u007f-\uffff]/g, (c) => `\\u${c.charCodeAt(0).toString(16).padStart(4, "0")}`);
function python(v) {
  if (v === null) return "None";
  if (typeof v === "boolean") return v ? "True" : "False";
  if (Array.isArray(v)) return `[${v.map(python).join(", ")}]`;
  if (isObject(v)) return `{${Object.entries(v).map(([k, x]) => `${python(k)}: ${python(x)}`).join(", ")}}`;
  if (typeof v !== "string") return JSON.stringify(v);
  return /[\ud800-\udfff\u2028\u2029]/.test(v) ? `"${[...v].map((c) => (c.codePointAt(0) > 0xffff ? `\\U${c.codePointAt(0).toString(16).padStart(8, "0")}` : ascii(c).slice(1, -1))).join("")}"` : JSON.stringify(v);
}

const curl = (json) => curlFor(url(), json);
function curlFor(address, json) {
  const head = `curl -sS '${address.replaceAll("'", "%27")}' -H 'Content-Type: application/json'${needsToken ? ' -H "Authorization: Bearer $MODELYARD_TOKEN"' : ""}`;
  if (new TextEncoder().encode(json).length > model.argument) return `${head} --data-binary @- <<'JSON'\n${json}\nJSON`;
  return `${head} -d '${json.replaceAll("'", "'\\''")}'`;
}

function rowSnippets() {
  const asked = body([row()]), json = JSON.stringify(asked);
  const bearer = needsToken ? ', "Authorization": "Bearer " + os.environ["MODELYARD_TOKEN"]' : "";
  return {
    curl: curl(json),
    Python: `import json\n${needsToken ? "import os\n" : ""}import urllib.request\n\nbody = ${python(asked)}\nheaders = {"Content-Type": "application/json"${bearer}}\nrequest = urllib.request.Request(${python(url())}, json.dumps(body).encode(), headers)\nwith urllib.request.urlopen(request) as response:\n    print(json.load(response)["predictions"])`,
    JavaScript: `const response = await fetch(${JSON.stringify(url())}, {\n  method: "POST",\n  headers: { "Content-Type": "application/json"${needsToken ? ', Authorization: `Bearer ${token}`' : ""} },\n  body: JSON.stringify(${json}),\n});\nconsole.log((await response.json()).predictions);`,
  };
}

function snippet() {
  snippets = model.chat && !$("rows").open ? chatSnippets() : rowSnippets();
  for (const button of document.querySelectorAll(".tabs button")) {
    button.setAttribute("aria-selected", String(button.textContent === tab));
    button.tabIndex = button.textContent === tab ? 0 : -1;
  }
  const full = snippets[tab];
  $("snippet").textContent = full.length > SNIPPET_SHOWN ? `${full.slice(0, SNIPPET_SHOWN - 300)} … ${full.slice(-300)}` : full;
}

async function copy() {
  const done = () => { $("copy").textContent = say("copied"); setTimeout(() => { $("copy").textContent = say("copy"); }, 1200); };
  if (navigator.clipboard) {
    try { await navigator.clipboard.writeText(snippets[tab]); return done(); } catch { /* refused: the old way below */ }
  }
  const area = make("textarea", { class: "aside" });  // pages that are not on this machine or https have no clipboard
  area.value = snippets[tab];
  document.body.append(area);
  area.select();
  if (document.execCommand("copy")) done();
  area.remove();
}

function choose(name, focus) {
  tab = name;
  snippet();
  if (focus) document.querySelector('.tabs [aria-selected="true"]').focus();
}

// --- start -------------------------------------------------------------------------------------------------------

function fill(values) {
  for (const [name, f] of fields) { f.set(values ? values[name] : null); f.fail(""); }
  snippet();
}

function hintOf(input) {
  if (!input.range) return null;
  return make("p", { class: "soft note" }, make("span", { "data-say": "range" }), ` ${six(input.range[0])} … ${six(input.range[1])}`);
}

function build() {
  $("version").textContent = model.version;
  model.signature.inputs.forEach((input, i) => fields.set(input.name, field(input.name, control(input, `field-${i}`, snippet), `field-${i}`, hintOf(input))));
  $("fields").append(...[...fields.values()].map((f) => f.node));
  model.signature.params.forEach((p, i) => {
    const made = field(p.name, parameter(p, `param-${i}`), `param-${i}`, p.doc ? make("p", { class: "soft note" }, p.doc) : null);
    made.set(p.default);
    params.set(p.name, made);
  });
  $("param-fields").append(...[...params.values()].map((f) => f.node));
  $("params").hidden = params.size === 0;
  const names = ["curl", "Python", "JavaScript"];
  document.querySelector(".tabs").append(...names.map((n) => make("button", {
    type: "button", role: "tab", "aria-controls": "snippet", onclick: () => choose(n),
    onkeydown: (e) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[e.key];
      if (step) { e.preventDefault(); choose(names[(names.indexOf(n) + step + names.length) % names.length], true); }
    } }, n)));
  $("another").hidden = model.examples.length < 2;
  $("another").addEventListener("click", () => { example = (example + 1) % model.examples.length; fill(model.examples[example]); predict(); });
  $("form").addEventListener("submit", predict);
  $("form").addEventListener("input", snippet);
  $("copy").addEventListener("click", copy);
  $("run-batch").addEventListener("click", batch);
  $("fill-batch").addEventListener("click", () => { $("batch").value = model.examples.slice(0, 5).map((r) => JSON.stringify(r)).join("\n"); });
  $("app").hidden = false;
  if (model.chat) {
    $("rows").querySelector("summary").hidden = false;
    $("rows").addEventListener("toggle", snippet);
    chatStart();
  }
  words();
  fill(model.examples[0]);
}

async function unlock(event) {
  event.preventDefault();
  $("token-error").textContent = "";
  try {
    const response = await fetch("/page.json", { headers: { Authorization: `Bearer ${$("token").value.trim()}` } });
    const found = await response.json();
    if (!response.ok) throw new Error(found.error);
    token = $("token").value.trim();
    model = found;
    $("token-form").hidden = true;
    build();
  } catch (error) { $("token-error").textContent = error instanceof TypeError ? say("unreachable") : error.message; }
}

$("lang").addEventListener("click", () => { lang = lang === "zh" ? "en" : "zh"; remember("lang", lang); words(); if (model) { show(); snippet(); } });
$("theme").addEventListener("click", () => { theme = THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length]; remember("theme", theme); words(); });
$("token-form").addEventListener("submit", unlock);
words();
if (needsToken) { $("token-form").hidden = false; $("token").focus(); } else build();
