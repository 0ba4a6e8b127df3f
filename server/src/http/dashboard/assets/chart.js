// A chart of some series over time. Drawn anew each second, in SVG, at the size it has.

const MARGIN = { top: 14, bottom: 20 };
const GAP_S = 3;

/** Steps of a scale: few, round, from 0. */
function linearScale(most) {
  if (!(most > 0)) return { top: 1, steps: [] };
  const rough = most / 3;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((factor) => factor * power).find((size) => size >= rough);
  const count = Math.max(1, Math.ceil(most / step - 1e-9));
  return { top: count * step, steps: Array.from({ length: count }, (_, place) => (place + 1) * step) };
}

/** Steps in binary units look round to those who read bytes. */
function bytesScale(most) {
  const unit = 1024 ** Math.max(0, Math.floor(Math.log(Math.max(1, most)) / Math.log(1024)));
  const scale = linearScale(most / unit);
  return { top: scale.top * unit, steps: scale.steps.map((step) => step * unit) };
}

const clean = (list) => list.filter((value) => value !== null);

/** The highest of what is seen sets a scale, the lowest too where it is not 0. */
const SCALES = {
  linear: (values) => ({ low: 0, ...linearScale(Math.max(0, ...values)), place: (value, low, top) => (value - low) / (top - low) }),
  bytes: (values) => ({ low: 0, ...bytesScale(Math.max(0, ...values)), place: (value, low, top) => (value - low) / (top - low) }),
  ratio: (values) => {
    const least = values.length ? Math.min(...values) : 0;
    const low = [0.99, 0.95, 0.9, 0.8, 0.5].find((step) => least >= step + (1 - step) * 0.05) ?? 0;
    const steps = [0.25, 0.5, 0.75, 1].map((part) => low + (1 - low) * part);
    return { low, top: 1, steps: low === 0 ? steps : [low, ...steps.filter((_, place) => place % 2 === 1)], place: (value, from, top) => (value - from) / (top - from) };
  },
  log: (values) => {
    const above = values.filter((value) => value > 0);
    const low = 10 ** Math.floor(Math.log10(above.length ? Math.min(...above) : 1));
    const top = Math.max(low * 10, 10 ** Math.ceil(Math.log10(above.length ? Math.max(...above) : 10) - 1e-9));
    const steps = [];
    for (let step = low * 10; step <= top * 1.001; step *= 10) steps.push(step);
    return { low, top, steps, place: (value, from, to) => Math.log(Math.max(value, from) / from) / Math.log(to / from) };
  },
};

class Chart {
  /**
   * `series`: `{ name, read, color, dash, area, quiet }`; `read` takes a row and gives a number or
   * null. A quiet series does not set the scale. `stacked` adds them up.
   */
  constructor({ title, series, format, scale = "linear", stacked = false, none = "Nothing yet", options = null }) {
    Object.assign(this, { title, series, format, scale, stacked, none });
    this.svg = shape("svg", { "aria-hidden": "true" });
    this.plot = element("div", { class: "plot", tabindex: "0", role: "img" }, this.svg);
    this.legend = element("ul", { class: "legend" });
    this.heading = element("header", {}, element("h3", {}, title));
    if (options) this.heading.append(options);
    this.host = element("figure", { class: "card chart" }, this.heading, this.legend, this.plot);
    this.size = { width: 0, height: 0 };
    this.values = [];
    this.makeLegend();
    new ResizeObserver(([entry]) => {
      this.size = { width: Math.round(entry.contentRect.width), height: Math.round(entry.contentRect.height) };
      this.draw();
    }).observe(this.plot);
    this.plot.addEventListener("pointermove", (event) => this.point(event.clientX));
    this.plot.addEventListener("pointerleave", () => timeline.point(null));
    this.plot.addEventListener("blur", () => timeline.point(null));
    this.plot.addEventListener("keydown", (event) => this.key(event));
    timeline.charts.push(this);
  }

  setSeries(series) {
    this.series = series;
    this.makeLegend();
    this.draw();
  }

  makeLegend() {
    this.values = this.series.map(() => element("b", {}, NONE));
    this.legend.replaceChildren(...this.series.map((one, place) => element("li", {},
      shape("svg", { viewBox: "0 0 14 8", "aria-hidden": "true" },
        shape("path", { d: "M0 4h14", class: `c${one.color}`, "stroke-width": 2.5, "stroke-dasharray": one.dash ?? "none" })),
      one.name, this.values[place])));
  }

  point(clientX) {
    const box = this.plot.getBoundingClientRect();
    const { from, to } = timeline.window();
    timeline.point(from + ((clientX - box.left) / Math.max(1, box.width)) * (to - from));
  }

  key(event) {
    const { from, to } = timeline.window();
    const step = { ArrowLeft: -1, ArrowRight: 1, PageUp: -30, PageDown: 30 }[event.key];
    if (step) timeline.point(Math.max(from, Math.min(to, (timeline.cursor ?? to) + step)));
    else if (event.key === "Home") timeline.point(from);
    else if (event.key === "End") timeline.point(to);
    else if (event.key === "Escape") timeline.point(null);
    else return;
    event.preventDefault();
  }

