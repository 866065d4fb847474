// The playground: several turns with a model, streamed, stopped when asked.

import { formToken, text } from "./app.js";
import { eventsOf } from "./events.js";
import { milliseconds } from "./formats.js";
import { keep, kept } from "./kept_talk.js";
import { breakOf, ChatError, lossOf, refusalOf } from "./refusals.js";
import { curlOf, pythonOf } from "./snippets.js";
import { Answer, Question } from "./turns.js";

const NUMBERS = ["max_tokens", "temperature", "top_p", "seed"];
const KEPT_FIELDS = ["key", "model", "other_model", "system", ...NUMBERS, "thinking"];
const $ = (id) => document.getElementById(id);
const { account, baseUrl } = document.querySelector(".playground").dataset;

let turns = []; // what is said: each with role and content, answers with what they took
let last = null; // the newest answer as it is shown
let running = null;

/** The request as it stands in the form. */
function requestBody(messages) {
  const body = { messages };
  if (modelNow()) body.model = modelNow();
  for (const name of NUMBERS) {
    const value = $(name).valueAsNumber;
    if (Number.isFinite(value)) body[name] = value;
  }
  const thinking = $("thinking").value;
  if (thinking) body.thinking = { type: thinking };
  return body;
}

function modelNow() {
  return $("model").value || $("other_model").value.trim();
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
  const content = $("prompt").value.trim();
  if (!content || running) return;
  if (!$("key").value && !$("pasted").value.trim()) {
    $("pasted").hidden = false;
    $("pasted").setAttribute("aria-invalid", "true");
    $("pasted").focus();
    return;
  }
  $("pasted").removeAttribute("aria-invalid");
  $("prompt").value = "";
  $("hello").hidden = true;
  const turn = { role: "user", content };
  turns.push(turn);
  await answer(turn, new Question($("turns"), content));
}

/** Answer the last question; what is said meanwhile in a new conversation is none of this one's. */
async function answer(asked, question) {
  last?.settle();
  const talk = turns;
  const turn = { role: "assistant", content: "", reasoning: "", model: modelNow() };
  const view = new Answer($("turns"), turn.model, () => {
    if (running) return;
    view.root.remove();
    if (turns.at(-1) === turn) turns.pop();
    if (turns.at(-1) !== asked) turns.push(asked);
    question.root.classList.remove("dropped");
    answer(asked, question);
  });
  last = view;
  const stop = new AbortController();
  setRunning({ stop, turn });
  view.begin();
  try {
    await stream(turn, view, stop.signal);
    view.end(turn);
  } catch (error) {
    if (error.name === "AbortError") {
      turn.parts = [text("stopped")];
      view.end(turn);
    } else {
      view.fail(turn, lossOf(error));
    }
  }
  if (turn.content) talk.push(turn);
  else if (talk.at(-1) === asked) {
    talk.pop(); // it got no answer, so it is not part of the next request
    question.drop();
  }
  if (talk !== turns) return;
  setRunning(null);
  keepTalk();
}

async function stream(turn, view, signal) {
  const times = { began: performance.now(), first: null, said: null };
  const { url, headers } = destination();
  const body = { ...requestBody(messagesNow()), stream: true, stream_options: { include_usage: true } };
  const reply = await fetch(url, { method: "POST", headers, body: JSON.stringify(body), signal });
  turn.requestId = reply.headers.get("x-request-id");
  if (!reply.ok) throw await refusalOf(reply);
  let finish = null;
  let usage = null;
  for await (const { name, data } of eventsOf(reply.body)) {
    if (data === "[DONE]") continue;
    const chunk = JSON.parse(data);
    if (name === "error" || chunk.error) throw breakOf(chunk.error);
    usage = chunk.usage ?? usage;
    const choice = chunk.choices?.[0];
    if (!choice) continue;
    finish = choice.finish_reason ?? finish;
    turn.reasoning += choice.delta?.reasoning_content ?? "";
    turn.content += choice.delta?.content ?? "";
    if (turn.content || turn.reasoning) times.first ??= performance.now();
    if (turn.content && times.said === null) {
      times.said = performance.now();
      if (turn.reasoning) turn.thought = milliseconds(times.said - times.first);
    }
    view.update(turn);
  }
  if (finish === null) throw new ChatError(text("fault_cut"));
  turn.thought ??= turn.reasoning ? milliseconds(performance.now() - times.first) : null;
  turn.parts = figuresOf(finish, usage, times);
}

