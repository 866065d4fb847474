// The playground: several turns with a model, streamed, stopped when asked.

import { copy, formToken, text } from "./app.js";
import { milliseconds } from "./formats.js";
import { render } from "./markdown.js";
import { curlOf, pythonOf } from "./snippets.js";
import { eventsOf } from "./events.js";

const NUMBERS = ["max_tokens", "temperature", "top_p", "seed"];
const $ = (id) => document.getElementById(id);
const turns = [];
let running = null;

/** The request as it stands in the form, without the turns that failed. */
function requestBody(messages) {
  const body = { messages };
  const model = $("model").value.trim();
  if (model) body.model = model;
  for (const name of NUMBERS) {
    const value = $(name).valueAsNumber;
    if (Number.isFinite(value)) body[name] = value;
  }
  const thinking = $("thinking").value;
  if (thinking) body.thinking = { type: thinking };
  return body;
}

function messagesNow() {
  const system = $("system").value.trim();
  const spoken = turns.map(({ role, content }) => ({ role, content }));
  return system ? [{ role: "system", content: system }, ...spoken] : spoken;
}

/** Where to send it, and with which key: pasted, or chosen and kept by the gateway. */
function destination() {
  const chosen = $("key").value;
  const headers = { "content-type": "application/json" };
  if (chosen) {
    return { url: "/ui/playground/chat", headers: { ...headers, "x-form-token": formToken(), "x-playground-key": chosen } };
  }
  return { url: "/v1/chat/completions", headers: { ...headers, authorization: `Bearer ${$("pasted").value.trim()}` } };
}

async function ask() {
  const question = $("prompt").value.trim();
  if (!question || running) return;
  if (!$("key").value && !$("pasted").value.trim()) {
    $("pasted").hidden = false;
    $("pasted").focus();
    fail(addAnswer(), text("need_key"));
    return;
  }
  $("prompt").value = "";
  turns.push({ role: "user", content: question });
  addTurn("user").textContent = question;
  await answer();
}

async function answer() {
  const view = addAnswer();
  const stop = new AbortController();
  const state = { content: "", reasoning: "", began: performance.now(), first: null, usage: null, finish: null };
  setRunning(stop);
  view.meta.textContent = text("waiting");
  try {
    const { url, headers } = destination();
    const body = { ...requestBody(messagesNow()), stream: true, stream_options: { include_usage: true } };
    const reply = await fetch(url, { method: "POST", headers, body: JSON.stringify(body), signal: stop.signal });
    if (!reply.ok) throw new Error(await errorOf(reply));
    for await (const event of eventsOf(reply.body)) take(event, state, view);
    if (state.finish === null) throw new Error(text("cut"));
    draw(view, state);
    tell(view, state);
  } catch (error) {
    draw(view, state);
    if (error.name === "AbortError") tell(view, state, text("stopped"));
    else fail(view, error instanceof TypeError ? text("unreachable") : error.message);
  }
  view.root.removeAttribute("aria-busy");
  if (state.content) turns.push({ role: "assistant", content: state.content });
  else turns.pop(); // the question got no answer: it is not part of the next request
  setRunning(null);
}

function take({ name, data }, state, view) {
  if (data === "[DONE]") return;
  const chunk = JSON.parse(data);
  if (name === "error" || chunk.error) throw new Error(chunk.error?.message ?? text("cut"));
  if (chunk.usage) state.usage = chunk.usage;
  const choice = chunk.choices?.[0];
  if (!choice) return;
  state.reasoning += choice.delta?.reasoning_content ?? "";
  state.content += choice.delta?.content ?? "";
  state.finish = choice.finish_reason ?? state.finish;
  if (state.first === null && (state.content || state.reasoning)) {
    state.first = performance.now();
    view.meta.textContent = state.reasoning ? text("thinking") : "";
  }
  if (!view.isDue) {
    view.isDue = true; // many chunks, one drawing
    requestAnimationFrame(() => draw(view, state));
  }
}

