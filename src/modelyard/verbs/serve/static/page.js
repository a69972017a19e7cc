"use strict";
const model = JSON.parse(document.getElementById("model").textContent);
const WORDS = {
  en: { version: "version", predict: "Predict", another: "Another example", empty: "Fill in the fields and press Predict.", batch: "Many rows",
        batch_hint: "One JSON object a line, or CSV with a header.", predict_all: "Predict all", code: "The same from a program", copy: "Copy",
        copied: "Copied", row: "row", unreachable: "The server does not answer.", missing: "(missing)", token: "Token" },
  zh: { version: "版本", predict: "预测", another: "换一个示例", empty: "填写各项后点击“预测”。", batch: "批量预测",
        batch_hint: "每行一个 JSON 对象，或带表头的 CSV。", predict_all: "全部预测", code: "在程序中调用", copy: "复制",
        copied: "已复制", row: "行", unreachable: "服务器没有响应。", missing: "（缺失）", token: "令牌" },
};
let lang = (navigator.language || "en").toLowerCase().startsWith("zh") ? "zh" : "en";
let tab = "curl", example = 0, token = "";
const $ = (id) => document.getElementById(id);
const say = (key) => WORDS[lang][key] || key;
const make = (tag, attributes = {}, ...children) => {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) node.setAttribute(key, value);
  }
  node.append(...children);
  return node;
};
const url = () => `${location.origin}/v1/models/${encodeURIComponent(model.name)}:predict`;
const fields = {};

function field(input, index) {
  const id = `field-${index}`;
  let node, get, set;
  if (input.kind === "number") {
    node = make("input", { id, type: "number", step: "any", "data-hint": "missing" });
    get = () => (node.value === "" ? null : Number(node.value));
    set = (v) => { node.value = v === null || v === undefined ? "" : v; };
  } else if (input.kind === "category") {
    const list = make("datalist", { id: `${id}-labels` }, ...(input.labels || []).map((l) => make("option", { value: l })));
    node = make("input", { id, list: `${id}-labels`, "data-hint": "missing", autocomplete: "off" });
    get = () => (node.value === "" ? null : node.value);
    set = (v) => { node.value = v === null || v === undefined ? "" : String(v); };
    return wrap(input, id, make("div", {}, node, list), get, set, node);
  } else if (input.kind === "image") {
    const preview = make("img", { class: "preview", alt: "" });
    let value = null;
    const file = make("input", { id, type: "file", accept: "image/*" });
    const take = (f) => { const reader = new FileReader(); reader.onload = () => { value = reader.result; preview.classList.remove("small"); picture(preview, value); snippet(); }; reader.readAsDataURL(f); };
    file.addEventListener("change", () => file.files[0] && take(file.files[0]));
    node = make("div", {}, file, preview);
    node.addEventListener("dragover", (e) => e.preventDefault());
    node.addEventListener("drop", (e) => { e.preventDefault(); if (e.dataTransfer.files[0]) take(e.dataTransfer.files[0]); });
    get = () => value;
    set = (v) => { value = v; picture(preview, v); file.value = ""; };
  } else if (input.kind === "label-set") {
    node = make("input", { id, placeholder: "a, b" });
    get = () => node.value.split(/[,;|]/).map((s) => s.trim()).filter(Boolean);
    set = (v) => { node.value = (v || []).join(", "); };
  } else if (input.kind === "timestamp") {
    node = make("input", { id, type: "datetime-local", step: "1" });
    get = () => node.value || null;
    set = (v) => { node.value = v ? String(v).slice(0, 19) : ""; };
  } else if (input.kind === "text") {
    node = make("textarea", { id, rows: 4 });
    get = () => node.value;
    set = (v) => { node.value = v || ""; };
  } else {
    node = make("textarea", { id, rows: 2 });
    get = () => { try { return JSON.parse(node.value); } catch { return node.value; } };
    set = (v) => { node.value = typeof v === "string" ? v : JSON.stringify(v); };
  }
  return wrap(input, id, node, get, set, node);
}

