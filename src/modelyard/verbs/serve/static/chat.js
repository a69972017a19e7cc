"use strict";
// A conversation with a model that writes: messages as bubbles, the answer appears as it is written, and can be stopped.
const talk = { messages: [], stop: null };

const chatKey = (event) => { if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); $("chat-form").requestSubmit(); } };

function bubble(role, text) {
  const body = make("div", { class: "said", dir: "auto" }, text);
  const node = make("div", { class: `bubble ${role}` }, make("div", { class: "who soft small", "data-say": role }), body);
  $("chat-log").append(node);
  node.scrollIntoView({ block: "nearest" });
  return body;
}

// the whole request, as the snippets show it too
function chatBody() {
  const values = Object.fromEntries([...$("chat-options").querySelectorAll("input")].filter((i) => i.value !== "").map((i) => [i.name, Number(i.value)]));
  const system = $("chat-system").value.trim();
  const messages = [...(system ? [{ role: "system", content: system }] : []), ...talk.messages];
  if (model.chat.roles) return { model: model.name, messages, ...values };
  return { model: model.name, prompt: talk.messages.findLast((m) => m.role === "user")?.content ?? $("chat-text").value, ...values };
}

// lines of server-sent events from pieces of bytes that end anywhere
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) if (part.startsWith("data: ") && part !== "data: [DONE]") yield JSON.parse(part.slice(6));
  }
}

async function chat(event) {
  event.preventDefault();
  const text = $("chat-text").value;
  if (talk.stop || !text.trim()) return;
  talk.messages.push({ role: "user", content: text });
  bubble("user", text);
  $("chat-text").value = "";
  $("chat-empty").hidden = true;
  const body = bubble("assistant", ""), began = performance.now();
  body.classList.add("writing");
  talk.stop = new AbortController();
  busy();
  let said = "", usage = null, failed = null;
  try {
    const headers = { "Content-Type": "application/json", ...(token ? { Authorization: `Bearer ${token}` } : {}) };
    const asked = { ...chatBody(), stream: true, stream_options: { include_usage: true } };
    const response = await fetch(model.chat.roles ? "/v1/chat/completions" : "/v1/completions", { method: "POST", headers, body: JSON.stringify(asked), signal: talk.stop.signal });
    if (!response.ok) throw new Error((await response.json()).error.message);
    for await (const chunk of events(response)) {
      if (chunk.error) throw new Error(chunk.error.message);
      usage = chunk.usage || usage;
      const choice = chunk.choices[0];
      if (!choice) continue;
      said += model.chat.roles ? choice.delta.content || "" : choice.text;
      body.textContent = said;
      $("chat-log").scrollTop = $("chat-log").scrollHeight;
    }
  } catch (error) {
    if (error.name !== "AbortError") failed = error instanceof TypeError ? say("unreachable") : error.message;
  }
  body.classList.remove("writing");
  talk.stop = null;
  if (failed !== null && !said) {
    talk.messages.pop();  // what was not answered can be sent again
    body.parentNode.previousSibling.remove();
    body.parentNode.remove();
    $("chat-text").value = text;
  } else talk.messages.push({ role: "assistant", content: said });
  if (failed !== null) $("chat-log").append(make("p", { class: "bad", role: "alert" }, failed));
  else if (usage) {
    const seconds = (performance.now() - began) / 1000;
    body.parentNode.append(make("p", { class: "soft small" }, say("speed", { n: usage.completion_tokens, s: seconds.toFixed(1) })));
  }
  busy();
  $("chat-log").scrollTop = $("chat-log").scrollHeight;
}

function busy() {
  $("chat-send").hidden = talk.stop !== null;
  $("chat-stop").hidden = talk.stop === null;
  $("chat-send").disabled = talk.stop !== null;
  snippet();
}

function forget() {
  if (talk.stop) talk.stop.abort();
  talk.messages = [];
  $("chat-log").replaceChildren($("chat-empty"));
  $("chat-empty").hidden = false;
  snippet();
}

function chatStart() {
  $("chat").hidden = false;
  $("rows").open = false;
  $("chat-system-field").hidden = !model.chat.roles;
  const options = [["temperature", "0.1", 0, 5], ["top_p", "0.05", 0, 1], ["max_tokens", "1", 1, model.chat.length], ["seed", "1", 0, null]];
  $("chat-options").append(...options.map(([name, step, min, max]) => make("label", { class: "option" }, make("span", { class: "soft small" }, name),
    make("input", { name, type: "number", step, min, max, inputmode: "decimal", value: model.chat.defaults[name] ?? "" }))));
  $("chat-form").addEventListener("submit", chat);
  $("chat-form").addEventListener("input", () => snippet());
  $("chat-text").addEventListener("keydown", chatKey);
  $("chat-stop").addEventListener("click", () => talk.stop && talk.stop.abort());
  $("chat-new").addEventListener("click", forget);
}

// the same from a program: OpenAI's client with another address
function chatSnippets() {
  const whole = chatBody(), last = whole.messages ? whole.messages.map((m) => m.role).lastIndexOf("user") : -1;
  const asked = last < 0 ? whole : { ...whole, messages: whole.messages.slice(0, last + 1) }, route = model.chat.roles ? "/v1/chat/completions" : "/v1/completions";
  const shown = model.chat.roles && !asked.messages.some((m) => m.role === "user")
    ? { ...asked, messages: [...asked.messages, { role: "user", content: $("chat-text").value || "…" }] } : asked;
  const json = JSON.stringify(shown), key = needsToken ? 'os.environ["MODELYARD_TOKEN"]' : '"none"';
  const { model: name, ...rest } = shown;
  const given = Object.entries(rest).map(([k, v]) => `    ${k}=${python(v)},\n`).join("");
  const call = model.chat.roles ? "chat.completions" : "completions", piece = model.chat.roles ? "delta.content" : "text";
  return {
    curl: curlFor(`${location.origin}${route}`, json),
    Python: `${needsToken ? "import os\n\n" : ""}from openai import OpenAI\n\nclient = OpenAI(base_url=${python(`${location.origin}/v1`)}, api_key=${key})\nstream = client.${call}.create(\n    model=${python(name)},\n${given}    stream=True,\n)\nfor chunk in stream:\n    print(chunk.choices[0].${piece} or "", end="", flush=True)`,
    JavaScript: `const response = await fetch(${JSON.stringify(`${location.origin}${route}`)}, {\n  method: "POST",\n  headers: { "Content-Type": "application/json"${needsToken ? ', Authorization: `Bearer ${token}`' : ""} },\n  body: JSON.stringify(${json}),\n});\nconsole.log((await response.json()).choices[0].${model.chat.roles ? "message.content" : "text"});`,
  };
}
