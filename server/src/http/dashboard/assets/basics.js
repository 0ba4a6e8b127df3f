// Small things that everything uses: elements, figures for people, settings that a browser keeps.

const SVG = "http://www.w3.org/2000/svg";
const find = (id) => document.getElementById(id);

/** An element with attributes and children; a text child is only ever text. */
function element(name, attributes = {}, ...children) {
  return fill(document.createElement(name), attributes, children);
}

function shape(name, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, name), attributes, children);
}

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === true) node.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

/** Writes only what is new: the browser then has nothing to lay out. */
function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

function setAttribute(node, name, value) {
  if (node.getAttribute(name) !== value) node.setAttribute(name, value);
}

const THIN = "\u202f";
const NONE = "–";
const isNumber = (value) => typeof value === "number" && Number.isFinite(value);

function digits(value) {
  const size = Math.abs(value);
  if (size >= 100 || Number.isInteger(value)) return value.toFixed(0);
  if (size >= 10) return value.toFixed(1);
  return size >= 0.01 ? value.toFixed(2) : value.toPrecision(1);
}

function scaled(value, step, units) {
  if (!isNumber(value)) return [NONE, ""];
  let unit = 0;
  // 999.6 would be shown as 1000.
  while (Math.abs(value) >= step * 0.9995 && unit < units.length - 1) {
    value /= step;
    unit += 1;
  }
  if (Math.abs(value) < 0.001) value = 0;
  return [unit === 0 && Math.abs(value) >= 10 ? value.toFixed(0) : digits(value), units[unit]];
}

const joined = ([number, unit]) => (unit ? number + THIN + unit : number);
const numberParts = (value) => scaled(value, 1000, ["", "K", "M", "G", "T"]);
const bytesParts = (value) => scaled(value, 1024, ["B", "KiB", "MiB", "GiB", "TiB"]);
const number = (value) => joined(numberParts(value));
const bytes = (value) => joined(bytesParts(value));
const whole = (value) => (isNumber(value) ? Math.round(value).toLocaleString("en-US") : NONE);

function microsParts(value) {
  if (!isNumber(value)) return [NONE, ""];
  return value < 999.5 ? [digits(value), "µs"] : value < 999500 ? [digits(value / 1e3), "ms"] : [digits(value / 1e6), "s"];
}
const micros = (value) => joined(microsParts(value));

/** A ratio; never shown as 100 % or 0 % when it is not. */
function percentParts(value) {
  if (!isNumber(value)) return [NONE, ""];
  const percent = value * 100;
  if (percent === 0 || percent === 100) return [String(percent), "%"];
  const places = percent > 99 ? 2 : 1;
  const least = 10 ** -places;
  return [Math.min(100 - least, Math.max(least, percent)).toFixed(places), "%"];
}
const percent = (value) => joined(percentParts(value));

function duration(ms) {
  if (!isNumber(ms)) return NONE;
  const seconds = Math.floor(ms / 1000);
  const parts = [[Math.floor(seconds / 86400), "d"], [Math.floor(seconds / 3600) % 24, "h"],
    [Math.floor(seconds / 60) % 60, "m"], [seconds % 60, "s"]];
  const first = parts.findIndex(([amount]) => amount > 0);
  if (first < 0) return ms > 0 ? `${Math.ceil(ms)}${THIN}ms` : `0${THIN}s`;
  return parts.slice(first, first + 2).filter(([amount], place) => place === 0 || amount > 0)
    .map(([amount, unit]) => `${amount}${THIN}${unit}`).join(" ");
}

const two = (value) => String(value).padStart(2, "0");

function clock(ms, withSeconds = true) {
  const at = new Date(ms);
  const minutes = `${two(at.getHours())}:${two(at.getMinutes())}`;
  return withSeconds ? `${minutes}:${two(at.getSeconds())}` : minutes;
}

const plural = (amount, one, many) => `${whole(amount)} ${amount === 1 ? one : many}`;

/** What a browser remembers between visits, where it lets us. */
const remembered = {
  get(name) {
    try { return localStorage.getItem(`kiln.${name}`); } catch { return null; }
  },
  set(name, value) {
    try { localStorage.setItem(`kiln.${name}`, value); } catch { /* Then not. */ }
  },
};

/** Buttons of which one is pressed. Returns a function that presses another. */
function choice(host, options, chosen, onChoose) {
  const buttons = new Map();
  const press = (value) => {
    for (const [key, button] of buttons) setAttribute(button, "aria-pressed", String(key === value));
  };
  const list = options.map(([value, title, label]) => {
    const button = element("button", { type: "button", "aria-label": label }, title);
    button.addEventListener("click", () => { press(value); onChoose(value); });
    buttons.set(value, button);
    return button;
  });
  host.replaceChildren(...list);
  press(chosen);
  return press;
}

/** Calls back once for many calls in a row, before the next frame. */
function coalesced(callback) {
  let due = false;
  return () => {
    if (due) return;
    due = true;
    requestAnimationFrame(() => { due = false; callback(); });
  };
}

const ICONS = {
  good: "M8 1a7 7 0 1 0 0 14A7 7 0 0 0 8 1zm-1 10L3.8 7.8l1.3-1.3L7 8.4l3.9-3.9 1.3 1.3z",
  warn: "M8 1 .5 14.5h15zM7.1 6h1.8v4H7.1zm0 5h1.8v1.8H7.1z",
  bad: "M5 1h6l4 4v6l-4 4H5l-4-4V5zm2.1 3v5h1.8V4zm0 6v1.8h1.8V10z",
  rest: "M8 1a7 7 0 1 0 0 14A7 7 0 0 0 8 1zm-.9 6h1.8v5H7.1zm0-3h1.8v1.8H7.1z",
  unknown: "M8 2a6 6 0 1 0 0 12A6 6 0 0 0 8 2zm0 1.6a4.4 4.4 0 1 1 0 8.8 4.4 4.4 0 0 1 0-8.8z",
};
const icon = (kind) => shape("svg", { viewBox: "0 0 16 16", "aria-hidden": "true" }, shape("path", { d: ICONS[kind] }));

/** A bar that shows a part of a whole. */
function meter() {
  const bar = element("span");
  const host = element("span", { class: "meter", "aria-hidden": "true" }, bar);
  return { host, set: (part) => { bar.style.width = `${Math.max(0, Math.min(1, part || 0)) * 100}%`; } };
}
