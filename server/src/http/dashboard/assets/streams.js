// Streams: a table of them, the sensors of the one chosen with their latest values, and the windows
// and alarms of one sensor. The table comes with the ticks; the rest is asked for at /v1, while
// someone can see it.

const STREAM_POLL_MS = 2000;
const SENSORS_SHOWN = 100;
const SENSOR_PAGES_MAX = 16;
const WINDOWS_SHOWN = 120;
const FORECAST_SHOWN = 12;
const NO_FIGURES = ["start", "end", "revision", "filled", "merged", "count"];

/** Steps of a scale that need not begin at 0. */
function spanScale(low, high) {
  if (!(high > low)) [low, high] = [low - Math.max(1e-9, Math.abs(low) * 0.05), high + Math.max(1e-9, Math.abs(high) * 0.05)];
  const rough = (high - low) / 3;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((factor) => factor * power).find((size) => size >= rough);
  const first = Math.ceil(low / step);
  const steps = Array.from({ length: Math.floor(high / step) - first + 1 }, (_, place) => (first + place) * step);
  return { low, high, steps, places: Math.max(0, Math.min(6, -Math.floor(Math.log10(step) + 1e-9))) };
}

const figureText = (value) => (isNumber(value) ? String(Number(value.toPrecision(6))) : NONE);

/**
 * The windows of a sensor: a figure as a line, between least and greatest where those are known, and what is
 * expected after them as a broken line in its band.
 */
class WindowChart {
  constructor(plot, detail) {
    Object.assign(this, { plot, detail, windows: [], alarms: [], forecast: null, figure: "mean", none: "Choose a sensor", cursor: null, size: { width: 0, height: 0 } });
    this.svg = shape("svg", { "aria-hidden": "true" });
    plot.append(this.svg);
    new ResizeObserver(([entry]) => {
      this.size = { width: Math.round(entry.contentRect.width), height: Math.round(entry.contentRect.height) };
      this.draw();
    }).observe(plot);
    plot.addEventListener("pointermove", (event) => this.point(event.clientX - plot.getBoundingClientRect().left));
    plot.addEventListener("pointerleave", () => this.move(null));
    plot.addEventListener("blur", () => this.move(null));
    plot.addEventListener("keydown", (event) => this.key(event));
  }

  show({ windows, alarms, forecast, figure, none }) {
    // The one that is pointed at stays so while new ones come.
    const at = this.windows[this.cursor]?.start;
    Object.assign(this, { windows, alarms, forecast, figure, none });
    const place = windows.findIndex((window) => window.start === at);
    this.cursor = place < 0 ? null : place;
    this.draw();
  }

  point(across) {
    if (!this.x) return;
    const near = this.windows.reduce((best, window, place) => {
      const distance = Math.abs(this.x(middle(window)) - across);
      return distance < best[0] ? [distance, place] : best;
    }, [Infinity, null]);
    this.move(near[1]);
  }

  key(event) {
    const last = this.windows.length - 1;
    const step = { ArrowLeft: -1, ArrowRight: 1, PageUp: -10, PageDown: 10 }[event.key];
    if (last < 0) return;
    if (step) this.move(Math.max(0, Math.min(last, (this.cursor ?? last) + step)));
    else if (event.key === "Home") this.move(0);
    else if (event.key === "End") this.move(last);
    else if (event.key === "Escape") this.move(null);
    else return;
    event.preventDefault();
  }

  move(place) {
    if (place === this.cursor) return;
    this.cursor = place;
    this.draw();
  }

