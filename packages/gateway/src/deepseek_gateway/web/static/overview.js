// The overview: charts, and figures that follow what happens.

import { text } from "./app.js";
import { milliseconds, money, percent, short } from "./formats.js";
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
    format: isLatency ? milliseconds : name === "cost" ? (value) => money(value, figures.currency) : short,
    lines: () => linesOf(name),
  });
});

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
  for (const chart of charts) chart.draw(figures.times, figures.slot_s);
  const totals = figures.totals;
  const tiles = {
    requests: short(totals.requests),
    tokens: short(totals.tokens),
    cost: totals.cost,
    cached: percent(totals.prompt_tokens ? totals.cached_tokens / totals.prompt_tokens : null),
    errors: percent(totals.error_rate),
    ttft_p50: milliseconds(totals.ttft_p50_ms),
    ttft_p95: milliseconds(totals.ttft_p95_ms),
    latency_p50: milliseconds(totals.latency_p50_ms),
    latency_p95: milliseconds(totals.latency_p95_ms),
  };
  for (const [name, value] of Object.entries(tiles)) {
    const tile = document.querySelector(`[data-tile="${name}"]`);
    if (tile) tile.textContent = value;
  }
}

function show(live) {
  for (const place of document.querySelectorAll("[data-now]")) place.textContent = short(live[place.dataset.now]);
  for (const place of document.querySelectorAll("[data-queued] span")) place.textContent = short(live.queued[place.parentElement.dataset.queued]);
  say(live.problem ?? text("ready"), live.problem !== null);
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

function say(message, isBad) {
  const state = document.querySelector("[data-problem]");
  if (state.textContent !== message) state.textContent = message;
  state.classList.toggle("bad", isBad);
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
      else say(text("stale"), true);
    } catch {
      say(text("stale"), true);
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