function draw(view, state) {
  view.isDue = false;
  const isAtEnd = $("turns").scrollHeight - $("turns").scrollTop - $("turns").clientHeight < 60;
  if (state.reasoning) {
    view.reasoning.hidden = false;
    view.reasoning.lastElementChild.replaceChildren(render(state.reasoning));
  }
  view.content.replaceChildren(render(state.content));
  if (isAtEnd) $("turns").scrollTop = $("turns").scrollHeight;
}

/** What the answer took, under it. */
function tell(view, state, note = "") {
  const parts = [];
  if (note) parts.push(note);
  if (state.finish === "length") parts.push(text("length"));
  if (state.finish === "content_filter") parts.push(text("filtered"));
  if (state.usage) {
    parts.push(text("figures", {
      prompt: state.usage.prompt_tokens,
      completion: state.usage.completion_tokens,
      ttft: milliseconds(state.first === null ? null : state.first - state.began),
      total: milliseconds(performance.now() - state.began),
    }));
  }
  view.meta.replaceChildren(...parts.map((part) => {
    const made = document.createElement("span");
    made.textContent = part;
    return made;
  }));
  if (!state.content) return;
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = text("copy");
  button.addEventListener("click", () => copy(state.content, button));
  view.meta.append(button);
}

function fail(view, message) {
  const made = document.createElement("p");
  made.className = "fault box";
  made.setAttribute("role", "alert");
  made.textContent = message;
  view.meta.replaceChildren(made);
}

async function errorOf(reply) {
  try {
    return (await reply.json()).error.message;
  } catch {
    return `HTTP ${reply.status}`;
  }
}

function addTurn(role) {
  $("hello")?.remove();
  const made = document.createElement("div");
  made.className = `turn ${role}`;
  $("turns").append(made);
  $("turns").scrollTop = $("turns").scrollHeight;
  return made;
}

function addAnswer() {
  const root = addTurn("assistant");
  root.setAttribute("aria-busy", "true");
  const reasoning = document.createElement("details");
  reasoning.className = "reasoning";
  reasoning.hidden = true;
  const summary = document.createElement("summary");
  summary.textContent = text("reasoning");
  const thoughts = document.createElement("div");
  thoughts.className = "markdown";
  reasoning.append(summary, thoughts);
  const content = document.createElement("div");
  content.className = "markdown";
  const meta = document.createElement("div");
  meta.className = "meta";
  root.append(reasoning, content, meta);
  return { root, reasoning, content, meta, isDue: false };
}

function setRunning(stop) {
  const wasStopFocused = document.activeElement === $("stop");
  running = stop;
  $("send").hidden = stop !== null;
  $("stop").hidden = stop === null;
  if (stop === null && wasStopFocused) $("prompt").focus();
}

function showSnippet(title, code) {
  $("snippet-title").textContent = title;
  $("snippet").textContent = code;
  document.querySelector("dialog.snippet").showModal();
}

function snippetRequest() {
  const draft = $("prompt").value.trim();
  const messages = messagesNow();
  if (draft || messages.length === 0 || messages.at(-1).role === "system") {
    messages.push({ role: "user", content: draft || "Hello" });
  } else if (messages.at(-1).role === "assistant") {
    messages.pop();
  }
  return { ...requestBody(messages), stream: true };
}

$("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  ask();
});
$("prompt").addEventListener("keydown", (event) => {
  // While an input method composes, Enter chooses a word.
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    ask();
  }
});
$("stop").addEventListener("click", () => running?.abort());
$("key").addEventListener("change", () => { $("pasted").hidden = $("key").value !== ""; });
$("clear").addEventListener("click", () => {
  running?.abort();
  turns.length = 0;
  $("turns").replaceChildren();
  $("prompt").focus();
});
const baseUrl = document.querySelector(".playground").dataset.baseUrl;
$("as-curl").addEventListener("click", () => showSnippet(text("as_curl"), curlOf(baseUrl, snippetRequest())));
$("as-python").addEventListener("click", () => showSnippet(text("as_python"), pythonOf(baseUrl, snippetRequest())));
