// Makes snapshots of clusters that do not exist, in the form that a node tells them, so that the
// page can be tried with more nodes and caches than a test can start. The same seed makes the same.

function syntheticSnapshot({ nodes = 3, caches = 8, copies = 2, transfers = 0, lost = 0, short = 0, events = 12, streams = 0, seconds = 600, seed = 7, groups = 1 } = {}) {
  let state = seed;
  const random = () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return state / 2 ** 32;
  };
  const PARTITIONS = 1024;
  const now = 1_795_000_000_000;
  const zones = ["a", "b", "c"];
  const nodeRows = Array.from({ length: nodes }, (_, place) => ({
    id: place + 1, name: `oven-${place + 1}`, state: place === 4 ? "joining" : place === 7 ? "down" : "ready",
    zone: zones[place % 3], weight: 1, is_self: place === 0, native: `10.0.0.${place % 250}:7311`,
    memcached: `10.0.0.${place % 250}:11211`, http: `10.0.0.${place % 250}:7380`, primaries: 0, copies: 0,
  }));
  const groupRows = Array.from({ length: groups }, (_, number) => ({
    mode: number === 0 ? "strong" : "eventual", copies,
    owners: Array.from({ length: PARTITIONS }, () => {
      const owners = new Set();
      while (owners.size < Math.min(copies, nodes)) owners.add(Math.floor(random() * nodes));
      return [...owners];
    }),
  }));
  for (let number = 0; number < short; number += 1) groupRows[0].owners[(number * 37 + 11) % PARTITIONS].length = 1;
  for (let number = 0; number < lost; number += 1) groupRows[0].owners[(number * 53 + 5) % PARTITIONS].length = 0;
  for (const { owners } of groupRows) {
    for (const list of owners) list.forEach((place, rank) => { nodeRows[place][rank === 0 ? "primaries" : "copies"] += 1; });
  }
  const words = ["users", "sessions", "pages", "carts", "prices", "search", "avatars", "tokens", "rates", "feeds"];
  const cacheRows = Array.from({ length: caches }, (_, id) => ({
    id, name: id === 0 ? "default" : `${words[(id - 1) % 10]}${id > 10 ? `-${id}` : ""}`, mode: id % groups === 0 ? "strong" : "eventual", copies,
    eviction: ["adaptive", "lru", "lfu", "none"][id % 4], read: "leased", group: id % groups,
    default_ttl_ms: id % 3 === 0 ? null : 60_000 * (id % 50 + 1), value_len_max: 1 << 20,
  }));
  const cacheFigures = cacheRows.map(({ id }) => {
    const memory = 2 ** 20 * (16 + Math.floor(random() * 400));
    const used = Math.floor(memory * random());
    const [hits, misses] = [Math.floor(random() * 1e8), Math.floor(random() * 1e7)];
    return [id, Math.floor(used / 420), used, memory, hits, misses, hits / (hits + misses), Math.round(random() ** 3 * 90_000), id % 4 === 3 ? 0 : Math.round(random() * 400), Math.round(random() * 300)];
  });
  const fields = ["ops.memcached", "ops.native", "ops.http", "hits", "misses", "evictions", "expirations", "items", "memory", "resident", "cpu", "connections", "bytes_in", "bytes_out",
    "p50.memcached", "p99.memcached", "p999.memcached", "p50.native", "p99.native", "p999.native"];
  const rows = Array.from({ length: seconds }, (_, second) => {
    const wave = 1 + 0.35 * Math.sin(second / 70) + 0.12 * Math.sin(second / 11) + 0.05 * random();
    const [memcached, native, http] = [96_000 * wave, 61_000 * (1.1 + 0.3 * Math.cos(second / 90)) * (1 + 0.04 * random()), 4_200 * wave];
    const reads = 0.9 * (memcached + native);
    const ratio = Math.min(0.995, 0.93 + second / 9000 + 0.01 * Math.sin(second / 30));
    const slow = second > 380 && second < 400 ? 6 : 1;
    const memory = 2 ** 20 * Math.min(455, 300 + second * 0.4);
    return [(now - (seconds - second) * 1000) / 1000, memcached, native, http, reads * ratio, reads * (1 - ratio),
      second < 388 ? 0 : 900 * wave, 240 * wave, memory / 430, memory, memory * 1.1 + 2 ** 25, 1.2 * wave, 420, memcached * 90, memcached * 430,
      21 + 3 * random(), (64 + 14 * random()) * slow, (190 + 60 * random()) * slow, 14 + 2 * random(), 41 + 9 * random(), 110 + 40 * random()]
      .map((value) => Math.round(value * 1000) / 1000);
  });
  const texts = [["info", "node", "This node started in a cluster of 3 nodes."], ["info", "node", "Node oven-4 joined in zone a."], ["info", "node", "Node oven-4 is ready."],
    ["info", "cache", "Cache sessions was made."], ["info", "memory", "Memory is full: items are being evicted to make room."], ["warning", "node", "Node oven-8 is down."],
    ["info", "partition", "Node oven-2 became primary of 341 partitions."], ["warning", "partition", "512 partitions have fewer copies than wanted."],
    ["info", "partition", "Every partition has all its copies again."], ["error", "partition", "2 partitions were lost: no copy is left."]];
  return {
    seq: 1, now_ms: now, node: { name: "oven-1", version: "0.1.0 (synthetic)", pid: 4711, started_ms: now - 9e6, threads: 8, connections_max: 4096, keys: true },
    history: { fields, period_ms: 1000, samples_max: 600, rows },
    topology: { epoch: 42, cluster_id: "5f0c66ab9d0e4417", partitions: PARTITIONS, nodes: nodeRows, groups: groupRows, caches: cacheRows },
    figures: nodeRows.filter((node) => node.state !== "down").map((node) => ({ id: node.id, ops: Math.round(60_000 + random() * 130_000), hit_ratio: node.is_self ? 0.9 + random() * 0.09 : null, busy: random() * 0.8, heard_ms_ago: node.is_self ? 0 : Math.floor(random() * 900), filling: transfers && node.id % 2,
      memory: 2 ** 20 * (200 + random() * 250), memory_limit: 2 ** 29, items: null, connections: null, uptime_ms: null })),
    caches: cacheFigures,
    state: {
      warnings: lost ? [{ level: "error", text: `${lost} partitions lost all copies`, advice: "find out why, then acknowledge it" }]
        : short ? [{ level: "warning", text: `${short} partitions have fewer copies than wanted`, advice: "wait until they are made again" }] : [],
      groups: groupRows.map(({ mode, owners }, number) => ({
        mode, copies, copies_possible: copies, caches: [], whole: PARTITIONS - short - lost, short, without_primary: lost, lost, copies_wanted: copies * PARTITIONS,
        copies_there: owners.reduce((sum, list) => sum + list.length, 0), moves: number === 0 && transfers ? [{ from: 1, to: Math.min(2, nodes), what: "copy", partitions: transfers }] : [],
      })),
      transfers: Array.from({ length: transfers }, (_, number) => ({
        group: 0, partition: (number * 71 + 3) % PARTITIONS, from: 1 + number % nodes, to: 1 + (number + 1) % nodes, bytes: Math.floor(2 ** 26 * random()), since_ms: now - number * 700,
      })),
    },
    streams: Array.from({ length: streams }, (_, number) => ({
      name: `plant-${number + 1}`, latest_cache: `plant-${number + 1}`, windows: ["10s", "10m-1m"], sensors: 120 + number, state_bytes: 2 ** 20 * (1 + number % 9), lag_ms: 5_000 + 140 * number,
      readings_per_s: 2_400 + 13 * number, results_per_s: 24, late_per_s: number % 5, rejected_per_s: number % 3 ? 0 : 1, late: number * 40, rejected: number * 3, alarms: number % 7,
    })),
    hottest: Array.from({ length: 12 }, (_, number) => ({ cache: number % 3 ? "default" : "users", key: `user:${1000 + number * 37}:profile`, ops: Math.round(9000 / (number + 1)) })),
    events: Array.from({ length: events }, (_, number) => ({ number: number + 1, at_ms: now - (events - number) * 41_000, weight: texts[number % 10][0], about: texts[number % 10][1], text: texts[number % 10][2] })),
  };
}

/** What the node would answer about a sensor of a stream: two hours of windows, and an alarm. */
function syntheticWindows(count = 120, now = 1_795_000_000_000) {
  const windows = Array.from({ length: count }, (_, place) => {
    const mean = 700 + 80 * Math.sin(place / 9) + (place > 80 && place < 86 ? 160 : 0);
    const start = now - (count - place) * 10_000;
    return { start, end: start + 10_000, revision: 0, count: 97, mean, std: 11.2, min: mean - 21, max: mean + 27 };
  });
  const alarm = (kind, place, value) => ({ sensor: "kiln-7", detector: "ewma_z", kind, time: windows[place].start + 3_000, value, expected: 712, score: 6.2 });
  return { windows, alarms: count > 90 ? [alarm("raised", 81, 884), alarm("cleared", 87, 712)] : [] };
}