  draw() {
    const { width, height } = this.size;
    if (width < 20 || height < 40) return;
    const { from, to } = timeline.window();
    const rows = timeline.rows();
    const lines = this.lines(rows);
    const seen = this.series.flatMap((one, place) => (one.quiet ? [] : clean(lines[place])));
    const scale = SCALES[this.scale](seen);
    const x = (time) => ((time - from) / (to - from)) * width;
    const y = (value) => height - MARGIN.bottom - scale.place(value, scale.low, scale.top) * (height - MARGIN.top - MARGIN.bottom);

    const [grid, labels] = this.grid(scale, x, y, width, height);
    const [areas, curves] = [[], []];
    // Where areas are stacked, a lower one covers those above it: each shows its own band.
    const order = this.stacked ? [...lines.keys()].reverse() : [...lines.keys()];
    for (const place of order) {
      const one = this.series[place];
      const { line, area } = paths(rows, lines[place], x, y, y(scale.low));
      if (!line) continue;
      if (one.area) areas.push(shape("path", { d: area, class: `area f${one.color}` }));
      curves.push(shape("path", { d: line, class: `series c${one.color}`, "stroke-dasharray": one.dash ?? "none" }));
    }
    const parts = [...areas, ...grid, ...curves, ...labels];
    if (seen.length === 0) parts.push(shape("text", { class: "none", x: width / 2, y: height / 2 }, this.none));
    if (timeline.cursor !== null) {
      const at = Math.round(x(timeline.cursor)) + 0.5;
      parts.push(shape("line", { class: "cursor", x1: at, x2: at, y1: 0, y2: height - MARGIN.bottom }));
      parts.push(shape("text", { x: Math.min(width - 52, at + 4), y: 10 }, clock(timeline.cursor * 1000)));
    }
    this.svg.replaceChildren(...parts);
    this.tell(rows);
  }

  lines(rows) {
    const lines = this.series.map((one) => rows.map(one.read));
    if (!this.stacked) return lines;
    for (let place = 1; place < lines.length; place += 1) {
      lines[place] = lines[place].map((value, at) => (value === null ? lines[place - 1][at] : value + (lines[place - 1][at] ?? 0)));
    }
    return lines;
  }

  grid(scale, x, y, width, height) {
    const [parts, labels] = [[], []];
    const base = Math.round(height - MARGIN.bottom) + 0.5;
    for (const step of scale.steps) {
      const at = Math.round(y(step)) + 0.5;
      if (base - at > 6) parts.push(shape("line", { class: "grid", x1: 0, x2: width, y1: at, y2: at }));
      labels.push(shape("text", { x: 2, y: at - 3 }, this.format(step)));
    }
    parts.push(shape("line", { class: "base", x1: 0, x2: width, y1: base, y2: base }));
    for (const [time, label] of timeline.labels(width)) {
      const at = x(time);
      if (at < 4 || at > width - 34) continue;
      parts.push(shape("line", { class: "base", x1: at, x2: at, y1: base, y2: base + 4 }));
      labels.push(shape("text", { x: at + 3, y: height - 5 }, label));
    }
    return [parts, labels];
  }

  /** Puts the figures at the cursor, or the newest, into the legend. */
  tell(rows) {
    const row = timeline.rowAt(rows);
    const told = this.series.map((one, place) => {
      const value = row ? one.read(row) : null;
      const text = value === null ? NONE : this.format(value);
      setText(this.values[place], text);
      return `${one.name} ${text}`;
    });
    const when = timeline.cursor === null ? "now" : `at ${clock(timeline.cursor * 1000)}`;
    setAttribute(this.plot, "aria-label", `${this.title}, ${when}: ${told.join(", ")}`);
  }
}

function paths(rows, values, x, y, base) {
  let [line, area, start, last] = ["", "", null, null];
  const close = () => {
    if (start !== null) area += `L${last.toFixed(1)} ${base.toFixed(1)}L${start.toFixed(1)} ${base.toFixed(1)}Z`;
    start = null;
  };
  let before = null;
  rows.forEach((row, place) => {
    const value = values[place];
    if (value === null) { close(); return; }
    const time = row[0];
    const point = `${x(time).toFixed(1)} ${y(value).toFixed(1)}`;
    if (start === null || time - before > GAP_S) {
      close();
      // A point alone would not be seen.
      line += `M${point}h.1`;
      area += `M${point}`;
      start = x(time);
    } else {
      line += `L${point}`;
      area += `L${point}`;
    }
    last = x(time);
    before = time;
  });
  close();
  return { line, area };
}

/** The time that all charts show, and the moment that is pointed at. */
const timeline = {
  charts: [],
  seconds: 600,
  cursor: null,

  window() {
    const to = lastRow()[0] ?? model.now / 1000;
    return { from: to - this.seconds, to };
  },

  rows() {
    const { from } = this.window();
    const first = model.rows.findIndex((row) => row[0] >= from);
    // One more to the left, so that lines come in from the edge.
    return first < 0 ? [] : model.rows.slice(Math.max(0, first - 1));
  },

  rowAt(rows) {
    if (this.cursor === null) return rows.at(-1);
    const near = rows.reduce((best, row) => (!best || Math.abs(row[0] - this.cursor) < Math.abs(best[0] - this.cursor) ? row : best), null);
    return near && Math.abs(near[0] - this.cursor) <= GAP_S ? near : null;
  },

  labels(width) {
    const { from, to } = this.window();
    const steps = [10, 15, 30, 60, 120, 300];
    const step = steps.find((size) => (size / this.seconds) * width >= 62) ?? 600;
    const labels = [];
    for (let time = Math.ceil(from / step) * step; time <= to; time += step) labels.push([time, clock(time * 1000, step < 60)]);
    return labels;
  },

  point(time) {
    this.cursor = time;
    this.redraw();
  },

  redraw: coalesced(() => timeline.charts.forEach((chart) => chart.draw())),
};