// A value of kind image as a picture: a data URL, base64, {"b64": …} or rows of pixels.
function picture(node, value) {
  const plain = value && value.b64 ? value.b64 : value;
  node.hidden = !plain;
  if (!plain) return node.removeAttribute("src");
  if (typeof plain === "string") { node.src = plain.startsWith("data:") ? plain : `data:image/png;base64,${plain}`; return; }
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [plain[0].length, plain.length];
  const pixels = new ImageData(canvas.width, canvas.height);
  plain.flat().forEach((p, i) => pixels.data.set(Array.isArray(p) ? [...p.slice(0, 3), 255] : [p, p, p, 255], 4 * i));
  canvas.getContext("2d").putImageData(pixels, 0, 0);
  node.src = canvas.toDataURL();
  node.classList.toggle("small", canvas.width <= 64);
}

function wrap(input, id, node, get, set) {
  fields[input.name] = { get, set };
  return make("label", { for: id }, make("span", {}, input.name), node);
}

function row() {
  return Object.fromEntries(Object.entries(fields).map(([name, f]) => [name, f.get()]));
}

function fill(values) {
  for (const [name, f] of Object.entries(fields)) f.set(values ? values[name] : null);
  snippet();
}

async function ask(rows) {
  const headers = { "Content-Type": "application/json" };
  if (token) headers.Authorization = `Bearer ${token}`;
  let response;
  try { response = await fetch(url(), { method: "POST", headers, body: JSON.stringify({ instances: rows }) }); }
  catch { throw new Error(say("unreachable")); }
  const body = await response.json();
  if (response.status === 401) { token = prompt(say("token")) || ""; if (token) return ask(rows); }
  if (!response.ok) throw new Error(body.error);
  return body.predictions;
}

function show(answer) {
  const box = $("answer");
  box.replaceChildren();
  if (answer && answer.error && answer.error.reason) {
    box.append(make("p", { class: "bad" }, `${answer.error.column} ${answer.error.reason} ${answer.error.value || ""}`));
    return;
  }
  const outputs = model.signature.outputs.map((o) => o.name);
  if (outputs.length === 1 && (typeof answer !== "object" || answer === null || Array.isArray(answer))) answer = { [outputs[0]]: answer };
  for (const name of outputs) {
    const value = answer[name];
    box.append(make("div", { class: "soft" }, name));
    box.append(make("div", { class: "big" }, Array.isArray(value) ? value.join(", ") || "∅" : typeof value === "number" ? String(Number(value.toPrecision(6))) : String(value)));
    const scores = answer[`${name}.scores`];
    if (scores) {
      const sorted = Object.entries(scores).sort((a, b) => b[1] - a[1]).slice(0, 10);
      for (const [label, score] of sorted)
        box.append(make("div", { class: "bar" }, make("span", { title: label }, label), make("progress", { max: 1, value: score, "aria-label": label }), make("span", {}, `${(100 * score).toFixed(1)} %`)));
    }
  }
}

async function predict(event) {
  if (event) event.preventDefault();
  snippet();
  try { show((await ask([row()]))[0]); }
  catch (error) { $("answer").replaceChildren(make("p", { class: "bad" }, error.message)); }
}

function parseCsv(text) {
  const rows = [[]];
  let value = "", quoted = false;
  for (let i = 0; i < text.length; i++) {
    const c = text[i];
    if (quoted) { if (c === '"' && text[i + 1] === '"') { value += '"'; i++; } else if (c === '"') quoted = false; else value += c; }
    else if (c === '"') quoted = true;
    else if (c === ",") { rows[rows.length - 1].push(value); value = ""; }
    else if (c === "\n") { rows[rows.length - 1].push(value); value = ""; rows.push([]); }
    else if (c !== "\r") value += c;
  }
  rows[rows.length - 1].push(value);
  const [head, ...body] = rows.filter((r) => r.length > 1 || r[0] !== "");
  return body.map((r) => Object.fromEntries(head.map((h, i) => [h.trim(), r[i] === "" || r[i] === undefined ? null : r[i]])));
}

