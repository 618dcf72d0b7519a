// Numbers, ages and times as people read them.

const MOST_DECIMALS = 6;
const grouped = new Map();

const format = (decimals) => {
  if (!grouped.has(decimals)) {
    grouped.set(
      decimals,
      new Intl.NumberFormat("en", { minimumFractionDigits: decimals, maximumFractionDigits: decimals }),
    );
  }
  return grouped.get(decimals);
};

// How many decimals `value` has, of those that are shown.
export function decimalsOf(value) {
  if (!Number.isFinite(value) || Number.isInteger(value)) return 0;
  const size = Math.abs(value);
  if (size >= 1000) return 1;
  // Three digits that say something, of 0.00341 too.
  const most = size >= 100 ? 1 : size >= 1 ? 2 : Math.min(MOST_DECIMALS, 2 - Math.floor(Math.log10(size)));
  const text = value.toFixed(most).replace(/0+$/, "");
  return text.length - text.indexOf(".") - 1;
}

export function number(value, decimals = decimalsOf(value)) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  const size = Math.abs(value);
  if (size !== 0 && (size >= 1e9 || size < 0.00005)) return value.toExponential(2).replace("e+", "e");
  return format(decimals).format(value).replace("-", "−");
}

export const whole = (value) => format(0).format(value);

export function short(value) {
  const size = Math.abs(value);
  if (size >= 1e9) return `${number(value / 1e9, 1)} G`;
  if (size >= 1e6) return `${number(value / 1e6, 1)} M`;
  return whole(Math.round(value));
}

export function span(seconds) {
  if (seconds < 60) return `${Math.max(0, Math.floor(seconds))} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min`;
  if (seconds < 172800) return `${Math.floor(seconds / 3600)} h`;
  return `${Math.floor(seconds / 86400)} d`;
}

export function age(seconds) {
  if (seconds < -60) return `in ${span(-seconds)}`; // the device's clock is ahead
  return seconds < 1 ? "now" : `${span(seconds)} ago`;
}

export const clock = (ms) => new Date(ms).toLocaleTimeString("en-GB");

export const moment = (ms) =>
  new Date(ms).toLocaleString("en-GB", { day: "numeric", month: "short", hour: "2-digit", minute: "2-digit", second: "2-digit" });

// What a rule asks for, in words.
export function rule(alert) {
  const unit = alert.unit ? ` ${alert.unit}` : "";
  const limit = alert.threshold_value;
  switch (alert.kind) {
    case "max": return `above ${number(limit)}${unit}`;
    case "min": return `below ${number(limit)}${unit}`;
    case "rate": return `${limit < 0 ? "falls" : "rises"} faster than ${number(Math.abs(limit))}${unit}/s`;
    case "silence": return `silent for ${span(limit)}`;
    case "equals": return `is ${alert.threshold_text}`;
    case "differs": return `is not ${alert.threshold_text}`;
    default: return alert.kind;
  }
}
