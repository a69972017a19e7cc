"use strict";
// Words of the page in English and Chinese, the theme, and the one way to make elements (text only, never markup).
const WORDS = {
  en: {
    version: "version", predict: "Predict", another: "Another example", empty: "Fill in the fields and press Predict.", batch: "Many rows",
    batch_hint: "One JSON object a line, or a table (CSV) with a header.", predict_all: "Predict all", fill: "Fill with examples",
    download: "Download the answers", code: "The same from a program", copy: "Copy", copied: "Copied", row: "row",
    unreachable: "The server does not answer.", missing: "(missing)", other: "(another value …)", token: "This server asks for a token",
    open: "Open", params: "Parameters", range: "seen in training", drop: "Choose a picture or drop one here", labels_hint: "one label a line",
    wrong_json: "line {n} is not JSON", shown: "{n} of {all} rows are shown", took: "answered in", none: "none", from: "from", to: "to",
    other_value: "another value", conversation: "Conversation", chat_empty: "Say something to the model.", chat_hint: "Your message",
    send: "Send", stop: "Stop", anew: "New conversation", system: "What the model is told first", user: "you", assistant: "model",
    speed: "{n} tokens in {s} s", rows: "One row at a time", theme: { auto: "Auto", light: "Light", dark: "Dark" },
  },
  zh: {
    version: "版本", predict: "预测", another: "换一个示例", empty: "填写各项后点击“预测”。", batch: "批量预测",
    batch_hint: "每行一个 JSON 对象，或带表头的表格（CSV）。", predict_all: "全部预测", fill: "填入示例",
    download: "下载结果", code: "在程序中调用", copy: "复制", copied: "已复制", row: "行",
    unreachable: "服务器没有响应。", missing: "（缺失）", other: "（其他值……）", token: "此服务器需要令牌",
    open: "打开", params: "参数", range: "训练数据范围", drop: "选择图片，或拖放到此处", labels_hint: "每行一个标签",
    wrong_json: "第 {n} 行不是 JSON", shown: "显示 {all} 行中的 {n} 行", took: "用时", none: "无", from: "从", to: "到",
    other_value: "其他值", conversation: "对话", chat_empty: "对模型说点什么吧。", chat_hint: "输入消息",
    send: "发送", stop: "停止", anew: "新对话", system: "系统提示", user: "我", assistant: "模型",
    speed: "{n} 个词元，用时 {s} 秒", rows: "逐条预测", theme: { auto: "自动", light: "浅色", dark: "深色" },
  },
};
const THEMES = ["auto", "light", "dark"];
const $ = (id) => document.getElementById(id);

// storage can be forbidden by the browser; the page works without it
const remember = (key, value) => { try { localStorage.setItem(`modelyard.${key}`, value); } catch { /* not kept */ } };
const recall = (key) => { try { return localStorage.getItem(`modelyard.${key}`); } catch { return null; } };

let lang = recall("lang") || ((navigator.language || "en").toLowerCase().startsWith("zh") ? "zh" : "en");
let theme = THEMES.includes(recall("theme")) ? recall("theme") : "auto";
if (!(lang in WORDS)) lang = "en";

const say = (key, values = {}) => {
  let text = WORDS[lang][key] || key;
  for (const [name, value] of Object.entries(values)) text = text.replace(`{${name}}`, value);
  return text;
};

const make = (tag, attributes = {}, ...children) => {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) node.setAttribute(key, value === true ? "" : value);
  }
  node.append(...children);
  if (attributes["data-say"]) node.textContent = say(attributes["data-say"]);
  return node;
};

function words() {
  document.documentElement.lang = lang === "zh" ? "zh-Hans" : "en";
  document.documentElement.dataset.theme = theme;
  $("lang").textContent = lang === "zh" ? "English" : "中文";
  $("theme").textContent = `◐ ${WORDS[lang].theme[theme]}`;
  for (const node of document.querySelectorAll("[data-say]")) node.textContent = say(node.dataset.say);
  for (const node of document.querySelectorAll("[data-hint]")) node.placeholder = say(node.dataset.hint);
  for (const node of document.querySelectorAll("[data-name]")) node.setAttribute("aria-label", say(node.dataset.name));
}