  draw() {
    const { width, height } = this.size;
    if (width < 20 || height < 40) return;
    const known = this.windows.filter((window) => isNumber(window[this.figure]));
    const hasBand = this.figure === "mean" && known.length > 0 && known.every((window) => isNumber(window.min) && isNumber(window.max));
    const base = Math.round(height - MARGIN.bottom) + 0.5;
    const parts = [shape("line", { class: "base", x1: 0, x2: width, y1: base, y2: base })];
    if (known.length === 0) {
      this.x = null;
      parts.push(shape("text", { class: "none", x: width / 2, y: height / 2 }, this.none));
    } else {
      const values = known.flatMap((window) => (hasBand ? [window.min, window.max] : [window[this.figure]]));
      const expected = this.forecast?.figure === this.figure ? this.forecast.windows : [];
      const [from, to] = [known[0].start, Math.max((expected.at(-1) ?? known.at(-1)).end, known[0].start + 1)];
      const alarms = this.alarms.filter((alarm) => alarm.time >= from && alarm.time < to);
      const told = this.figure === "mean" ? alarms.map((alarm) => alarm.value) : [];
      told.push(...expected.flatMap((window) => [window.low, window.high]));
      const scale = spanScale(Math.min(...values, ...told), Math.max(...values, ...told));
      const x = this.x = (time) => ((time - from) / (to - from)) * width;
      const y = (value) => base - ((value - scale.low) / (scale.high - scale.low)) * (base - MARGIN.top - 6) - 4;
      parts.push(...this.grid(scale, x, y, from, to));
      if (hasBand) {
        const edge = (name) => known.map((window) => `${x(middle(window)).toFixed(1)} ${y(window[name]).toFixed(1)}`);
        parts.unshift(shape("path", { class: "area f3", d: `M${edge("max").join("L")}L${edge("min").reverse().join("L")}Z` }));
      }
      if (expected.length) {
        const last = { ...known.at(-1), value: known.at(-1)[this.figure] };
        const at = (window, name) => `${x(middle(window)).toFixed(1)} ${y(window[name] ?? window.value).toFixed(1)}`;
        const from = { start: last.start, end: last.end, value: last.value };
        const band = [...[from, ...expected].map((window) => at(window, "high")), ...[...expected].reverse().map((window) => at(window, "low"))];
        parts.unshift(shape("path", { class: "area f3 expected", d: `M${band.join("L")}Z` }));
        parts.push(shape("path", { class: "series c3 expected", d: `M${[from, ...expected].map((window) => at(window, "value")).join("L")}` }));
      }
      const points = known.map((window) => `${x(middle(window)).toFixed(1)} ${y(window[this.figure]).toFixed(1)}`);
      parts.push(shape("path", { class: "series c3", d: known.length === 1 ? `M${points[0]}h.1` : `M${points.join("L")}` }));
      parts.push(...alarms.map((alarm) => mark(alarm, x(alarm.time), this.figure === "mean" ? y(alarm.value) : MARGIN.top)));
    }
    const chosen = this.cursor === null ? null : this.windows[this.cursor];
    if (chosen && this.x) {
      const at = Math.round(this.x(middle(chosen))) + 0.5;
      parts.push(shape("line", { class: "cursor", x1: at, x2: at, y1: 0, y2: base }));
    }
    this.svg.replaceChildren(...parts);
    this.tell(chosen ?? this.windows.at(-1), known.length);
  }

  grid(scale, x, y, from, to) {
    const [lines, labels] = [[], []];
    const width = this.size.width;
    for (const step of scale.steps) {
      const at = Math.round(y(step)) + 0.5;
      lines.push(shape("line", { class: "grid", x1: 0, x2: width, y1: at, y2: at }));
      labels.push(shape("text", { x: 2, y: at - 3 }, step.toFixed(scale.places)));
    }
    const count = Math.max(1, Math.floor(width / 110));
    for (let place = 0; place < count; place += 1) {
      const time = from + ((to - from) * place) / count;
      labels.push(shape("text", { x: x(time) + 2, y: this.size.height - 5 }, moment(time, to - from)));
    }
    return [...lines, ...labels];
  }

  tell(window, count) {
    const alarms = window ? this.alarms.filter((alarm) => alarm.time >= window.start && alarm.time < window.end) : [];
    const figures = window ? Object.entries(window).filter(([name]) => !NO_FIGURES.includes(name)).map(([name, value]) => `${name} ${figureText(value)}`) : [];
    const words = window
      ? [`${moment(window.start, 0)} – ${moment(window.end, 0)}`, plural(window.count ?? 0, "reading", "readings"), ...figures, ...alarms.map((alarm) => `${alarm.detector} ${alarm.kind}`)].join(" · ")
      : "";
    setText(this.detail, words);
    setAttribute(this.plot, "aria-label", window ? `${plural(count, "window", "windows")} of ${this.figure}. ${words}` : this.none);
  }
}

const middle = (window) => (window.start + window.end) / 2;

function moment(time, span) {
  const day = span > 86_400_000 || Math.abs(time - model.now) > 86_400_000;
  const at = new Date(time);
  return day ? `${at.getFullYear()}-${two(at.getMonth() + 1)}-${two(at.getDate())} ${clock(time, false)}` : clock(time);
}

/** A triangle where an alarm was raised, a ring where it ended. */
function mark(alarm, x, y) {
  const title = shape("title", {}, `${alarm.detector} ${alarm.kind}: ${figureText(alarm.value)}`);
  return alarm.kind === "raised"
    ? shape("path", { class: "alarm", d: `M${x.toFixed(1)} ${(y - 6).toFixed(1)}l5.5 9.5h-11z` }, title)
    : shape("circle", { class: "alarm over", cx: x.toFixed(1), cy: y.toFixed(1), r: 3.5 }, title);
}

