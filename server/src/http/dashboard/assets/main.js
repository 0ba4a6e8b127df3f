// Puts the page together and keeps it up to date.

const THEMES = ["auto", "light", "dark"];

function drawNow() {
  if (!model.loaded) return;
  document.title = `${model.node.name} · Kiln`;
  setText(find("where"), model.topology.nodes.length > 1 ? `${model.node.name} of ${model.topology.nodes.length} nodes` : model.node.name);
  for (const section of [overview, nodesSection, partitionMap, transfersSection, cachesSection, streamsSection, keyBrowser, eventsSection, hottestSection]) {
    if (section === partitionMap) section.show();
    else section.draw();
  }
  setText(find("footer"), `Kiln ${model.node.version} · process ${model.node.pid} · ${plural(model.node.threads, "thread", "threads")} · cluster ${model.topology.cluster_id} · topology ${model.topology.epoch} · started ${new Date(model.node.started_ms).toLocaleString()}`);
}

const drawAll = coalesced(drawNow);

function showState(state, why) {
  const words = { live: "Live", paused: "Paused", sleeping: "Asleep", connecting: feed.lostAt ? "Reconnecting…" : "Connecting…" };
  setAttribute(find("status"), "data-state", state);
  setText(find("status-text"), words[state]);
  document.body.classList.toggle("stale", state !== "live" && state !== "paused" && model.loaded);
  const toast = find("toast");
  toast.hidden = state !== "connecting" || feed.lostAt === null;
  if (!toast.hidden) setText(toast, why ? `No live figures: ${why}. Trying again.` : `No connection to the node since ${clock(feed.lostAt)}. Trying again.`);
}

function startTheme() {
  const show = (theme) => {
    if (theme === "auto") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = theme;
    setText(find("theme"), `Theme: ${theme}`);
    partitionMap.recolor?.();
  };
  let theme = THEMES.includes(remembered.get("theme")) ? remembered.get("theme") : "auto";
  show(theme);
  find("theme").addEventListener("click", () => {
    theme = THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length];
    remembered.set("theme", theme);
    show(theme);
  });
}

function startNavigation() {
  const links = new Map([...document.querySelectorAll(".top nav a")].map((link) => [link.hash.slice(1), link]));
  const show = coalesced(() => {
    const line = innerHeight * 0.3;
    let current = "overview";
    for (const id of links.keys()) {
      const section = find(id);
      if (!section.hidden && section.getBoundingClientRect().top <= line) current = id;
    }
    // The last section may be too short to come up.
    if (scrollY > 0 && innerHeight + scrollY >= document.documentElement.scrollHeight - 2) current = "events";
    for (const [id, link] of links) {
      if (id === current) setAttribute(link, "aria-current", "true");
      else link.removeAttribute("aria-current");
    }
  });
  addEventListener("scroll", show, { passive: true });
  addEventListener("resize", show);
  show();
}

partitionMap.start();
startTheme();
overview.start();
nodesSection.start();
cachesSection.start();
streamsSection.start();
keyBrowser.start();
startNavigation();
transfersSection.draw();
find("pause").addEventListener("click", () => {
  feed.pause(!feed.paused);
  setAttribute(find("pause"), "aria-pressed", String(feed.paused));
  setText(find("pause"), feed.paused ? "Resume" : "Pause");
});
feed.start(showState);

// For tests: shows what a node might say, without a node. The connection is left alone then.
globalThis.kilnDashboard = {
  show(snapshot) {
    feed.paused = true;
    feed.stop("paused");
    model.seq = 0;
    loadSnapshot(snapshot);
    drawNow();
  },
  tick(tick) {
    applyTick(tick);
    drawNow();
  },
  streams: streamsSection,
  model,
};
