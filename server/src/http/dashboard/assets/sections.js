// What each section shows, and where it comes from in the model.

const overview = {
  start() {
    const tile = (title) => {
      const [value, unit, small] = [element("span"), element("span", { class: "unit" }), element("p", { class: "small" })];
      const bar = meter();
      const host = element("div", { class: "card tile" }, element("h3", {}, title), element("p", { class: "big" }, value, unit), small);
      find("tiles").append(host);
      return { show([number, word], text, part) {
        setText(value, number);
        setText(unit, word);
        setText(small, text);
        if (part === undefined) return;
        if (!bar.host.parentNode) host.append(bar.host);
        bar.set(part);
      } };
    };
    this.ops = tile("Operations a second");
    this.ratio = tile("Hit ratio");
    this.latency = tile("Latency p99");
    this.memory = tile("Memory");
    this.items = tile("Items");
    this.connections = tile("Connections");
    this.memory.show([NONE, ""], "", 0);
    this.charts();
    choice(find("range"), [[60, "1 min"], [300, "5 min"], [600, "10 min"]], Number(remembered.get("range") ?? 600), (seconds) => {
      timeline.seconds = seconds;
      remembered.set("range", seconds);
      timeline.redraw();
    });
    timeline.seconds = [60, 300, 600].find((seconds) => String(seconds) === remembered.get("range")) ?? 600;
  },

  charts() {
    const host = find("charts");
    const ratio = (row) => {
      const [hits, misses] = [reader("hits")(row), reader("misses")(row)];
      return hits === null || misses === null || hits + misses < 1 ? null : hits / (hits + misses);
    };
    const choose = element("span", { class: "choice", role: "group", "aria-label": "Protocol" });
    this.latencyChart = null;
    const limit = () => model.figures.get(selfId())?.memory_limit ?? null;
    const charts = [
      new Chart({ title: "Operations a second", format: number, stacked: true, series: PROTOCOLS.map(([id, name], place) =>
        ({ name, read: reader(`ops.${id}`), color: place + 1, area: true })) }),
      this.latencyChart = new Chart({ title: "Latency", format: micros, scale: "log", none: "No requests", options: choose, series: this.latencySeries("memcached") }),
      new Chart({ title: "Hit ratio", format: percent, scale: "ratio", none: "No reads", series: [{ name: "Hits of reads", read: ratio, color: 3, area: true }] }),
      new Chart({ title: "Memory", format: bytes, scale: "bytes", series: [
        { name: "Items", read: reader("memory"), color: 2, area: true },
        { name: "Process", read: reader("resident"), color: 4 },
        { name: "Limit", read: (row) => (row.length ? limit() : null), color: 0, dash: "5 4" }] }),
      new Chart({ title: "Items leaving a second", format: number, series: [
        { name: "Evicted", read: reader("evictions"), color: 1 },
        { name: "Expired", read: reader("expirations"), color: 2, dash: "6 3" }] }),
      new Chart({ title: "Traffic a second", format: bytes, scale: "bytes", series: [
        { name: "Received", read: reader("bytes_in"), color: 4 },
        { name: "Sent", read: reader("bytes_out"), color: 3, area: true }] }),
    ];
    host.append(...charts.map((chart) => chart.host));
    this.chooseHost = choose;
    this.protocols = [];
  },

  latencySeries: (protocol) => [["p50", 3, true], ["p99", 1, false], ["p999", 5, false]].map(([name, color, area]) =>
    ({ name: name === "p999" ? "p99.9" : name, read: reader(`${name}.${protocol}`), color, area })),

  /** The protocol with the most operations, unless someone chose another. */
  protocol() {
    if (this.chosen) return this.chosen;
    const row = lastRow();
    const busy = PROTOCOLS.filter(([id]) => model.columns.has(`p99.${id}`)).map(([id]) => [id, reader(`ops.${id}`)(row) ?? 0]);
    const most = busy.reduce((best, one) => (one[1] > best[1] ? one : best), [this.followed ?? "memcached", 0]);
    return most[0];
  },

  followProtocol() {
    const known = PROTOCOLS.filter(([id]) => model.columns.has(`p99.${id}`));
    const protocol = this.protocol();
    if (known.length !== this.protocols.length) {
      this.protocols = known;
      this.press = choice(this.chooseHost, known, protocol, (id) => { this.chosen = id; this.draw(); });
    }
    if (protocol !== this.followed) {
      this.followed = protocol;
      this.press?.(protocol);
      this.latencyChart.setSeries(this.latencySeries(protocol));
    }
    return protocol;
  },

  draw() {
    const protocol = this.followProtocol();
    const row = lastRow();
    const value = (name) => reader(name)(row);
    const own = model.figures.get(selfId());
    const ops = sumOf(PROTOCOLS.map(([id]) => reader(`ops.${id}`)))(row);
    const busy = PROTOCOLS.map(([id, name]) => [value(`ops.${id}`), name]).filter(([rate]) => rate > 0).sort(([a], [b]) => b - a);
    // The chart has them all; here is room for two.
    this.ops.show(numberParts(ops), busy.slice(0, 2).map(([rate, name]) => `${name} ${number(rate)}`).join(" · ") || "none now");
    this.ratio.show(percentParts(own?.hit_ratio), isNumber(own?.hit_ratio) ? "of reads, last half minute" : "no reads of late");
    const p50 = value(`p50.${protocol}`);
    this.latency.show(microsParts(value(`p99.${protocol}`)), p50 === null ? "no requests of late" : `half within ${micros(p50)} · ${PROTOCOLS.find(([id]) => id === protocol)[1]}`);
    const [used, limit] = [value("memory"), own?.memory_limit];
    this.memory.show(bytesParts(used), `of ${bytes(limit)}`, used / limit);
    const [evictions, expirations] = [value("evictions"), value("expirations")];
    const leaving = [evictions > 0 && `${number(evictions)} evicted`, expirations > 0 && `${number(expirations)} expired`].filter(Boolean);
    this.items.show(numberParts(value("items")), leaving.length ? `${leaving.join(", ")} a second` : "none leaving");
    this.connections.show(numberParts(value("connections")), `of ${whole(model.node.connections_max)} · processor ${percent(own?.busy)} busy`);
    const [state, text, advice] = health();
    setAttribute(find("health"), "data-state", state);
    setAttribute(find("health-icon"), "d", ICONS[state]);
    setText(find("health-text"), text);
    find("health").title = advice ?? "";
    timeline.redraw();
  },
};