const streamsSection = {
  stream: null,
  sensor: null,
  sensors: [],
  shown: { windows: [], alarms: [], forecast: null },
  figures: [],
  asked: 0,

  start() {
    const column = (id, title, format, level) => ({ id, title, numeric: true, level, sort: (stream) => stream[id] ?? null, text: (stream) => format(stream[id]) });
    const counted = (id, title, level) => ({ id, title, numeric: true, level, sort: (stream) => stream[id], text: (stream) => (stream[`${id}_per_s`] > 0 ? `${number(stream[id])} (+${number(stream[`${id}_per_s`])}/s)` : number(stream[id])) });
    this.table = new Table(find("streams-table"), {
      label: "Streams", key: (stream) => stream.name, search: (stream) => stream.name, empty: "No streams.", sorted: ["name", 1],
      onChoose: (stream) => this.choose(stream.name),
      columns: [
        { id: "name", title: "Name", sort: (stream) => stream.name, text: (stream) => stream.name },
        column("readings_per_s", "Readings/s", number),
        column("sensors", "Sensors", number, 2),
        column("results_per_s", "Results/s", number, 2),
        column("lag_ms", "Watermark lag", (ms) => (isNumber(ms) ? (ms < 0 ? "ahead" : duration(ms)) : NONE)),
        counted("late", "Late", 2),
        counted("rejected", "Rejected", 3),
        column("alarms", "Alarms", number, 2),
        column("state_bytes", "State", bytes, 3),
      ],
    });
    this.chart = new WindowChart(find("stream-plot"), find("stream-detail"));
    find("stream-choice").addEventListener("change", () => this.choose(find("stream-choice").value));
    find("stream-window").addEventListener("change", () => this.ask(true));
    find("stream-figure").addEventListener("change", () => { this.drawChart(); this.ask(true); });
    find("stream-prefix").addEventListener("input", () => this.ask(true));
    setInterval(() => this.ask(false), STREAM_POLL_MS);
  },

  draw() {
    const streams = model.streams;
    find("streams").hidden = find("nav-streams").hidden = streams.length === 0;
    if (streams.length === 0) return;
    const names = streams.map((stream) => stream.name);
    const select = find("stream-choice");
    if (names.join(" ") !== this.names) {
      this.names = names.join(" ");
      select.replaceChildren(...names.map((name) => element("option", { value: name }, name)));
      select.value = this.stream ?? "";
    }
    this.table.chosen = this.stream;
    this.table.show(streams);
    if (!names.includes(this.stream)) this.choose(names[0]);
  },

  known() { return model.streams.find((stream) => stream.name === this.stream); },

  choose(name) {
    if (name !== this.stream) {
      Object.assign(this, { stream: name, sensor: null, sensors: [], figures: [] });
      this.take({ windows: [], alarms: [], forecast: null });
      const windows = this.known()?.windows ?? [];
      find("stream-window").replaceChildren(...(windows.length ? windows : [""]).map((one) => element("option", { value: one }, one || "none")));
    }
    find("stream-choice").value = name;
    this.table.chosen = name;
    this.table.draw();
    this.drawSensors();
    this.ask(true);
  },

  /** Asks for what is shown beside the table; again and again while someone can see it. */
  async ask(now) {
    if (!this.stream || feed.state !== "live" || document.hidden || find("streams").hidden) return;
    if (!now && (this.asking || !this.isInView())) return;
    this.abort?.abort();
    const abort = this.abort = new AbortController();
    this.asking = true;
    try {
      const told = await this.fetchAll(abort.signal);
      if (this.abort === abort && told) this.take(told);
    } catch { /* Broken off for a newer question, or the node is gone: the page says so elsewhere. */ }
    if (this.abort === abort) this.asking = false;
  },

  isInView() {
    const box = find("streams").getBoundingClientRect();
    return box.bottom > 0 && box.top < innerHeight;
  },

  async fetchAll(signal) {
    const get = async (path) => {
      const response = await fetch(path, { signal, cache: "no-store" });
      return response.ok ? response.json() : null;
    };
    const stream = this.known();
    if (!stream) return null;
    if (model.node.keys) {
      const items = await this.fetchItems(get, stream.latest_cache);
      this.sensors = items.filter((item) => item.key !== undefined && item.value_base64 !== undefined)
        .map((item) => [item.key, Number(atob(item.value_base64))]).filter(([, value]) => isNumber(value))
        .sort(([a], [b]) => compare(a, b)).slice(0, SENSORS_SHOWN);
      this.sensor ??= this.sensors[0]?.[0] ?? null;
    }
    if (this.sensor === null) return { windows: [], alarms: [], forecast: null };
    const base = `/v1/streams/${encodeURIComponent(stream.name)}`;
    const sensor = encodeURIComponent(this.sensor);
    const window = find("stream-window").value;
    const query = new URLSearchParams({ window, limit: WINDOWS_SHOWN });
    const figure = find("stream-figure").value;
    // Count and session windows have no grid on which the next would lie.
    if (this.figures.includes(figure) && !/^(count|session)-/.test(window)) {
      query.set("forecast", FORECAST_SHOWN);
      query.set("figure", figure);
    }
    const [windows, alarms] = await Promise.all([
      window ? get(`${base}/sensors/${sensor}/windows?${query}`) : null,
      get(`${base}/alarms?${new URLSearchParams({ sensor: this.sensor })}`),
    ]);
    return { windows: windows?.windows ?? [], alarms: alarms?.alarms ?? [], forecast: windows?.forecast ?? null };
  },

  /** Items of the cache of latest values. A page ends where a node's share does. */
  async fetchItems(get, cache) {
    const items = [];
    const query = new URLSearchParams({ limit: SENSORS_SHOWN, values: "true", prefix: find("stream-prefix").value });
    for (let pages = 0; pages < SENSOR_PAGES_MAX && items.length < SENSORS_SHOWN; pages += 1) {
      const page = await get(`/v1/caches/${encodeURIComponent(cache)}/keys?${query}`);
      items.push(...(page?.items ?? []));
      if (!page?.cursor) break;
      query.set("cursor", page.cursor);
    }
    return items;
  },

  take(told) {
    this.shown = told;
    this.drawSensors();
    this.drawChart();
  },

  drawChart() {
    const { windows, alarms, forecast } = this.shown;
    const figures = [...new Set(windows.flatMap((window) => Object.keys(window)))].filter((name) => name === "count" || !NO_FIGURES.includes(name));
    const select = find("stream-figure");
    if (figures.length && figures.join() !== this.figures.join()) {
      const before = select.value;
      this.figures = figures;
      select.replaceChildren(...figures.map((name) => element("option", { value: name }, name)));
      select.value = figures.includes(before) ? before : figures.includes("mean") ? "mean" : figures[0];
    }
    setText(find("stream-title"), this.sensor === null ? "Windows of a sensor" : `Windows of ${this.sensor}`);
    const value = this.sensors.find(([name]) => name === this.sensor)?.[1];
    setText(find("stream-latest"), isNumber(value) ? `latest ${figureText(value)}` : "");
    const raised = alarms.filter((alarm) => alarm.kind === "raised");
    const last = raised.at(-1);
    setText(find("stream-alarms"), last ? `${plural(raised.length, "alarm", "alarms")} · last ${last.detector} at ${moment(last.time, 0)}: ${figureText(last.value)}${isNumber(last.expected) ? `, expected ${figureText(last.expected)}` : ""}` : "No alarms on this node");
    const none = this.sensor === null ? "No sensor yet" : find("stream-window").value ? "No window closed yet" : "This stream has no windows";
    this.chart.show({ windows, alarms, forecast, figure: select.value || "mean", none });
  },

  drawSensors() {
    const list = find("stream-sensors");
    if (!model.node.keys || this.sensors.length === 0) {
      const why = model.node.keys ? "No sensors." : "Not listed: looking through keys is turned off on this node.";
      if (list.textContent !== why) list.replaceChildren(element("li", { class: "none" }, why));
      return;
    }
    list.querySelector(".none")?.remove();
    while (list.children.length > this.sensors.length) list.lastChild.remove();
    while (list.children.length < this.sensors.length) {
      const button = element("button", { type: "button" }, element("span", { class: "key" }), element("span", { class: "number" }));
      button.addEventListener("click", () => {
        this.sensor = button.sensor;
        this.take({ windows: [], alarms: [], forecast: null });
        this.ask(true);
      });
      list.append(element("li", {}, button));
    }
    this.sensors.forEach(([name, value], place) => {
      const button = list.children[place].firstChild;
      button.sensor = name;
      setText(button.children[0], name);
      setText(button.children[1], figureText(value));
      setAttribute(button, "aria-pressed", String(name === this.sensor));
    });
  },
};