async function batch() {
  const text = $("batch").value.trim(), box = $("batch-answer");
  if (!text) return;
  try {
    const rows = text.startsWith("{") || text.startsWith("[") ? (text.startsWith("[") ? JSON.parse(text) : text.split(/\n+/).map((l) => JSON.parse(l))) : parseCsv(text);
    const answers = await ask(rows);
    const outputs = model.signature.outputs.map((o) => o.name);
    const head = make("tr", {}, make("th", {}, say("row")), ...outputs.map((o) => make("th", {}, o)));
    const lines = answers.map((a, i) => {
      const cells = a && a.error && a.error.reason ? [make("td", { class: "bad", colspan: outputs.length }, `${a.error.column} ${a.error.reason}`)]
        : outputs.map((o) => { const v = a !== null && typeof a === "object" && !Array.isArray(a) ? a[o] : a; const s = a && a[`${o}.scores`]; const top = s && !Array.isArray(v) ? ` (${(100 * s[v]).toFixed(1)} %)` : ""; return make("td", {}, `${v}${top}`); });
      return make("tr", {}, make("td", {}, String(i + 1)), ...cells);
    });
    box.replaceChildren(make("table", {}, head, ...lines));
  } catch (error) { box.replaceChildren(make("p", { class: "bad" }, error.message)); }
}

const SHOWN = 3000, ARGUMENT = 100000; // characters drawn; characters that a shell surely takes as one argument
let code = "";

function snippet() {
  const text = JSON.stringify({ instances: [row()] });
  const quoted = text.replaceAll("'", "'\\''");
  const bearer = token ? " -H \"Authorization: Bearer $TOKEN\"" : "";
  const head = `curl -s ${url()} -H 'Content-Type: application/json'${bearer}`;
  const all = {
    curl: quoted.length < ARGUMENT ? `${head} -d '${quoted}'` : `${head} --data-binary @- <<'JSON'\n${text}\nJSON`,
    Python: `import json, urllib.request\n\nbody = ${JSON.stringify(text)}\nheaders = {"Content-Type": "application/json"${token ? ', "Authorization": "Bearer TOKEN"' : ""}}\nrequest = urllib.request.Request("${url()}", body.encode(), headers)\nprint(json.load(urllib.request.urlopen(request))["predictions"])`,
    JavaScript: `const response = await fetch("${url()}", {\n  method: "POST",\n  headers: { "Content-Type": "application/json"${token ? ', Authorization: "Bearer TOKEN"' : ""} },\n  body: JSON.stringify(${text}),\n});\nconsole.log((await response.json()).predictions);`,
  };
  document.querySelector(".tabs").replaceChildren(...Object.keys(all).map((name) =>
    make("button", { type: "button", role: "tab", "aria-selected": String(name === tab), onclick: () => { tab = name; snippet(); } }, name)));
  code = all[tab];
  $("snippet").textContent = code.length > SHOWN ? `${code.slice(0, SHOWN - 300)} … ${code.slice(-300)}` : code;
}

async function copy() {
  if (navigator.clipboard) await navigator.clipboard.writeText(code);
  else { // browsers give the clipboard to https and to this machine only
    const box = make("textarea", {});
    box.value = code;
    document.body.append(box);
    box.select();
    document.execCommand("copy");
    box.remove();
  }
  $("copy").textContent = say("copied");
  setTimeout(() => { $("copy").textContent = say("copy"); }, 1200);
}

function words() {
  document.documentElement.lang = lang === "zh" ? "zh-Hans" : "en";
  $("lang").textContent = lang === "zh" ? "English" : "中文";
  for (const node of document.querySelectorAll("[data-say]")) node.textContent = say(node.dataset.say);
  for (const node of document.querySelectorAll("[data-hint]")) node.placeholder = say(node.dataset.hint);
}

function start() {
  const form = $("form");
  form.append(...model.signature.inputs.map(field), make("div", { class: "actions" },
    make("button", { class: "main", type: "submit", "data-say": "predict" }, say("predict")),
    make("button", { type: "button", "data-say": "another", onclick: () => { if (!model.examples.length) return; example = (example + 1) % model.examples.length; fill(model.examples[example]); predict(); } }, say("another"))));
  form.addEventListener("submit", predict);
  form.addEventListener("input", snippet);
  $("answer").append(make("p", { class: "soft", "data-say": "empty" }, say("empty")));
  $("lang").addEventListener("click", () => { lang = lang === "zh" ? "en" : "zh"; words(); snippet(); });
  $("run-batch").addEventListener("click", batch);
  $("copy").addEventListener("click", copy);
  words();
  fill(model.examples[0]);
}
start();
