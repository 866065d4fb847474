// Numbers and durations, as formats.py writes them.

const NONE = "–";

/** 950, 12.3K, 4.56M: three digits. */
export function short(value) {
  if (value == null) return NONE;
  for (const [unit, size] of [["B", 1e9], ["M", 1e6], ["K", 1e3]]) {
    if (Math.abs(value) >= size * 0.9995) {
      const scaled = value / size;
      return scaled.toFixed(scaled < 9.995 ? 2 : scaled < 99.95 ? 1 : 0) + unit;
    }
  }
  return value.toFixed(Number.isInteger(value) ? 0 : 1);
}

/** 8.2 ms, 340 ms, 1.25 s, 2.1 min. */
export function milliseconds(value) {
  if (value == null) return NONE;
  if (value < 999.5) return `${value.toFixed(value < 9.95 ? 1 : 0)} ms`;
  return value < 59995 ? `${(value / 1000).toFixed(2)} s` : `${(value / 60000).toFixed(1)} min`;
}

/** 0.4 %. */
export function percent(value) {
  if (value == null) return NONE;
  return value > 0 && value < 0.0995 ? `${(value * 100).toFixed(1)} %` : `${(value * 100).toFixed(0)} %`;
}

/** Durations beside an axis: all in one unit, with the digits that tell two of them apart. */
export function durations(values) {
  const isMs = Math.max(...values) < 1000;
  const scaled = values.map((value) => (isMs ? value : value / 1000));
  return scaled.map((value) => (value === 0 ? "0" : `${value.toFixed(decimals(scaled))} ${isMs ? "ms" : "s"}`));
}

/** Amounts beside an axis, likewise. */
export function amounts(values, currency) {
  return values.map((value) => (value === 0 ? "0" : money(value, currency, Math.max(decimals(values), values.at(-1) < 1 ? 2 : 0))));
}

function decimals(values) {
  const step = values.length > 1 ? values[1] - values[0] : values[0] || 1;
  for (let digits = 0; digits < 9; digits++) if (Math.abs(step - Number(step.toFixed(digits))) < step / 1000) return digits;
  return 9;
}

const SIGNS = { USD: "$", CNY: "¥", EUR: "€", GBP: "£", JPY: "¥" };

/** $1,234.50, ¥0.0042: two digits after the point, or as many as show two digits that count; or so many as are given. */
export function money(value, currency, given) {
  if (value == null) return NONE;
  const size = Math.abs(value);
  const digits = given ?? (size === 0 || size >= 0.1 ? 2 : Math.min(9, 1 - Math.floor(Math.log10(size))));
  const amount = size.toLocaleString("en-US", { minimumFractionDigits: given ?? 2, maximumFractionDigits: digits });
  return `${value < 0 ? "-" : ""}${SIGNS[currency] ?? `${currency}\u00a0`}${amount}`;
}