const selfId = () => model.topology.nodes.find((node) => node.is_self)?.id;

const NODE_STATES = { ready: ["good", "Ready"], joining: ["rest", "Joining"], draining: ["warn", "Leaving"], suspect: ["warn", "Silent"], down: ["bad", "Down"] };

function drawState(cell, state) {
  const [kind, word] = NODE_STATES[state] ?? ["unknown", state];
  if (cell.state === state) return;
  cell.state = state;
  cell.replaceChildren(element("span", { class: `state state-${kind === "unknown" ? "rest" : kind}` }, icon(kind), word));
}

function drawNodeName(cell, node) {
  const text = `${node.name} ${node.is_self}`;
  if (cell.shown === text) return;
  cell.shown = text;
  cell.title = [node.memcached && `memcached ${node.memcached}`, node.native && `native ${node.native}`, node.http && `HTTP ${node.http}`].filter(Boolean).join("\n");
  cell.replaceChildren(node.name, ...(node.is_self ? [element("span", { class: "tag" }, "this page")] : []));
}

const nodesSection = {
  start() {
    const figure = (name) => (node) => { const value = model.figures.get(node.id)?.[name]; return isNumber(value) ? value : null; };
    const column = (id, title, format, level) => ({ id, title, numeric: true, level, sort: figure(id), text: (node) => format(figure(id)(node)) });
    this.table = new Table(find("nodes-table"), {
      label: "Nodes", key: (node) => node.id, search: (node) => `${node.name} ${node.state} ${node.zone}`, empty: "Waiting for the node…", sorted: ["name", 1],
      onChoose: (node) => {
        this.table.chosen = this.table.chosen === node.id ? null : node.id;
        partitionMap.mark(this.table.chosen);
        this.table.draw();
      },
      columns: [
        { id: "name", title: "Name", sort: (node) => node.name, draw: drawNodeName },
        { id: "state", title: "State", sort: (node) => node.state, draw: (cell, node) => drawState(cell, node.state) },
        { id: "zone", title: "Zone", level: 2, sort: (node) => node.zone, text: (node) => node.zone || NONE },
        column("ops", "Ops/s", number),
        column("hit_ratio", "Hits", percent, 2),
        column("busy", "Busy", percent, 2),
        { id: "memory", title: "Memory", numeric: true, level: 2, sort: figure("memory"), draw: (cell, node) => {
          const [used, limit] = [figure("memory")(node), figure("memory_limit")(node)];
          drawMetered(cell, used === null ? NONE : `${bytes(used)} of ${bytes(limit)}`, used / limit);
        } },
        column("heard_ms_ago", "Heard", (ms) => (ms === null ? "never" : ms < 1500 ? "now" : `${duration(ms)} ago`), 3),
        { id: "primaries", title: "Primaries", numeric: true, level: 3, sort: (node) => node.primaries, text: (node) => whole(node.primaries) },
        { id: "copies", title: "Copies", numeric: true, level: 3, sort: (node) => node.copies, text: (node) => whole(node.copies) },
        column("filling", "Filling", whole, 3),
      ],
    });
  },
  draw() { this.table.show(model.topology.nodes); },
};

