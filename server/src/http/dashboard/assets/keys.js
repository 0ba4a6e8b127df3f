// Looks through the keys of a cache, step by step, and at one item at a time.

const KEYS_SHOWN = 1000;

const encoder = new TextEncoder();

/** Text to bytes; `\xff` stands for a byte, `\\` for a backslash. */
function bytesOf(text) {
  const parts = [];
  for (const [piece] of text.matchAll(/\\x[0-9a-fA-F]{2}|\\\\|[\s\S]/gu)) {
    if (piece.length === 4 && piece.startsWith("\\x")) parts.push(Number.parseInt(piece.slice(2), 16));
    else parts.push(...encoder.encode(piece === "\\\\" ? "\\" : piece));
  }
  return Uint8Array.from(parts);
}

const toBase64 = (list) => btoa(Array.from(list, (byte) => String.fromCharCode(byte)).join("")).replace(/\+/g, "-").replace(/\//g, "_").replace(/=+$/, "");
const fromBase64 = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));

/** What the node answers, or an error whose message is for people. */
async function ask(path, parameters, signal) {
  const response = await fetch(`${path}?${new URLSearchParams(parameters)}`, { signal, headers: { accept: "application/json" } });
  if (response.ok) return response.json();
  const problem = await response.json().catch(() => null);
  throw new Error(problem?.detail ?? `the node answered ${response.status}`);
}

