// A stand-in for the kernel: it has the rows, and answers what the table asks.
async ([script, style, many]) => {
  const url = URL.createObjectURL(new Blob([script], {type: "text/javascript"}));
  const {Grid} = await import(url);
  const sheet = document.createElement("style"); sheet.textContent = style; document.head.append(sheet);
  const columns = ["name", "node", "url", "organization", "author", "description", "tags", "registries"];
  const word = (n) => String(n).padStart(5, "0");
  const k = window.kernel = {told: [], looks: [], columns, note: "", ended: false, members: [
    {name: "north", kind: "registry", state: "running"}, {name: "south", kind: "registry", state: "paused"},
    {name: "library", kind: "node", state: "running"}, {name: "school", kind: "node", state: "killed"}]};
  k.rows = Array.from({length: many}, (_, n) => ({number: n + 1, cells: [
    `flow ${word(n)}`, `node${n % 40}`, `/flow-${word(n)}`, n % 3 ? "library" : "école",
    n % 5 ? "" : "me", n % 4 ? "" : "finds a book by what you remember of it <b>not bold</b>",
    n % 2 ? ["books", "a & b"] : [], n % 7 ? ["north", "south"] : ["north"]]}));
  k.answer = (asked, {fresh = {}, bodies = true} = {}) => {
    let rows = k.rows.filter((row) => !asked.q || row.cells[0].includes(asked.q));
    for (const [column, down] of [...asked.order].reverse()) {
      const at = columns.indexOf(column);
      rows = [...rows].sort((a, b) => (String(a.cells[at]) < String(b.cells[at]) ? -1 : String(a.cells[at]) > String(b.cells[at]) ? 1 : 0) * (down ? -1 : 1));
    }
    const shown = rows.slice(asked.first, asked.first + asked.count);
    const has = k.has ?? new Map();
    const told = Object.fromEntries(shown.filter((row) => has.get(row.number) !== row.cells).map((row) => [row.number, row.cells]));
    k.has = new Map(shown.map((row) => [row.number, row.cells]));
    const message = {type: "rows", view: asked.view, asked: asked.asked, first: asked.first, numbers: shown.map((row) => row.number),
      rows: told, fresh, filtered: rows.length, total: k.rows.length, columns, note: k.note, members: k.members, ended: k.ended};
    k.told.push(Object.keys(told).length);
    k.grid.heardFrom(JSON.parse(JSON.stringify(message)));
  };
  const place = document.createElement("main"); document.body.append(place);
  document.body.style.margin = "20px";
  const send = (message) => { k.looks.push(message); k.last = message; if (message.type !== "bye") setTimeout(() => k.answer(message)); };
  k.grid = new Grid(place, send, "flows of the mesh");
}