// Hit ratios with an eighth, a quarter, half, all, twice, four and eight times the memory.
const CURVE_ONCE = 3;
const CURVE_TWICE = 4;
const CURVE_SIZE = { width: 84, height: 22 };

/** What the hit ratio would be with less memory or with more, estimated. */
function drawCurve(cell, cache) {
  const curve = model.caches.get(cache.id)?.curve;
  if (!curve) {
    cell.replaceChildren(NONE);
    cell.title = "Too few different keys were read to tell.";
    return;
  }
  const { width, height } = CURVE_SIZE;
  const across = (place) => (place / (curve.length - 1)) * (width - 4) + 2;
  const up = (ratio) => height - 2 - ratio * (height - 4);
  const points = curve.map((ratio, place) => `${across(place).toFixed(1)},${up(ratio).toFixed(1)}`).join(" ");
  const words = `with half the memory ${percent(curve[CURVE_ONCE - 1])}, as it is ${percent(curve[CURVE_ONCE])}, with twice as much ${percent(curve[CURVE_TWICE])}`;
  cell.title = `Estimated hit ratio: ${words}`;
  cell.replaceChildren(shape("svg", { class: "curve", width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `Hit ratio ${words}` },
    shape("line", { x1: across(CURVE_ONCE), x2: across(CURVE_ONCE), y1: 1, y2: height - 1 }),
    shape("polyline", { points }),
    shape("circle", { cx: across(CURVE_ONCE), cy: up(curve[CURVE_ONCE]), r: 2.5 })));
}

const cachesSection = {
  start() {
    const figure = (name) => (cache) => { const value = model.caches.get(cache.id)?.[name]; return isNumber(value) ? value : null; };
    const column = (id, title, format, level) => ({ id, title, numeric: true, level, sort: figure(id), text: (cache) => format(figure(id)(cache)) });
    const sinceStart = (cache) => {
      const [hits, misses] = [figure("hits")(cache), figure("misses")(cache)];
      return hits + misses > 0 ? hits / (hits + misses) : null;
    };
    this.table = new Table(find("caches-table"), {
      label: "Caches", key: (cache) => cache.id, search: (cache) => `${cache.name} ${cache.mode} ${cache.eviction}`, empty: "Waiting for the node…", sorted: ["ops", -1],
      columns: [
        { id: "name", title: "Name", sort: (cache) => cache.name, text: (cache) => cache.name },
        { id: "mode", title: "Mode", level: 3, sort: (cache) => cache.mode, text: (cache) => `${cache.mode} × ${cache.copies}` },
        { id: "eviction", title: "Policy", level: 2, sort: (cache) => cache.eviction, text: (cache) => cache.eviction },
        column("items", "Items", number),
        { id: "bytes", title: "Memory", numeric: true, level: 2, sort: figure("bytes"), draw: (cell, cache) => {
          const [used, limit] = [figure("bytes")(cache), figure("memory")(cache)];
          drawMetered(cell, used === null ? NONE : `${bytes(used)} of ${bytes(limit)}`, used / limit);
        } },
        column("ops", "Ops/s", number),
        column("recent", "Hits", percent),
        { id: "since", title: "Since start", numeric: true, level: 3, sort: sinceStart, text: (cache) => percent(sinceStart(cache)) },
        { id: "curve", title: "Hits by memory", level: 3, sort: (cache) => model.caches.get(cache.id)?.curve?.[CURVE_TWICE] ?? null, draw: drawCurve },
        column("evictions", "Evicted/s", number, 2),
        column("expirations", "Expired/s", number, 3),
        { id: "ttl", title: "TTL", numeric: true, level: 3, sort: (cache) => cache.default_ttl_ms ?? Infinity, text: (cache) => (cache.default_ttl_ms === null ? "none" : duration(cache.default_ttl_ms)) },
      ],
    });
  },
  draw() { this.table.show(model.topology.caches); },
};