const keyBrowser = {
  query: null,
  cursor: null,
  seen: 0,
  leftOut: 0,
  found: 0,
  form: "text",
  item: null,

  start() {
    find("finder").addEventListener("submit", (event) => { event.preventDefault(); this.search(); });
    find("keys-more").addEventListener("click", () => this.step());
    this.press = choice(find("item-form"), [["text", "Text"], ["json", "JSON"], ["hex", "Hex"]], "text", (form) => { this.form = form; this.drawValue(); });
    this.drawItem();
  },

  /** The caches there are, with the chosen one kept. */
  draw() {
    find("keys-allowed").hidden = !model.node.keys;
    find("keys-forbidden").hidden = model.node.keys;
    const names = model.topology.caches.map((cache) => cache.name);
    const select = find("keys-cache");
    if (names.join("\n") === this.names) return;
    this.names = names.join("\n");
    const chosen = select.value || "default";
    select.replaceChildren(...names.map((name) => element("option", {}, name)));
    select.value = names.includes(chosen) ? chosen : names[0] ?? "";
  },

  search() {
    this.abort?.abort();
    this.abort = new AbortController();
    this.query = { cache: find("keys-cache").value, prefix: toBase64(bytesOf(find("keys-prefix").value)) };
    Object.assign(this, { cursor: null, seen: 0, leftOut: 0, found: 0 });
    find("keys-found").replaceChildren();
    this.step();
  },

  /** Goes on until a step has found something: few keys may have the prefix. */
  async step() {
    const { query, abort } = this;
    find("keys-more").hidden = true;
    try {
      const before = this.found;
      do {
        setText(find("keys-told"), this.seen ? `Looked at ${whole(this.seen)} items…` : "Looking…");
        const list = await ask("/dashboard/keys", { ...query, ...(this.cursor === null ? {} : { cursor: this.cursor }) }, abort.signal);
        this.seen += list.seen;
        this.leftOut += list.left_out;
        this.cursor = list.cursor;
        this.add(list.keys);
      } while (this.found === before && this.cursor !== null);
      const out = this.leftOut ? `, ${whole(this.leftOut)} left out as too many or too long at once` : "";
      const end = this.cursor === null ? "That is all." : "There may be more.";
      setText(find("keys-told"), `${plural(this.found, "key", "keys")} in ${plural(this.seen, "item", "items")} looked at${out}. ${end}`);
      find("keys-more").hidden = this.cursor === null || this.found >= KEYS_SHOWN;
    } catch (error) {
      if (error.name !== "AbortError") setText(find("keys-told"), `That did not work: ${error.message}.`);
    }
  },

  add(keys) {
    const cache = this.query.cache;
    const rows = keys.slice(0, KEYS_SHOWN - this.found).map((key) => {
      const button = element("button", { type: "button", title: key.text }, key.text);
      const row = element("tr", {}, element("td", {}, button), element("td", { class: "number" }, bytes(key.value_len)),
        element("td", { class: "number" }, key.ttl_ms === null ? "never" : duration(key.ttl_ms)), element("td", { class: "glance" }, key.glance ?? "…"));
      row.addEventListener("click", () => this.look(cache, key.key, row));
      return row;
    });
    this.found += rows.length;
    find("keys-found").append(...rows);
  },

  async look(cache, key, row) {
    for (const other of find("keys-found").querySelectorAll("[aria-selected]")) other.removeAttribute("aria-selected");
    row.setAttribute("aria-selected", "true");
    this.looking?.abort();
    this.looking = new AbortController();
    try {
      const item = await ask("/dashboard/item", { cache, key }, this.looking.signal);
      this.item = { ...item, bytes: fromBase64(item.preview) };
      const text = asText(this.item.bytes);
      this.form = text === null ? "hex" : asJson(this.item) === null ? "text" : "json";
      this.press(this.form);
    } catch (error) {
      if (error.name === "AbortError") return;
      this.item = { text: row.cells[0].textContent, error: error.message };
    }
    this.drawItem();
  },

  drawItem() {
    const { item } = this;
    setText(find("item-title"), item ? item.text : "No key chosen");
    const facts = !item ? [] : item.error ? [["", `That did not work: ${item.error}.`]] : [
      ["Size", `${bytes(item.value_len)}${item.value_len > item.bytes.length ? `, the first ${bytes(item.bytes.length)} below` : ""}`],
      ["Ends in", item.ttl_ms === null ? "never" : duration(item.ttl_ms)], ["Version", item.version],
      ["Flags", String(item.flags)], ["Last used", item.idle_s < 60 ? "within a minute" : `${duration(item.idle_s * 1000)} ago`]];
    find("item-facts").replaceChildren(...facts.flatMap(([name, value]) => [element("dt", {}, name), element("dd", {}, value)]));
    this.drawValue();
  },

  drawValue() {
    const { item, form } = this;
    if (!item || item.error) { setText(find("item-value"), ""); return; }
    const shown = form === "hex" ? asHex(item.bytes) : form === "json" ? asJson(item) ?? "This is no JSON, or not all of it." : asText(item.bytes) ?? "This is no text.";
    setText(find("item-value"), shown);
  },
};

function asText(list) {
  // The last character may be cut.
  for (let cut = 0; cut < 4 && cut <= list.length; cut += 1) {
    try {
      const text = new TextDecoder("utf-8", { fatal: true }).decode(list.subarray(0, list.length - cut));
      return /[\u0000-\u0008\u000e-\u001f]/.test(text) ? null : text;
    } catch { /* One byte less, then. */ }
  }
  return null;
}

function asJson(item) {
  if (item.value_len > item.bytes.length) return null;
  try {
    const value = JSON.parse(asText(item.bytes) ?? "");
    return typeof value === "object" && value !== null ? JSON.stringify(value, null, 2) : null;
  } catch { return null; }
}

function asHex(list) {
  const lines = [];
  for (let at = 0; at < list.length; at += 8) {
    const part = Array.from(list.subarray(at, at + 8));
    const hex = part.map((byte) => byte.toString(16).padStart(2, "0")).join(" ");
    const text = part.map((byte) => (byte >= 32 && byte < 127 ? String.fromCharCode(byte) : ".")).join("");
    lines.push(`${at.toString(16).padStart(4, "0")}  ${hex.padEnd(23)}  ${text}`);
  }
  return lines.join("\n");
}
