// The topology as it is now: an SVG that is changed in place, so that who stays does not move.
//
// `state` holds members with their places, links by the members' names, and a title. Text is only ever set as text.

const SVG = "http://www.w3.org/2000/svg";
const EDGE = 34; // room around the members
const SIZES = { registry: 13, provider: 13, node: 10 };

function drawn(kind, attributes = {}, className) {
  const made = document.createElementNS(SVG, kind);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  if (className) made.setAttribute("class", className);
  return made;
}

function shape(kind) {
  const size = SIZES[kind] ?? 10;
  if (kind === "registry") return drawn("rect", { x: -size, y: -size, width: 2 * size, height: 2 * size, rx: 2 }, "kodo-shape");
  if (kind === "provider") return drawn("path", { d: `M0 ${-size - 2}L${size + 2} 0L0 ${size + 2}L${-size - 2} 0Z` }, "kodo-shape");
  return drawn("circle", { r: size }, "kodo-shape");
}

export class Picture {
  constructor(place) {
    this.root = document.createElement("figure");
    this.root.className = "kodo-mesh";
    this.svg = drawn("svg", { role: "img" });
    this.links = drawn("g");
    this.members = drawn("g");
    this.words = drawn("g", {}, "kodo-words"); // what is said of a link may be longer than it, and stands above its ends then
    this.svg.append(this.links, this.members, this.words);
    this.legend = document.createElement("figcaption");
    this.root.append(this.svg, this.legend);
    this.known = { links: new Map(), members: new Map(), words: new Map() };
    place.append(this.root);
  }

  show({ members = [], links = [], beside = [], title = "" }) {
    const at = new Map(members.map((member) => [member.name, member]));
    this.frame(members);
    this.svg.setAttribute("aria-label", title);
    this.keep("members", members, (member) => member.name, (member) => this.member(member), (group, member) => {
      group.style.transform = `translate(${member.x}px, ${member.y}px)`;
      group.dataset.state = member.state;
      group.querySelector("title").textContent = `${member.kind} ${member.name}: ${member.state}`;
    });
    const drawable = links.filter((link) => at.has(link.one) && at.has(link.other));
    const key = (link) => JSON.stringify([link.one, link.other]);
    this.keep("links", drawable, key, () => drawn("path", { fill: "none" }), (line, link) => {
      const [one, other] = [at.get(link.one), at.get(link.other)];
      const quiet = one.state !== "running" || other.state !== "running";
      line.setAttribute("class", `kodo-link kodo-${link.kind}`);
      line.dataset.stands = String(link.stands);
      line.dataset.quiet = String(quiet);
      line.dataset.fault = link.fault ?? "";
      const [x, y] = this.middle(one, other, link.bend.map((aside) => 2 * aside));
      line.setAttribute("d", `M${one.x} ${one.y}Q${x} ${y} ${other.x} ${other.y}`);
    });
    this.keep("words", drawable.filter((link) => link.fault), key, () => drawn("text", { "text-anchor": "middle" }), (words, link) => {
      const [x, y] = this.middle(at.get(link.one), at.get(link.other), link.bend);
      words.setAttribute("x", x);
      const long = 6 * link.fault.length > Math.abs(at.get(link.one).x - at.get(link.other).x) - 40;
      words.setAttribute("y", y - (long ? 20 : 5));
      words.textContent = link.fault;
    });
    this.explain(members, drawable, beside);
  }

  frame(members) {
    const xs = members.map((member) => member.x), ys = members.map((member) => member.y);
    const half = members.map((member) => 3.6 * member.label.length);
    const left = Math.min(0, ...xs.map((x, n) => x - half[n])) - EDGE, right = Math.max(0, ...xs.map((x, n) => x + half[n])) + EDGE;
    const top = Math.min(0, ...ys) - EDGE, low = Math.max(0, ...ys) + EDGE + 18;
    const width = Math.max(right - left, 240), height = Math.max(low - top, 150);
    this.svg.setAttribute("viewBox", `${left - (width - right + left) / 2} ${top - (height - low + top) / 2} ${width} ${height}`);
    this.svg.style.maxWidth = `${Math.round(width * 1.25)}px`;
  }

  keep(what, items, key, make, update) {
    const known = this.known[what], seen = new Set();
    for (const item of items) {
      const name = key(item);
      seen.add(name);
      if (!known.has(name)) { known.set(name, make(item)); this[what].append(known.get(name)); }
      update(known.get(name), item);
    }
    for (const [name, group] of [...known]) if (!seen.has(name)) { group.remove(); known.delete(name); }
  }

  member({ name, kind, label }) {
    const group = drawn("g", { "data-member": name }, `kodo-member kodo-${kind}`);
    const words = drawn("text", { y: (SIZES[kind] ?? 10) + 17, "text-anchor": "middle" });
    words.textContent = label;
    group.append(drawn("title"), shape(kind), drawn("path", { d: "M-3.5 -5V5M3.5 -5V5" }, "kodo-bars"), words);
    return group;
  }

  middle(one, other, [x, y]) {
    return [(one.x + other.x) / 2 + x, (one.y + other.y) / 2 + y];
  }

  explain(members, links, beside) {
    const kinds = ["registry", "provider", "node"].filter((kind) => members.some((member) => member.kind === kind));
    const words = kinds.map((kind) => [kind, kind]);
    if (members.some((member) => member.state === "paused")) words.push(["paused", "paused"]);
    if (members.some((member) => !["running", "paused"].includes(member.state))) words.push(["gone", "does not answer"]);
    if (links.some((link) => !link.stands)) words.push(["broken", "does not stand"]);
    if (links.some((link) => link.fault)) words.push(["fault", "a fault"]);
    words.push(...beside.map((text) => ["beside", text]));
    const key = JSON.stringify(words);
    if (key === this.explained) return;
    this.explained = key;
    this.legend.replaceChildren(...words.map(([kind, text]) => {
      const item = document.createElement("span");
      item.className = `kodo-key kodo-key-${kind}`;
      item.textContent = text;
      return item;
    }));
  }
}

function render({ model, el }) {
  const picture = new Picture(el);
  const show = () => picture.show(model.get("state") ?? {});
  show();
  model.on("change:state", show);
  return () => model.off("change:state", show);
}

export default { render };
