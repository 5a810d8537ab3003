// The last messages between members, the newest first. `state` holds `lines`, each a list of texts, and a `note`.

const COLUMNS = ["time", "who", "route", "nodes", "bytes", "outcome"];

function element(kind, className, text) {
  const made = document.createElement(kind);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

function render({ model, el }) {
  const root = element("div", "kodo-messages");
  const note = element("div", "kodo-messages-note");
  const body = element("tbody");
  const table = element("table");
  const head = element("tr");
  head.append(...COLUMNS.map((column) => element("th", "", column)));
  const top = element("thead");
  top.append(head);
  table.append(top, body);
  const frame = element("div", "kodo-messages-frame");
  frame.tabIndex = 0;
  frame.setAttribute("role", "region");
  frame.setAttribute("aria-label", "messages between members");
  frame.append(table);
  root.append(note, frame);
  const show = () => {
    const { lines = [], note: words = "" } = model.get("state") ?? {};
    note.textContent = words;
    frame.hidden = !lines.length;
    body.replaceChildren(...lines.map((line) => {
      const row = element("tr");
      row.append(...line.map((text) => element("td", "", text)));
      return row;
    }));
  };
  show();
  model.on("change:state", show);
  el.append(root);
  return () => model.off("change:state", show);
}

export default { render };