const TRANSFERS_SHOWN = 50;

const transfersSection = {
  /** What is to be, what is planned, and what is under way: lines of a text, a figure and a part. */
  lines() {
    const nodes = byId(model.topology.nodes);
    const name = (id) => nodes.get(id)?.name ?? `node ${id}`;
    const lines = [];
    for (const group of model.groups) {
      const { copies_wanted: wanted, copies_there: there } = group;
      if (there < wanted) lines.push([`${group.mode} × ${group.copies}: copies in place`, `${whole(there)} of ${whole(wanted)}`, there / wanted]);
    }
    for (const { from, to, what, partitions } of model.groups.flatMap((group) => group.moves)) {
      const way = from === 0 ? `made again on ${name(to)}` : to === 0 ? `dropped from ${name(from)}` : `${name(from)} → ${name(to)}`;
      lines.push([`${what === "primary" ? "Primaries" : "Copies"} ${way}`, plural(partitions, "partition", "partitions"), null]);
    }
    for (const move of model.transfers) {
      lines.push([`Partition ${move.partition}: ${name(move.from)} → ${name(move.to)}`, `${bytes(move.bytes)} in ${duration(Math.max(0, model.now - move.since_ms))}`, null]);
    }
    return lines;
  },

  draw() {
    const list = find("transfers");
    setText(find("transfers-count"), model.transfers.length ? whole(model.transfers.length) : "");
    const lines = this.lines();
    if (lines.length === 0) {
      if (!list.querySelector(".none")) list.replaceChildren(element("li", { class: "none" }, "Nothing is moving."));
      return;
    }
    list.replaceChildren(...lines.slice(0, TRANSFERS_SHOWN).map(([text, figure, part]) => {
      const row = element("li", {}, element("div", { class: "line" }, element("span", {}, text), element("span", {}, figure)));
      if (part !== null) {
        const bar = meter();
        bar.set(part);
        row.append(bar.host);
      }
      return row;
    }));
    const more = lines.length - TRANSFERS_SHOWN;
    if (more > 0) list.append(element("li", { class: "none" }, `and ${whole(more)} more`));
  },
};

const WEIGHTS = { info: ["rest", "Information"], warning: ["warn", "Warning"], error: ["bad", "Error"] };

const eventsSection = {
  newest: null,
  draw() {
    const newest = `${model.node.started_ms} ${model.events.at(-1)?.number ?? 0}`;
    if (newest === this.newest) return;
    this.newest = newest;
    const list = model.events.map((event) => {
      const [kind, word] = WEIGHTS[event.weight] ?? WEIGHTS.info;
      return element("li", {},
        element("time", { datetime: new Date(event.at_ms).toISOString(), title: new Date(event.at_ms).toLocaleString() }, clock(event.at_ms)),
        element("span", { class: `state-${kind}` }, icon(kind), element("span", { class: "unseen" }, word)), element("span", {}, event.text));
    });
    find("event-list").replaceChildren(...(list.length ? list.reverse() : [element("li", { class: "none" }, "Nothing yet.")]));
  },
};

const hottestSection = {
  draw() {
    const list = find("hottest");
    if (model.hottest.length === 0) {
      const why = model.node.keys ? "No key stands out: the node is hardly asked for any." : "Not shown: looking through keys is turned off on this node.";
      if (list.textContent !== why) list.replaceChildren(element("li", { class: "none" }, why));
      return;
    }
    const most = Math.max(1, ...model.hottest.map((hot) => hot.ops));
    while (list.children.length > model.hottest.length || list.querySelector(".none")) list.lastChild.remove();
    while (list.children.length < model.hottest.length) {
      const bar = meter();
      const row = element("li", {}, element("span", { class: "key" }), element("span", { class: "number" }), bar.host);
      row.bar = bar;
      list.append(row);
    }
    model.hottest.forEach((hot, place) => {
      const row = list.children[place];
      setText(row.children[0], hot.cache === "default" ? hot.key : `${hot.cache}: ${hot.key}`);
      setText(row.children[1], `≈ ${number(hot.ops)}/s`);
      row.children[0].title = hot.key;
      row.bar.set(hot.ops / most);
    });
  },
};
