// The table of flows: only the rows that are seen are in the page.
//
// The view says what it looks at ("hello", then "look": the rows, the order, the search); the kernel answers with
// these rows and, from then on, with what changes of them. Text is only ever set as text.

const ROW = 30; // pixels, as in grid.css
const AHEAD = 12; // rows fetched above and below what is seen
const BEAT = 10000; // milliseconds after which a view that heard nothing asks again: is somebody there?
const PATIENCE = 5000; // milliseconds after which a kernel that does not answer is said to be silent
const WIDTHS = {
  name: "minmax(8rem, 2.2fr)", node: "minmax(6rem, 1.2fr)", url: "minmax(6rem, 1.6fr)",
  organization: "minmax(8rem, 1.1fr)", author: "minmax(5.5rem, 1fr)", description: "minmax(7.5rem, 2fr)",
  tags: "minmax(5rem, 1.4fr)", registries: "minmax(var(--kodo-listing), 1.5fr)",
};
const LISTING = [7, 16]; // rem that the names of registries get at least, and at most for all to be seen
const TITLES = { registries: "listed by" };

export function element(kind, className, text) {
  const made = document.createElement(kind);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

export class Grid {
  // `send` takes what is said to the kernel; `place` is the element to draw in.
  constructor(place, send, label) {
    this.send = send;
    this.view = `v${Date.now().toString(36)}${Math.random().toString(36).slice(2)}`;
    this.rows = new Map(); // number -> cells, of the rows that were told last
    this.fresh = new Map(); // number -> until when the row is marked
    this.numbers = []; this.first = 0; this.filtered = 0; this.total = 0;
    this.columns = []; this.order = []; this.q = ""; this.active = -1; this.asked = 0;
    this.elements = new Map(); // row element by number
    this.heard = false; this.ended = false;
    this.build(place, label);
    this.look("hello");
  }

  build(place, label) {
    this.root = element("div", "kodo-live");
    // JupyterLab would take the keys for its own.
    this.root.dataset.lmSuppressShortcuts = "true";
    this.bar = element("div", "kodo-bar");
    this.search = element("input", "kodo-search");
    Object.assign(this.search, { type: "search", placeholder: 'search, or name ~ "agent" & @tag("news")', spellcheck: false });
    this.search.setAttribute("aria-label", "search flows ( / )");
    this.count = element("span", "kodo-count");
    this.count.setAttribute("role", "status");
    this.chips = element("div", "kodo-chips");
    this.chips.setAttribute("role", "list");
    this.chips.setAttribute("aria-label", "members");
    this.note = element("div", "kodo-note");
    this.note.setAttribute("role", "status");
    this.bar.append(this.search, this.count, this.chips);
    this.grid = element("div", "kodo-grid");
    this.grid.setAttribute("role", "grid");
    this.grid.setAttribute("aria-label", label);
    this.grid.tabIndex = 0;
    this.head = element("div", "kodo-head");
    this.head.setAttribute("role", "row");
    this.head.setAttribute("aria-rowindex", "1");
    this.space = element("div", "kodo-space");
    this.space.setAttribute("role", "rowgroup");
    this.empty = element("div", "kodo-empty", "waiting for the first answer");
    this.grid.append(this.head, this.space, this.empty);
    this.root.append(this.bar, this.note, this.grid);
    place.append(this.root);

    this.search.addEventListener("input", () => {
      clearTimeout(this.typing);
      this.typing = setTimeout(() => this.searchFor(this.search.value), 200);
    });
    this.search.addEventListener("keydown", (event) => {
      event.stopPropagation();
      if (event.key === "Enter") { clearTimeout(this.typing); this.searchFor(this.search.value); }
      if (event.key === "ArrowDown") { event.preventDefault(); this.grid.focus(); }
      if (event.key === "Escape") { this.search.value = ""; this.searchFor(""); }
    });
    this.grid.addEventListener("keydown", (event) => this.key(event));
    this.root.addEventListener("keydown", (event) => this.slash(event));
    this.grid.addEventListener("scroll", () => this.scrolled(), { passive: true });
    this.space.addEventListener("click", (event) => {
      const row = event.target.closest("[role=row]");
      if (row) this.activate(Number(row.getAttribute("aria-rowindex")) - 2);
    });
    this.sizes = new ResizeObserver(() => this.scrolled());
    this.sizes.observe(this.grid);
  }

  // -- what is asked ---------------------------------------------------------------------------------------

  visible() {
    const height = Math.max(this.grid.clientHeight - ROW, ROW);
    const first = Math.floor(this.grid.scrollTop / ROW);
    return [first, Math.ceil(height / ROW) + 1];
  }

  window() {
    const [first, count] = this.visible();
    const from = Math.max(0, first - AHEAD);
    return [from, first + count + AHEAD - from];
  }

  look(type = "look") {
    const [first, count] = this.window();
    this.wanted = [first, count];
    this.asked += 1;
    this.say({ type, view: this.view, first, count, order: this.order, q: this.q, asked: this.asked });
  }

  say(message) {
    try {
      this.send(message);
    } catch {
      this.silent("the kernel is gone: this is what it said last");
      return;
    }
    if (message.type === "bye") return;
    clearTimeout(this.waiting);
    this.waiting = setTimeout(() => this.silent("the kernel is busy or gone: this is what it said last"), PATIENCE);
  }

  beat() {
    clearTimeout(this.beating);
    if (!this.ended) this.beating = setTimeout(() => this.look(), BEAT);
  }

  silent(words) {
    if (this.ended) return;
    this.root.classList.add("kodo-silent");
    this.say_note(words);
    this.around(words);
  }

  // What stands around the table, a dashboard, hears of the same kernel: it says so too, and has nothing to press.
  around(words) {
    const box = this.root.closest(".kodo-dashboard");
    if (!box) return;
    if (words) box.dataset.silent = words;
    else delete box.dataset.silent;
    for (const controls of box.querySelectorAll(".kodo-controls")) controls.inert = Boolean(words);
  }

  say_note(words) {
    if (this.note.textContent !== words) this.note.textContent = words;
  }

  searchFor(q) {
    if (q === this.q) return;
    this.q = q;
    this.active = -1;
    this.grid.scrollTop = 0;
    this.look();
  }

  sortBy(column, add) {
    const at = this.order.findIndex(([name]) => name === column);
    const descends = at >= 0 ? !this.order[at][1] : false;
    if (!add) this.order = [[column, descends]];
    else if (at >= 0) this.order[at] = [column, descends];
    else this.order.push([column, false]);
    this.grid.scrollTop = 0;
    this.drawHead();
    this.look();
  }

  scrolled() {
    const [first, count] = this.visible();
    const [from, much] = this.wanted || [0, 0];
    const enough = first >= from && first + count <= from + much;
    if (!enough || (first < from + AHEAD / 3 && from > 0) || (first + count > from + much - AHEAD / 3 && from + much < this.filtered)) {
      if (!this.soon) this.soon = requestAnimationFrame(() => { this.soon = 0; this.look(); });
    }
    this.draw();
  }

  // -- what is told ----------------------------------------------------------------------------------------

  heardFrom(message) {
    if (message?.type !== "rows" || message.view !== this.view) return;
    clearTimeout(this.waiting); // whatever it says, the kernel is there
    this.root.classList.remove("kodo-silent");
    this.around("");
    const now = performance.now();
    const rows = new Map();
    for (const number of message.numbers) {
      const cells = message.rows[number] ?? this.rows.get(number);
      if (cells) rows.set(number, cells);
    }
    const missing = rows.size < message.numbers.length;
    this.changed = new Set(Object.keys(message.rows).map(Number));
    this.rows = rows;
    for (const [number, left] of Object.entries(message.fresh)) this.fresh.set(Number(number), now + left);
    this.heard = true;
    for (const name of ["numbers", "first", "filtered", "total"]) this[name] = message[name];
    if (String(this.columns) !== String(message.columns)) { this.columns = message.columns; this.shown = ""; }
    this.beat();
    this.drawMembers(message.members);
    this.say_note(message.note);
    this.root.classList.toggle("kodo-fault", Boolean(message.note));
    const count = (n) => `${n.toLocaleString("en")} ${n === 1 ? "flow" : "flows"}`;
    this.count.textContent = message.filtered === message.total
      ? count(message.total) : `${message.filtered.toLocaleString("en")} of ${count(message.total)}`;
    if (message.ended) this.end();
    this.drawHead();
    this.draw();
    clearTimeout(this.fading);
    if (this.fresh.size) this.fading = setTimeout(() => this.draw(), Math.max(50, ...[...this.fresh.values()].map((at) => at - now + 30)));
    if (missing) this.look("hello"); // an answer was lost, say between two kernels' connections
  }

  end() {
    this.ended = true;
    clearTimeout(this.waiting);
    clearTimeout(this.beating);
    this.root.classList.add("kodo-ended");
    this.search.disabled = true; // nobody is there to be asked
    this.say_note("the lab has ended: this is what it listed last");
  }

  // -- what is drawn ---------------------------------------------------------------------------------------

  used() {
    // Columns that are empty in all that is seen take no room; once shown they stay, so that nothing jumps.
    this.filled ??= new Set(["name", "node", "url", "registries"]);
    for (const cells of this.rows.values()) {
      this.columns.forEach((column, at) => { if (cells[at]?.length) this.filled.add(column); });
    }
    return this.columns.filter((column) => this.filled.has(column));
  }

  listing() {
    // Who lists a flow is what a mesh is about: these names get their room. It only grows, so that nothing jumps.
    const at = this.columns.indexOf("registries");
    const room = (words) => words.reduce((sum, word) => sum + 0.45 * word.length + 1.15, 1.3);
    const longest = Math.max(this.longest ?? LISTING[0], ...[...this.rows.values()].map((cells) => room(cells[at] ?? [])));
    this.longest = Math.min(LISTING[1], longest);
    return this.longest;
  }

  drawHead() {
    const used = this.used();
    this.root.style.setProperty("--kodo-listing", `${this.listing()}rem`);
    const key = JSON.stringify([used, this.order]);
    if (key === this.shown) return;
    if (this.shown && JSON.parse(this.shown)[0].length !== used.length) this.elements.forEach((row, number) => this.forget(number));
    this.shown = key;
    this.usedColumns = used;
    this.root.style.setProperty("--kodo-columns", used.map((column) => WIDTHS[column] ?? "1fr").join(" "));
    this.grid.setAttribute("aria-colcount", String(used.length));
    const focused = this.head.contains(document.activeElement) ? document.activeElement.dataset.column : null;
    this.head.replaceChildren(...used.map((column) => this.title(column)));
    if (focused) this.head.querySelector(`[data-column="${focused}"]`)?.focus();
  }

  title(column) {
    const cell = element("div", "kodo-title");
    const at = this.order.findIndex(([name]) => name === column);
    cell.setAttribute("role", "columnheader");
    cell.setAttribute("aria-sort", at < 0 ? "none" : this.order[at][1] ? "descending" : "ascending");
    const button = element("button", "", TITLES[column] ?? column);
    button.type = "button";
    button.tabIndex = -1;
    button.dataset.column = column;
    button.title = "sort; again: descending; with Shift: sort by this as well";
    const sign = element("span", "kodo-sign", at < 0 ? "" : (this.order[at][1] ? "▼" : "▲") + (this.order.length > 1 ? at + 1 : ""));
    sign.setAttribute("aria-hidden", "true");
    button.append(sign);
    button.addEventListener("click", (event) => this.sortBy(column, event.shiftKey));
    cell.append(button);
    return cell;
  }

  drawMembers(members) {
    const key = JSON.stringify(members);
    if (key === this.membersShown) return;
    this.membersShown = key;
    this.chips.replaceChildren(...members.map(({ name, kind, state }) => {
      const chip = element("span", `kodo-chip kodo-${kind}`);
      chip.dataset.state = state;
      chip.dataset.member = name;
      chip.setAttribute("role", "listitem");
      chip.title = `${kind} ${name}: ${state}`;
      const dot = element("span", "kodo-dot");
      dot.setAttribute("aria-hidden", "true");
      chip.append(dot, element("span", "", name), element("span", state === "running" ? "kodo-spoken" : "kodo-state", state));
      return chip;
    }));
  }

  draw() {
    const [top, count] = this.visible();
    const now = performance.now();
    this.space.style.height = `${this.filtered * ROW}px`;
    this.grid.setAttribute("aria-rowcount", String(this.filtered + 1));
    this.empty.textContent = this.filtered ? "" : this.heard ? (this.q.trim() ? "no flow is found" : "no flows are listed") : "waiting for the first answer";
    const seen = new Set();
    for (let at = Math.max(top, this.first); at < Math.min(top + count, this.first + this.numbers.length); at += 1) {
      const number = this.numbers[at - this.first];
      const cells = this.rows.get(number);
      if (!cells) continue;
      seen.add(number);
      const row = this.row(number, cells);
      row.style.transform = `translateY(${at * ROW}px)`;
      row.setAttribute("aria-rowindex", String(at + 2));
      const active = at === this.active;
      row.classList.toggle("kodo-active", active);
      row.setAttribute("aria-selected", String(active));
      if (active) this.grid.setAttribute("aria-activedescendant", row.id);
      const until = this.fresh.get(number) ?? 0;
      if (until <= now) this.fresh.delete(number);
      row.classList.toggle("kodo-fresh", until > now);
    }
    for (const number of [...this.elements.keys()]) if (!seen.has(number)) this.forget(number);
    if (this.active < 0) this.grid.removeAttribute("aria-activedescendant");
  }

  forget(number) {
    this.elements.get(number)?.remove();
    this.elements.delete(number);
  }

  row(number, cells) {
    let row = this.elements.get(number);
    if (row && row.cells === cells) return row;
    if (!row) {
      row = element("div", "kodo-row");
      row.setAttribute("role", "row");
      row.id = `${this.view}-${number}`;
      this.elements.set(number, row);
      this.space.append(row);
    }
    row.cells = cells;
    row.replaceChildren(...this.usedColumns.map((column) => this.cell(column, cells[this.columns.indexOf(column)])));
    return row;
  }

  cell(column, value) {
    const cell = element("div", `kodo-cell kodo-of-${column}`);
    cell.setAttribute("role", "gridcell");
    if (Array.isArray(value)) {
      cell.append(...value.map((word) => element("span", "kodo-word", word)));
      cell.title = value.join(", ");
    } else {
      // Of a service that is no member the host and port tell most.
      cell.textContent = column === "node" ? value.replace(/^https?:\/\//, "") : value;
      cell.title = value;
    }
    return cell;
  }

  // -- the keyboard ----------------------------------------------------------------------------------------

  slash(event) {
    if (event.key === "/" && event.target !== this.search) {
      event.preventDefault();
      event.stopPropagation();
      this.search.focus();
      this.search.select();
    }
  }

  key(event) {
    const page = Math.max(1, this.visible()[1] - 2);
    const last = this.filtered - 1;
    const at = Math.max(this.active, -1);
    const to = {
      ArrowDown: at + 1, ArrowUp: at - 1, PageDown: Math.max(at, 0) + page, PageUp: at - page, Home: 0, End: last,
    }[event.key];
    if (to === undefined || event.ctrlKey || event.altKey || event.metaKey) return;
    event.preventDefault();
    event.stopPropagation();
    this.activate(Math.max(0, Math.min(last, to)));
  }

  activate(at) {
    if (at < 0) return;
    this.active = at;
    const room = Math.max(this.grid.clientHeight - ROW, ROW);
    if (at * ROW < this.grid.scrollTop) this.grid.scrollTop = at * ROW;
    else if ((at + 1) * ROW > this.grid.scrollTop + room) this.grid.scrollTop = (at + 1) * ROW - room;
    this.draw();
  }

  close() {
    this.say({ type: "bye", view: this.view });
    clearTimeout(this.waiting);
    clearTimeout(this.fading);
    clearTimeout(this.beating);
    this.sizes.disconnect();
    this.root.remove();
  }
}

function render({ model, el }) {
  const grid = new Grid(el, (message) => model.send(message), model.get("label"));
  const hear = (message) => grid.heardFrom(message);
  const live = () => grid.look(); // the connection came or went: the answer, or none, tells which
  model.on("msg:custom", hear);
  model.on("comm_live_update", live);
  return () => {
    model.off("msg:custom", hear);
    model.off("comm_live_update", live);
    grid.close();
  };
}

export default { render };
