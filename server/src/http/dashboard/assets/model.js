// What is known of the node: a snapshot, brought up to date by ticks. Others draw it and change
// nothing here.

const EVENTS_MAX = 200;

const model = {
  loaded: false,
  seq: 0,
  now: 0,
  node: { name: "", version: "", keys: true, threads: 0, connections_max: 0, started_ms: 0 },
  columns: new Map(),
  rows: [],
  rowsMax: 600,
  topology: { epoch: 0, cluster_id: "", partitions: 0, nodes: [], groups: [], caches: [] },
  figures: new Map(),
  caches: new Map(),
  transfers: [],
  warnings: [],
  groups: [],
  streams: [],
  hottest: [],
  events: [],
};

const cacheFields = ["id", "items", "bytes", "memory", "hits", "misses", "recent", "ops", "evictions", "expirations", "curve"];
const named = (row) => Object.fromEntries(cacheFields.map((name, place) => [name, row[place]]));
const byId = (list) => new Map(list.map((one) => [one.id, one]));

function loadSnapshot(snapshot) {
  model.columns = new Map(snapshot.history.fields.map((name, place) => [name, place + 1]));
  model.rows = snapshot.history.rows.slice();
  model.rowsMax = snapshot.history.samples_max;
  model.node = snapshot.node;
  model.events = snapshot.events.slice(-EVENTS_MAX);
  model.loaded = true;
  apply(snapshot);
}

function applyTick(tick) {
  if (tick.seq <= model.seq) return;
  const last = model.rows.at(-1);
  if (!last || tick.row[0] > last[0]) model.rows.push(tick.row);
  if (model.rows.length > model.rowsMax) model.rows.splice(0, model.rows.length - model.rowsMax);
  model.events.push(...tick.events);
  if (model.events.length > EVENTS_MAX) model.events.splice(0, model.events.length - EVENTS_MAX);
  apply(tick);
}

function apply(part) {
  model.seq = part.seq;
  model.now = part.now_ms;
  if (part.topology) model.topology = part.topology;
  if (part.figures) model.figures = byId(part.figures);
  if (part.caches) model.caches = byId(part.caches.map(named));
  if (part.state) {
    model.transfers = part.state.transfers;
    model.warnings = part.state.warnings;
    model.groups = part.state.groups;
  }
  if (part.streams) model.streams = part.streams;
  if (part.hottest) model.hottest = part.hottest;
}

/** A function that reads a field of a row; `null` where there is none. */
function reader(name) {
  return (row) => {
    const place = model.columns.get(name);
    const value = place === undefined ? null : row[place];
    return isNumber(value) ? value : null;
  };
}

/** Sums what is there; `null` when nothing is. */
function sumOf(readers) {
  return (row) => readers.reduce((sum, read) => {
    const value = read(row);
    return value === null ? sum : (sum ?? 0) + value;
  }, null);
}

const lastRow = () => model.rows.at(-1) ?? [];

const PROTOCOLS = [["memcached", "Memcached"], ["native", "Native"], ["http", "HTTP"]];

/** Who has a partition, and what is wrong with it. */
function partition(group, number) {
  const owners = group.owners[number] ?? [];
  const moves = model.transfers.filter((move) => move.partition === number && model.topology.groups[move.group] === group);
  const state = owners.length === 0 ? "lost" : owners.length < group.copies ? "short" : "whole";
  return { owners, moves, state };
}

const WARNING_KINDS = { error: "bad", warning: "warn", note: "rest" };
const sentence = (text) => text.charAt(0).toUpperCase() + text.slice(1);

/** How the whole cluster is: how grave, in one sentence, and what can be done. */
function health() {
  const { nodes, groups } = model.topology;
  if (!model.loaded) return ["unknown", "Waiting for the node…"];
  const [worst] = model.warnings;
  if (worst) {
    const more = model.warnings.length > 1 ? ` (and ${model.warnings.length - 1} more)` : "";
    const advice = model.warnings.map((warning) => sentence(`${warning.text}: ${warning.advice}`)).join("\n");
    return [WARNING_KINDS[worst.level] ?? "rest", sentence(worst.text) + more, advice];
  }
  let [lost, short, all] = [0, 0, 0];
  for (const group of groups) {
    for (const owners of group.owners) {
      all += 1;
      if (owners.length === 0) lost += 1;
      else if (owners.length < group.copies) short += 1;
    }
  }
  const down = nodes.filter((node) => node.state === "down").length;
  const of = plural(nodes.length, "node", "nodes");
  if (lost > 0) return ["bad", `${of}: ${plural(lost, "partition has", "partitions have")} no copy left`];
  if (short > 0) return ["warn", `${of}: ${plural(short, "partition has", "partitions have")} fewer copies than wanted`];
  if (down > 0) return ["warn", `${of}, ${whole(down)} down; every partition is served`];
  const self = nodes.find((node) => node.is_self);
  if (self && self.state === "draining") return ["warn", "This node is stopping"];
  if (model.transfers.length > 0) return ["good", `${of}, all ${whole(all)} partitions served, ${whole(model.transfers.length)} moving`];
  return ["good", `${of}, all ${whole(all)} partitions served${nodes.length > 1 ? ", every copy in place" : ""}`];
}
