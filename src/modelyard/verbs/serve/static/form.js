"use strict";
// One control per input, by its kind. A control is {node, get, set}: the element, its JSON value, and how to fill it.
const CHECKBOXES = 40;

const blank = (v) => (v === null || v === undefined ? "" : String(v));
const number = (id, low, high) => {
  const node = make("input", { id, type: "number", step: "any", min: low, max: high, inputmode: "decimal", "data-hint": "missing" });
  return { node, get: () => (node.value === "" ? null : Number(node.value)), set: (v) => { node.value = blank(v); } };
};

function line(id, labels) {
  const list = make("datalist", { id: `${id}-labels` }, ...(labels || []).map((l) => make("option", { value: l })));
  const input = make("input", { id, list: labels && labels.length ? list.id : null, autocomplete: "off", "data-hint": "missing" });
  return { node: make("div", {}, input, list), get: () => (input.value === "" ? null : input.value), set: (v) => { input.value = blank(v); } };
}

// known labels in a list, any other value typed: a model answers unseen labels too
function choice(id, labels) {
  const other = make("input", { id: `${id}-other`, hidden: true, autocomplete: "off", "data-name": "other_value" });
  const list = make("select", { id },
    make("option", { value: "missing", "data-say": "missing" }), ...labels.map((l, i) => make("option", { value: `label-${i}` }, l)),
    make("option", { value: "other", "data-say": "other" }));
  const open = () => { other.hidden = list.value !== "other"; };
  list.addEventListener("change", () => { open(); if (!other.hidden) other.focus(); });
  return {
    node: make("div", {}, list, other),
    get: () => (list.value === "missing" ? null : list.value === "other" ? other.value : labels[Number(list.value.slice(6))]),
    set: (v) => {
      const at = labels.indexOf(blank(v));
      list.value = blank(v) === "" ? "missing" : at >= 0 ? `label-${at}` : "other";
      other.value = list.value === "other" ? blank(v) : "";
      open();
    },
  };
}

function labelSet(id, labels, many) {
  if (!labels || !labels.length || labels.length > CHECKBOXES || many) {
    const node = make("textarea", { id, rows: 3, "data-hint": "labels_hint" });
    return { node, get: () => node.value.split("\n").map((s) => s.trim()).filter(Boolean), set: (v) => { node.value = (v || []).join("\n"); } };
  }
  const boxes = labels.map((l) => make("input", { type: "checkbox", value: l }));
  const node = make("div", { class: "boxes", role: "group", id, "aria-labelledby": `${id}-label` }, ...boxes.map((b) => make("label", {}, b, b.value)));
  return { node, get: () => boxes.filter((b) => b.checked).map((b) => b.value), set: (v) => { for (const b of boxes) b.checked = (v || []).includes(b.value); } };
}

// a stored picture may be pixels by row, [[0, 255, …], …] or [[[r, g, b], …], …]
function drawPixels(rows) {
  const canvas = make("canvas", { width: rows[0].length, height: rows.length });
  const pixels = canvas.getContext("2d").createImageData(canvas.width, canvas.height);
  rows.flat().forEach((p, i) => {
    const [r, g, b] = Array.isArray(p) ? p : [p, p, p];
    pixels.data.set([r, g, b, 255], 4 * i);
  });
  canvas.getContext("2d").putImageData(pixels, 0, 0);
  return canvas.toDataURL();
}

function picture(id, changed) {
  let value = null;
  const preview = make("img", { class: "preview", alt: "", hidden: true });
  const file = make("input", { id, type: "file", accept: "image/*" });
  const show = () => {
    preview.hidden = value === null;
    if (value === null) preview.removeAttribute("src");
    else preview.src = Array.isArray(value) ? drawPixels(value) : String(value).startsWith("data:") ? value : `data:image/png;base64,${value}`;
  };
  preview.addEventListener("load", () => preview.classList.toggle("small", preview.naturalWidth < 100));
  const take = (f) => {
    const reader = new FileReader();
    reader.onload = () => { value = reader.result; show(); changed(); };
    reader.readAsDataURL(f);
  };
  file.addEventListener("change", () => file.files[0] && take(file.files[0]));
  const zone = make("div", { class: "drop" }, make("span", { class: "soft", "data-say": "drop" }), file, preview);
  for (const name of ["dragenter", "dragover"]) zone.addEventListener(name, (e) => { e.preventDefault(); zone.classList.add("over"); });
  zone.addEventListener("dragleave", () => zone.classList.remove("over"));
  zone.addEventListener("drop", (e) => {
    e.preventDefault();
    zone.classList.remove("over");
    if (e.dataTransfer.files[0]) { file.value = ""; take(e.dataTransfer.files[0]); }
  });
  return { node: zone, get: () => value, set: (v) => { value = v === undefined ? null : v; file.value = ""; show(); } };
}

function control(input, id, changed) {
  const { kind, labels } = input;
  if (kind === "number") return number(id);
  if (kind === "category") return labels && labels.length && !input.open ? choice(id, labels) : line(id, labels);
  if (kind === "label-set") return labelSet(id, labels, input.open);
  if (kind === "image") return picture(id, changed);
  if (kind === "timestamp") {
    const node = make("input", { id, type: "datetime-local", step: "1" });
    return { node, get: () => node.value || null, set: (v) => { node.value = blank(v).slice(0, 19); } };
  }
  const node = make("textarea", { id, rows: kind === "text" ? 4 : 2, "data-hint": "missing" });
  if (kind === "text") return { node, get: () => (node.value === "" ? null : node.value), set: (v) => { node.value = blank(v); } };
  const get = () => { try { return JSON.parse(node.value); } catch { return node.value || null; } };
  return { node, get, set: (v) => { node.value = typeof v === "string" ? v : v === null || v === undefined ? "" : JSON.stringify(v); } };
}

function parameter(param, id) {
  if (param.choices) {
    const node = make("select", { id }, ...param.choices.map((c) => make("option", {}, c)));
    return { node, get: () => node.value, set: (v) => { node.value = blank(v); } };
  }
  if (param.type === "bool") {
    const node = make("input", { id, type: "checkbox" });
    return { node, get: () => node.checked, set: (v) => { node.checked = Boolean(v); } };
  }
  return param.type === "str" ? line(id, null) : number(id, param.low, param.high);
}

// a labelled control with room for a hint and an error
function field(name, made, id, hint) {
  const note = make("p", { class: "bad note", id: `${id}-error`, role: "alert", hidden: true });
  const group = ["INPUT", "SELECT", "TEXTAREA"].includes(made.node.tagName) || made.node.querySelector(`#${id}`);
  const label = make(group ? "label" : "span", { class: "name", id: `${id}-label`, for: group ? id : null }, name);
  const node = make("div", { class: "field" }, label, make("div", {}, made.node, hint || "", note));
  const target = made.node.id === id ? made.node : made.node.querySelector(`#${id}`);
  target.setAttribute("aria-describedby", note.id);
  const fail = (text) => {
    note.textContent = text;
    note.hidden = !text;
    if (text) target.setAttribute("aria-invalid", "true");
    else target.removeAttribute("aria-invalid");
  };
  return { ...made, node, fail };
}
