// The overview: charts, and figures that follow what happens.

import { text } from "./app.js";
import { amounts, durations, milliseconds, money, percent, short } from "./formats.js";
import { TimeChart } from "./charts.js";

const FIGURES_EVERY_MS = 15_000;
const LIVE_EVERY_MS = 2_000;

const root = document.querySelector("[data-figures]");
let figures = JSON.parse(root.dataset.figures);

const COLORS = { requests: ["--line-1", "--line-3", "--line-4"], others: ["--line-1", "--line-2", "--line-3"] };
const charts = [...document.querySelectorAll("[data-chart]")].map((figure) => {
  const name = figure.dataset.chart;
  const isLatency = name === "latency" || name === "ttft";
  return new TimeChart(figure, {
    colors: COLORS[name] ?? COLORS.others,
    isStacked: !isLatency,
    ...formatsOf(name, isLatency),
    lines: () => linesOf(name),
    overall: () => (isLatency ? Object.values(figures.totals[name]) : linesOf(name).map(sum)),
  });
});

function formatsOf(name, isLatency) {
  if (isLatency) return { format: milliseconds, ticks: durations };
  if (name === "cost") return { format: (value) => money(value, figures.currency), ticks: (values) => amounts(values, figures.currency) };
  return { format: short, ticks: (values) => values.map((value) => (Number.isInteger(value) ? short(value).replace(/\.0+(?=\D|$)/, "") : "")) };
}

function linesOf(name) {
  const values = figures[name];
  if (name === "cost") return [figures.cost];
  if (name === "requests") return [values.finished, values.cancelled, values.failed];
  if (name === "tokens") {
    const computed = values.prompt.map((prompt, at) => prompt - values.cached[at]);
    return [computed, values.cached, values.completion];
  }
  return [values.p50, values.p95, values.p99];
}

function draw() {
  const { totals } = figures;
  for (const part of document.querySelectorAll("[data-when]")) part.hidden = (part.dataset.when === "used") !== totals.requests > 0;
  for (const chart of charts) chart.draw(figures.times, figures.slot_s);
  const told = {
    requests: [short(totals.requests), changed("requests")],
    tokens: [short(totals.tokens), changed("tokens")],
    cost: [totals.cost, changed("cost")],
    cached: [percent(totals.cache_rate), text("of_tokens", { number: short(totals.cached_tokens) })],
    errors: [percent(totals.error_rate), text("of_requests", { number: short(totals.failed) })],
    ttft: [milliseconds(totals.ttft.p50), text("p95", { value: milliseconds(totals.ttft.p95) })],
    latency: [milliseconds(totals.latency.p50), text("p95", { value: milliseconds(totals.latency.p95) })],
  };
  for (const [name, [value, detail]] of Object.entries(told)) {
    document.querySelector(`[data-tile="${name}"]`).textContent = value;
    document.querySelector(`[data-detail="${name}"]`).textContent = detail;
  }
  for (const [name, lines] of Object.entries(figures.top)) document.querySelector(`[data-top="${name}"]`).replaceChildren(...lines.map((line) => topRow(name, line)));
}

function changed(name) {
  const change = figures.totals.changes[name];
  return change ? text("change", { change }) : "";
}

/** One of those who used most; the bar is beside the one who used most of all. */
function topRow(name, line) {
  const row = document.createElement("tr");
  const title = element("td", name === "keys" ? "" : line.name);
  if (name === "keys") {
    const link = element("a", line.name);
    link.href = `/ui/keys/${encodeURIComponent(line.id)}`;
    title.append(link);
  }
  const bar = document.createElement("progress");
  bar.value = line.share;
  bar.ariaLabel = line.name;
  title.append(bar);
  row.append(title, element("td", short(line.requests), "number"), element("td", short(line.tokens), "number strong"), element("td", line.cost, "number"));
  return row;
}

function sum(line) {
  return line.reduce((total, value) => total + value, 0);
}

function show(live) {
  for (const place of document.querySelectorAll("[data-now]")) place.textContent = short(live[place.dataset.now]);
  for (const place of document.querySelectorAll("[data-queued] span")) place.textContent = short(live.queued[place.parentElement.dataset.queued]);
  if (live.problem !== null) say(text("not_ready"), "bad", [live.problem]);
  else if (live.faults.length) say(text("degraded"), "warn", live.faults);
  else say(text("ready"), "good", []);
  const rows = live.upstreams.map((upstream) => {
    const row = document.createElement("tr");
    const badge = element("span", text(upstream.state), `badge ${upstream.state}`);
    const health = document.createElement("td");
    health.append(badge);
    const models = upstream.models.join(", ") || "–";
    row.append(
      element("td", upstream.name, "mono"), health, element("td", short(upstream.in_flight), "number"),
      element("td", short(upstream.load), "number"), element("td", short(upstream.waiting), "number"),
      element("td", percent(upstream.kv_use), "number"), element("td", models),
    );
    return row;
  });
  document.querySelector("[data-upstreams]").replaceChildren(...rows);
}

function say(message, kind, reasons) {
  const state = document.querySelector("[data-problem]");
  if (state.textContent !== message) state.textContent = message;
  state.className = `state ${kind}`;
  const list = document.querySelector("[data-reasons]");
  if (list.textContent === reasons.join("")) return;
  list.replaceChildren(...reasons.map((reason) => element("li", reason)));
}

function element(tag, content, className = "") {
  const made = document.createElement(tag);
  made.textContent = content;
  if (className) made.className = className;
  return made;
}

/** Ask again and again while the page is looked at; one question at a time. */
function follow(url, everyMs, take) {
  let isAsking = false;
  const ask = async () => {
    if (document.hidden || isAsking) return;
    isAsking = true;
    try {
      const answer = await fetch(url, { headers: { accept: "application/json" } });
      if (answer.status === 401) location.reload();
      else if (answer.ok) take(await answer.json());
      else say(text("stale"), "bad", []);
    } catch {
      say(text("stale"), "bad", []);
    }
    isAsking = false;
  };
  setInterval(ask, everyMs);
  document.addEventListener("visibilitychange", ask);
}

draw();
show(JSON.parse(document.querySelector("[data-live]").dataset.live));
follow(`/ui/overview?range=${encodeURIComponent(root.dataset.range)}`, FIGURES_EVERY_MS, (answer) => {
  figures = answer;
  draw();
});
follow("/ui/live", LIVE_EVERY_MS, show);