/** What an answer took, to be told under it. */
function figuresOf(finish, usage, { began, first }) {
  const parts = [];
  if (finish === "length") parts.push(text("length"));
  if (finish === "content_filter") parts.push(text("filtered"));
  if (!usage) return parts;
  const now = performance.now();
  parts.push(text("figures", {
    prompt: usage.prompt_tokens,
    completion: usage.completion_tokens,
    ttft: milliseconds(first === null ? null : first - began),
    total: milliseconds(now - began),
  }));
  if (usage.completion_tokens > 1 && now > first) {
    parts.push(text("rate", { rate: Math.round(((usage.completion_tokens - 1) / (now - first)) * 1000) }));
  }
  return parts;
}

function setRunning(now) {
  const wasStopFocused = document.activeElement === $("stop");
  running = now;
  $("send").hidden = now !== null;
  $("stop").hidden = now === null;
  if (now === null && wasStopFocused) $("prompt").focus();
}

function keepTalk() {
  const isOpen = running?.turn.content && !turns.includes(running.turn);
  const open = isOpen ? [{ ...running.turn, parts: [text("stopped")] }] : [];
  const fields = Object.fromEntries(KEPT_FIELDS.map((name) => [name, $(name).value]));
  keep(account, { fields, turns: [...turns, ...open] });
}

/** Go on where this tab was before it went to another page. */
function restore() {
  const { fields = {}, turns: before = [] } = kept(account) ?? {};
  for (const [name, value] of Object.entries(fields)) {
    const field = $(name);
    if (field instanceof HTMLSelectElement && ![...field.options].some((option) => option.value === value)) continue;
    field.value = value;
  }
  turns = before;
  $("hello").hidden = turns.length > 0;
  for (const turn of turns) {
    if (turn.role === "user") new Question($("turns"), turn.content);
    else new Answer($("turns"), turn.model, null).end(turn);
  }
}

function clear() {
  const before = running;
  turns = [];
  last = null;
  setRunning(null);
  before?.stop.abort();
  for (const turn of $("turns").querySelectorAll(".turn")) turn.remove();
  $("hello").hidden = false;
  keepTalk();
  $("prompt").focus();
}

function showChosen() {
  $("pasted").hidden = $("key").value !== "";
  $("other_model").hidden = $("model").value !== "";
}

/** The model that a key may use: the chosen one, else the first of those that are known. */
function fitModel() {
  const allowed = JSON.parse($("key").selectedOptions[0].dataset.models ?? "null");
  const mayUse = (model) => allowed === null || allowed.some((one) => (one.endsWith("*") ? model.startsWith(one.slice(0, -1)) : model === one));
  if (mayUse(modelNow())) return;
  const known = [...$("model").options].map((option) => option.value).filter(Boolean);
  $("model").value = known.find(mayUse) ?? $("model").value;
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
for (const idea of document.querySelectorAll("[data-idea]")) {
  idea.addEventListener("click", () => {
    $("prompt").value = idea.textContent;
    $("prompt").focus();
    ask();
  });
}
$("stop").addEventListener("click", () => running?.stop.abort());
$("clear").addEventListener("click", clear);
$("key").addEventListener("change", () => { fitModel(); showChosen(); });
$("model").addEventListener("change", () => {
  showChosen();
  if (!$("model").value) $("other_model").focus();
});
$("as-curl").addEventListener("click", () => showSnippet(text("as_curl"), curlOf(baseUrl, snippetRequest())));
$("as-python").addEventListener("click", () => showSnippet(text("as_python"), pythonOf(baseUrl, snippetRequest())));
addEventListener("pagehide", keepTalk);

restore();
fitModel();
showChosen();
