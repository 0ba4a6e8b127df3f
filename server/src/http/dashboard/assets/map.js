// The partition map: one square for each partition, on a canvas. What matters has a shape as well
// as a colour: a notch for too few copies, a cross for a lost partition, a stripe for one that moves.

const OWNER_COLORS = 12;
const SHADES = 4;

/** By name: ids are random, and a legend should read like the table. */
const inOrder = (nodes) => [...nodes].sort((a, b) => compare(a.name, b.name) || compare(a.id, b.id));

const partitionMap = {
  group: 0,
  mode: "owner",
  /** The id of the node whose partitions stand out. */
  marked: null,
  at: null,
  columns: 1,
  cell: 0,
  palette: new Map(),

  start() {
    this.canvas = find("map");
    this.context = this.canvas.getContext("2d");
    this.redraw = coalesced(() => this.draw());
    new ResizeObserver(() => this.redraw()).observe(this.canvas);
    this.canvas.addEventListener("pointermove", (event) => this.point(event));
    this.canvas.addEventListener("pointerdown", (event) => this.point(event));
    this.canvas.addEventListener("pointerleave", () => this.look(null));
    this.canvas.addEventListener("focus", () => this.look(this.at ?? 0));
    this.canvas.addEventListener("blur", () => this.look(null));
    this.canvas.addEventListener("keydown", (event) => this.key(event));
    this.press = choice(find("map-mode"), [["owner", "Primary"], ["zone", "Zone"], ["copies", "Copies"]], "owner", (mode) => { this.mode = mode; this.show(); });
    find("group").addEventListener("change", (event) => { this.group = Number(event.target.value); this.show(); });
    for (const query of ["(prefers-color-scheme: dark)"]) {
      matchMedia(query).addEventListener("change", () => this.recolor());
    }
  },

  /** Draws with the colours of the theme as it is now. */
  recolor() {
    this.palette.clear();
    this.redraw();
  },

  color(name) {
    let color = this.palette.get(name);
    if (!color) {
      const probe = element("span");
      const [base, shade] = name.split("/");
      probe.style.color = shade ? `color-mix(in srgb, var(--${base}) ${100 - shade * 17}%, var(--card))` : `var(--${base})`;
      document.body.append(probe);
      color = getComputedStyle(probe).color;
      probe.remove();
      this.palette.set(name, color);
    }
    return color;
  },

  zones() {
    return [...new Set(model.topology.nodes.map((node) => node.zone))].sort();
  },

  /** What each node is drawn in: a colour of its own, or a shade of the zone's where there are many. */
  colorsOfNodes() {
    const { nodes } = model.topology;
    if (this.mode !== "zone" && nodes.length <= OWNER_COLORS) {
      const ordered = inOrder(nodes);
      return nodes.map((node) => `p${ordered.indexOf(node)}`);
    }
    const zones = this.zones();
    const met = new Map();
    return nodes.map((node) => {
      const before = met.get(node.zone) ?? 0;
      met.set(node.zone, before + 1);
      const shade = this.mode === "zone" ? 0 : before % SHADES;
      return `p${zones.indexOf(node.zone) % OWNER_COLORS}${shade ? `/${shade}` : ""}`;
    });
  },

  show() {
    const { groups, caches } = model.topology;
    if (this.group >= groups.length) this.group = 0;
    find("group-field").hidden = groups.length < 2;
    const titles = groups.map((group, place) => {
      const of = caches.filter((cache) => cache.group === place).length;
      return `${group.mode}, ${plural(group.copies, "copy", "copies")} (${plural(of, "cache", "caches")})`;
    });
    const select = find("group");
    if (titles.join() !== [...select.options].map((option) => option.textContent).join()) {
      select.replaceChildren(...titles.map((title, place) => element("option", { value: place }, title)));
    }
    select.value = String(this.group);
    this.legend();
    this.look(this.at);
  },

  legend() {
    const { nodes } = model.topology;
    const entries = [];
    if (this.mode === "copies") {
      const group = model.topology.groups[this.group];
      const copies = group ? group.copies : 1;
      entries.push(["p2", `all ${plural(copies, "copy", "copies")}`, ""]);
      if (copies > 1) entries.push(["p4", "fewer than wanted", "short"]);
    } else if (this.mode === "zone" || nodes.length > OWNER_COLORS) {
      this.zones().forEach((zone, place) => entries.push([`p${place % OWNER_COLORS}`, zone ? `zone ${zone}` : "no zone", ""]));
    } else {
      const colors = this.colorsOfNodes();
      for (const node of inOrder(nodes)) entries.push([colors[nodes.indexOf(node)], node.name, ""]);
    }
    entries.push(["faint", "moving", "moving"], ["lost", "no copy left", "lost"]);
    const list = entries.map(([color, text, sign]) => {
      const square = shape("rect", { width: 12, height: 12, rx: 2 });
      square.style.fill = `var(--${color})`;
      const mark = { short: "M12 0v7L5 0z", moving: "M0 12 12 0", lost: "m2 2 8 8m0-8-8 8" }[sign];
      const drawn = mark && shape("path", { d: mark, "stroke-width": 2, fill: "none" });
      if (drawn) {
        drawn.style.stroke = sign === "moving" ? "var(--text)" : "var(--card)";
        if (sign === "short") drawn.style.fill = "var(--card)";
      }
      return element("li", {}, shape("svg", { viewBox: "0 0 12 12", "aria-hidden": "true" }, square, drawn), text);
    });
    const legend = find("map-legend");
    const text = entries.join();
    if (this.legendText !== text) legend.replaceChildren(...list);
    this.legendText = text;
  },

  /** As many columns as make the squares fill the place. */
  layout(count) {
    const { clientWidth: width, clientHeight: height } = this.canvas;
    const ratio = devicePixelRatio || 1;
    if (this.canvas.width !== Math.round(width * ratio) || this.canvas.height !== Math.round(height * ratio)) {
      this.canvas.width = Math.round(width * ratio);
      this.canvas.height = Math.round(height * ratio);
    }
    this.context.setTransform(ratio, 0, 0, ratio, 0, 0);
    this.columns = Math.max(1, Math.round(Math.sqrt((count * width) / Math.max(1, height))));
    const rows = Math.ceil(count / this.columns);
    this.cell = Math.min(width / this.columns, height / Math.max(1, rows));
    return { width, height };
  },

  draw() {
    const group = model.topology.groups[this.group];
    const count = group ? group.owners.length : 0;
    const { width, height } = this.layout(count);
    const { context, cell, columns } = this;
    context.clearRect(0, 0, width, height);
    if (count === 0) return;
    const colors = this.colorsOfNodes();
    const moving = new Set(model.transfers.filter((move) => move.group === this.group).map((move) => move.partition));
    const marked = model.topology.nodes.findIndex((node) => node.id === this.marked);
    const gap = cell > 7 ? 1.5 : cell > 4 ? 1 : 0.5;
    const size = cell - gap;
    group.owners.forEach((owners, number) => {
      const [x, y] = [(number % columns) * cell, Math.floor(number / columns) * cell];
      const short = owners.length < group.copies;
      const color = owners.length === 0 ? "lost" : this.mode === "copies" ? (short ? "p4" : "p2") : colors[owners[0]] ?? "faint";
      const rank = owners.indexOf(marked);
      context.globalAlpha = marked < 0 || rank === 0 ? 1 : rank > 0 ? 0.55 : 0.13;
      context.fillStyle = this.color(color);
      context.fillRect(x, y, size, size);
      context.globalAlpha = 1;
      this.sign(x, y, size, owners.length === 0 ? "lost" : short ? "short" : null, moving.has(number));
    });
    if (this.at !== null && this.at < count) {
      const [x, y] = [(this.at % columns) * cell, Math.floor(this.at / columns) * cell];
      context.strokeStyle = this.color("text");
      context.lineWidth = 2;
      context.strokeRect(x - 0.5, y - 0.5, size + 1, size + 1);
    }
  },

  sign(x, y, size, sign, moves) {
    const { context } = this;
    context.lineWidth = Math.max(1, size / 6);
    if (sign === "lost") {
      context.strokeStyle = this.color("card");
      context.beginPath();
      context.moveTo(x + size * 0.2, y + size * 0.2);
      context.lineTo(x + size * 0.8, y + size * 0.8);
      context.moveTo(x + size * 0.8, y + size * 0.2);
      context.lineTo(x + size * 0.2, y + size * 0.8);
      context.stroke();
    } else if (sign === "short") {
      context.fillStyle = this.color("card");
      context.beginPath();
      context.moveTo(x + size * 0.4, y);
      context.lineTo(x + size, y);
      context.lineTo(x + size, y + size * 0.6);
      context.fill();
    }
    if (moves) {
      context.strokeStyle = this.color("text");
      context.beginPath();
      context.moveTo(x, y + size);
      context.lineTo(x + size, y);
      context.stroke();
    }
  },

  point(event) {
    const box = this.canvas.getBoundingClientRect();
    const column = Math.floor((event.clientX - box.left) / this.cell);
    const number = Math.floor((event.clientY - box.top) / this.cell) * this.columns + column;
    const group = model.topology.groups[this.group];
    this.look(group && column < this.columns && number < group.owners.length ? number : null);
  },

  key(event) {
    const group = model.topology.groups[this.group];
    const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -this.columns, ArrowDown: this.columns, Home: -Infinity, End: Infinity };
    const step = steps[event.key];
    if (!group || step === undefined) return;
    this.look(Math.max(0, Math.min(group.owners.length - 1, (this.at ?? 0) + step)));
    event.preventDefault();
  },

  look(number) {
    this.at = number;
    setText(find("map-detail"), this.describe());
    this.redraw();
  },

  mark(id) {
    this.marked = id;
    this.look(this.at);
  },

  describe() {
    const { nodes, groups } = model.topology;
    const group = groups[this.group];
    if (!group) return "";
    if (this.at === null || this.at >= group.owners.length) {
      const marked = nodes.find((node) => node.id === this.marked);
      if (marked) return `${marked.name} is primary of ${plural(marked.primaries, "partition", "partitions")} and holds ${plural(marked.copies, "further copy", "further copies")}.`;
      return `${plural(group.owners.length, "partition", "partitions")}, ${plural(group.copies, "copy", "copies")} of each.`;
    }
    const name = (place) => {
      const node = nodes[place];
      return node ? node.name + (node.zone ? ` (${node.zone})` : "") : "an unknown node";
    };
    const { owners, moves, state } = partition(group, this.at);
    const parts = [`Partition ${this.at}: `];
    if (state === "lost") parts.push("no copy left.");
    else parts.push(`primary on ${name(owners[0])}`, owners.length > 1 ? `, ${owners.length > 2 ? "copies" : "copy"} on ${owners.slice(1).map(name).join(", ")}` : "", ".");
    if (state === "short") parts.push(` ${plural(group.copies - owners.length, "copy is", "copies are")} missing.`);
    const byNode = byId(nodes);
    for (const move of moves) {
      const to = byNode.get(move.to)?.name ?? "another node";
      parts.push(` A copy is being made on ${to}: ${bytes(move.bytes)} so far.`);
    }
    return parts.join("");
  },
};
