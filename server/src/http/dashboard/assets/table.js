// A table of any length: sorted, filtered, and shown a page at a time, so that a thousand rows cost
// no more than fifteen. Rows are reused from second to second; only what changed is written.

const PAGE_ROWS = 15;

class Table {
  /**
   * `columns`: `{ id, title, numeric, level, sort, draw, text }`. `sort` takes an entry and gives
   * what to sort by; `draw(cell, entry)` writes a cell, `text(entry)` where text is all. `key`
   * gives what an entry is known by.
   */
  constructor(host, { columns, key, search, label, empty, sorted, onChoose = null }) {
    Object.assign(this, { columns, key, search, empty, onChoose });
    this.sorted = sorted;
    this.entries = [];
    this.page = 0;
    this.chosen = null;
    this.filter = element("input", { type: "search", placeholder: `Filter ${label.toLowerCase()}`, "aria-label": `Filter ${label.toLowerCase()}`, spellcheck: "false" });
    this.told = element("span", { role: "status" });
    this.back = element("button", { type: "button", "aria-label": `Previous page of ${label.toLowerCase()}` }, "‹");
    this.next = element("button", { type: "button", "aria-label": `Next page of ${label.toLowerCase()}` }, "›");
    this.body = element("tbody");
    this.headers = new Map();
    const head = element("tr", {}, ...columns.map((column) => this.header(column)));
    this.note = element("p", { class: "empty", hidden: true });
    this.rows = element("div", { class: "rows scroll", tabindex: "0", role: "region", "aria-label": label },
      element("table", {}, element("thead", {}, head), this.body), this.note);
    host.replaceChildren(element("div", { class: "card table-card" },
      element("div", { class: "table-tools" }, this.filter,
        element("span", { class: "pager" }, this.told, this.back, this.next)), this.rows));
    this.filter.addEventListener("input", () => { this.page = 0; this.draw(); });
    this.back.addEventListener("click", () => { this.page -= 1; this.draw(); });
    this.next.addEventListener("click", () => { this.page += 1; this.draw(); });
  }

  header(column) {
    const arrow = element("span", { class: "arrow", "aria-hidden": "true" });
    const button = element("button", { type: "button" }, column.title, arrow);
    button.addEventListener("click", () => {
      const [id, direction] = this.sorted;
      // What is large is of interest first; names begin with A.
      this.sorted = [column.id, id === column.id ? -direction : column.numeric ? -1 : 1];
      this.page = 0;
      this.draw();
    });
    const cell = element("th", { scope: "col", class: classes(column) }, button);
    this.headers.set(column.id, { cell, arrow });
    return cell;
  }

  show(entries) {
    this.entries = entries;
    this.draw();
  }

  draw() {
    const wanted = this.filter.value.trim().toLowerCase();
    const found = wanted ? this.entries.filter((entry) => this.search(entry).toLowerCase().includes(wanted)) : this.entries.slice();
    this.sort(found);
    const pages = Math.max(1, Math.ceil(found.length / PAGE_ROWS));
    this.page = Math.max(0, Math.min(this.page, pages - 1));
    const first = this.page * PAGE_ROWS;
    const shown = found.slice(first, first + PAGE_ROWS);
    setText(this.told, found.length === 0 ? "none" : `${whole(first + 1)}–${whole(first + shown.length)} of ${whole(found.length)}`);
    this.back.disabled = this.page === 0;
    this.next.disabled = this.page >= pages - 1;
    this.note.hidden = found.length > 0;
    setText(this.note, this.entries.length === 0 ? this.empty : "Nothing matches the filter.");
    // The last page is as tall as the others, and the filter changes no height either.
    const rows = Math.min(PAGE_ROWS, Math.max(1, this.entries.length));
    this.rows.style.minHeight = `${34 + rows * 37}px`;
    while (this.body.rows.length > shown.length) this.body.lastChild.remove();
    while (this.body.rows.length < shown.length) this.body.append(this.row());
    shown.forEach((entry, place) => this.write(this.body.rows[place], entry));
  }

  sort(found) {
    const [id, direction] = this.sorted;
    for (const [name, { cell, arrow }] of this.headers) {
      if (name === id) cell.setAttribute("aria-sort", direction > 0 ? "ascending" : "descending");
      else cell.removeAttribute("aria-sort");
      setText(arrow, name === id ? (direction > 0 ? "↑" : "↓") : "");
    }
    const { sort } = this.columns.find((column) => column.id === id);
    const keyed = found.map((entry) => [sort(entry), this.key(entry), entry]);
    keyed.sort(([a, keyA], [b, keyB]) => {
      // What is not known is last either way.
      if (a === null || b === null) return a === b ? compare(keyA, keyB) : a === null ? 1 : -1;
      return direction * compare(a, b) || compare(keyA, keyB);
    });
    keyed.forEach(([, , entry], place) => { found[place] = entry; });
  }

  row() {
    const row = element("tr", {}, ...this.columns.map((column) => element("td", { class: classes(column) })));
    if (this.onChoose) row.addEventListener("click", () => this.onChoose(row.entry));
    return row;
  }

  write(row, entry) {
    row.entry = entry;
    if (this.onChoose) setAttribute(row, "aria-selected", String(this.chosen !== null && this.chosen === this.key(entry)));
    this.columns.forEach((column, place) => {
      const cell = row.cells[place];
      if (column.draw) column.draw(cell, entry);
      else setText(cell, column.text(entry));
    });
  }
}

function compare(a, b) {
  if (typeof a === "string" && typeof b === "string") return a.localeCompare(b, "en", { numeric: true });
  return a < b ? -1 : a > b ? 1 : 0;
}

function classes(column) {
  return [column.numeric && "number", column.level && `p${column.level}`, column.id === "name" && "name"].filter(Boolean).join(" ") || null;
}

/** A text with a bar behind it, in a cell that is kept. */
function drawMetered(cell, text, part) {
  if (!cell.meter) {
    cell.label = element("span");
    cell.meter = meter();
    cell.replaceChildren(cell.label, cell.meter.host);
  }
  setText(cell.label, text);
  cell.meter.set(part);
}
