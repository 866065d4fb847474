// Charts over time with uPlot: stacked bars, or lines; the legend shows the values under the pointer.

const DAY_S = 86400;
const MAX_POINTS = 48;

/** One figure with a legend and a plot. */
export class TimeChart {
  /** `lines` are what is drawn; `overall` is what the legend says of each while nothing is pointed at. */
  constructor(figure, { colors, isStacked, format, ticks, lines, overall }) {
    this.plot = figure.querySelector(".plot");
    this.outputs = [...figure.querySelectorAll(".legend output")];
    this.moment = figure.querySelector("[data-at]");
    this.options = { colors, isStacked, format, ticks, lines, overall };
    new ResizeObserver(() => this.resize()).observe(this.plot);
    const redraw = () => { if (this.times) this.draw(this.times, this.slotS); };
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  }

  /** Show the values at these times, which are the beginnings of slots. */
  draw(times, slotS) {
    this.times = times;
    this.slotS = slotS;
    this.lines = this.options.lines();
    this.chart?.destroy();
    this.chart = new globalThis.uPlot(this.#config(), this.#data(), this.plot);
    this.#tell(null);
  }

  resize() {
    const { width, height } = this.plot.getBoundingClientRect();
    if (this.chart && width > 0) this.chart.setSize({ width, height });
  }

  #data() {
    if (!this.options.isStacked) return [this.times, ...this.lines];
    // The tallest stack is drawn first, the lower ones over it.
    const sums = this.lines.map((_, at) => this.times.map((_, slot) => total(this.lines.slice(0, at + 1), slot)));
    return [this.times, ...sums.reverse()];
  }

  #config() {
    const { width, height } = this.plot.getBoundingClientRect();
    const { isStacked } = this.options;
    const colors = this.options.colors.slice(0, this.lines.length); // uPlot draws nothing when it misses a line
    const order = isStacked ? [...colors].reverse() : colors;
    const text = color(this.plot, "--muted");
    const grid = { stroke: color(this.plot, "--line"), width: 1 };
    const font = `11px ${getComputedStyle(this.plot).fontFamily}`;
    return {
      width,
      height,
      legend: { show: false },
      cursor: { y: false, points: { show: !isStacked, size: 6 }, drag: { setScale: false, x: false, y: false } },
      scales: { x: { time: true, range: (_, min, max) => [min - this.slotS / 2, max + this.slotS / 2] }, y: { range: (_, __, max) => [0, max > 0 ? max * 1.1 : 1] } },
      series: [{}, ...order.map((name, at) => this.#series(color(this.plot, name), isStacked, this.lines[at]))],
      axes: [
        { stroke: text, font, grid: { show: false }, ticks: { show: false }, space: 60, size: 26, values: (_, splits) => once(splits.map((at) => this.#when(at))) },
        { stroke: text, font, grid, ticks: { show: false }, size: 58, space: 38, values: (_, splits) => this.options.ticks(splits) },
      ],
      tzDate: (at) => globalThis.uPlot.tzDate(new Date(at * 1000), "Etc/UTC"),
      hooks: { setCursor: [(chart) => this.#tell(chart.cursor.idx)] },
    };
  }

  #series(stroke, isStacked, line) {
    if (isStacked) {
      return { stroke, fill: stroke, width: 0, points: { show: false }, paths: globalThis.uPlot.paths.bars({ size: [0.8, 40], align: 0 }) };
    }
    // uPlot leaves points out where slots are narrow; but one value alone makes no line either.
    const show = line.filter((value) => value != null).length <= MAX_POINTS;
    return { stroke, width: 1.75, spanGaps: true, points: { show, size: 4, fill: stroke } };
  }

  /** The legend's values: at a slot with its time, or of the whole range. */
  #tell(slot) {
    const values = slot == null ? this.options.overall() : this.lines.map((line) => line[slot]);
    this.outputs.forEach((output, number) => { output.textContent = this.options.format(values[number]); });
    this.moment.textContent = slot == null ? "" : this.#exactly(this.times[slot]);
  }

  #exactly(at) {
    const time = this.slotS < DAY_S ? { hour: "2-digit", minute: "2-digit", hourCycle: "h23" } : {};
    return new Intl.DateTimeFormat(document.documentElement.lang, { month: "short", day: "numeric", ...time, timeZone: "UTC" }).format(at * 1000);
  }

  #when(at) {
    const isDay = this.slotS >= 3 * 3600 || at % DAY_S === 0;
    const parts = isDay ? { month: "short", day: "numeric" } : { hour: "2-digit", minute: "2-digit", hourCycle: "h23" };
    return new Intl.DateTimeFormat(document.documentElement.lang, { ...parts, timeZone: "UTC" }).format(at * 1000);
  }
}

/** Labels without those that say the same as the one before. */
function once(labels) {
  return labels.map((label, at) => (label === labels[at - 1] ? "" : label));
}

function total(lines, slot) {
  return lines.reduce((sum, line) => sum + line[slot], 0);
}

/** A custom property as a colour that a canvas understands. */
function color(element, name) {
  const probe = document.createElement("span");
  probe.style.color = `var(${name})`;
  element.append(probe);
  const value = getComputedStyle(probe).color;
  probe.remove();
  return value;
}
