// The connection to the node: server-sent events, read by hand rather than by EventSource, which
// hides why it was refused and cannot tell a silent connection from a living one.

const SILENCE_MAX_MS = 5000;
const RETRY_MIN_MS = 500;
const RETRY_MAX_MS = 10000;
const HIDDEN_MAX_MS = 60000;

const feed = {
  paused: false,
  state: "connecting",
  attempts: 0,
  lostAt: null,

  start(onChange) {
    this.onChange = onChange;
    document.addEventListener("visibilitychange", () => {
      clearTimeout(this.hiding);
      // Nobody looks: the place is for others.
      if (document.hidden) this.hiding = setTimeout(() => this.stop("sleeping"), HIDDEN_MAX_MS);
      else if (this.state === "sleeping") this.connect();
    });
    this.connect();
  },

  pause(paused) {
    this.paused = paused;
    if (paused) this.stop("paused");
    else this.connect();
  },

  stop(state) {
    clearTimeout(this.timer);
    this.abort?.abort();
    this.abort = null;
    this.tell(state);
  },

  tell(state, text = null) {
    this.state = state;
    if (state === "live") { this.lostAt = null; this.attempts = 0; }
    this.onChange(state, text);
  },

  async connect() {
    clearTimeout(this.timer);
    this.abort?.abort();
    const abort = this.abort = new AbortController();
    if (this.state !== "connecting") this.tell("connecting");
    let [wait, why] = [null, null];
    let watchdog = null;
    const alive = () => { clearTimeout(watchdog); watchdog = setTimeout(() => abort.abort("silent"), SILENCE_MAX_MS); };
    try {
      alive();
      const response = await fetch("/dashboard/events", { signal: abort.signal, cache: "no-store", headers: { accept: "text/event-stream" } });
      if (!response.ok) {
        const problem = await response.json().catch(() => null);
        why = problem?.detail ?? `the node answered ${response.status}`;
        wait = Number(response.headers.get("retry-after")) * 1000 || null;
      } else {
        await this.read(response.body.getReader(), abort, alive);
      }
    } catch { /* The connection broke, or was ended here. */ }
    clearTimeout(watchdog);
    // Another connection, or a pause, has taken its place.
    if (this.abort !== abort) return;
    this.abort = null;
    this.lostAt ??= Date.now();
    this.attempts += 1;
    // Spread, so that many pages do not come back at once.
    wait ??= Math.min(RETRY_MAX_MS, RETRY_MIN_MS * 2 ** Math.min(10, this.attempts - 1)) * (0.75 + Math.random() / 2);
    this.tell("connecting", why);
    this.timer = setTimeout(() => this.connect(), wait);
  },

  async read(reader, abort, alive) {
    const decoder = new TextDecoder();
    let text = "";
    for (;;) {
      const { done, value } = await reader.read();
      if (done || this.abort !== abort) return;
      alive();
      text += decoder.decode(value, { stream: true });
      let end;
      while ((end = text.indexOf("\n\n")) >= 0) {
        this.take(text.slice(0, end));
        text = text.slice(end + 2);
      }
    }
  },

  take(block) {
    let [name, data] = ["message", ""];
    for (const line of block.split("\n")) {
      if (line.startsWith("event: ")) name = line.slice(7);
      else if (line.startsWith("data: ")) data += line.slice(6);
    }
    if (name === "snapshot") { model.seq = 0; loadSnapshot(JSON.parse(data)); } else if (name === "tick") applyTick(JSON.parse(data));
    else return;
    if (this.state === "live") drawAll();
    else {
      // Whoever reads that the page is live finds it so.
      drawNow();
      this.tell("live");
    }
  },
};
