// What every page of clusterucb needs: its data, text that cannot become markup, axes, and a box beside a point.
const data = JSON.parse(document.getElementById("data").textContent);
const at = (id) => document.getElementById(id);
const isNumber = (value) => typeof value === "number" && Number.isFinite(value);

// ---- text: every string goes through plain() and into a text node or an attribute that is not code
const unshown = /[\p{Cc}\p{Cs}\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff]/gu;
const plain = (value) => String(value).replace(unshown, "\ufffd");
function put(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value !== undefined && value !== null) node.setAttribute(name, value);
  }
  for (const child of children.flat()) {
    if (child !== null && child !== undefined) node.append(child instanceof Node ? child : plain(child));
  }
  return node;
}
const el = (tag, attributes, ...children) => put(document.createElement(tag), attributes, children);
const svg = (tag, attributes, ...children) => put(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
const bdi = (text) => el("bdi", {}, text);
const isolated = (text) => "\u2068" + plain(text) + "\u2069"; // for attributes and spoken text, where there is no <bdi>
function parts(name) { // "ucb@kmeans[n_clusters=50]": the options are quieter than the name
  const text = plain(name), cut = text.indexOf("[");
  return cut > 0 ? [text.slice(0, cut), text.slice(cut)] : [text, ""];
}
function named(name) {
  const [head, options] = parts(name);
  return el("bdi", {}, head, options ? el("wbr") : null, options ? el("span", { class: "options" }, options) : null);
}
const grouped = (n) => isNumber(n) ? n.toLocaleString("en-US", { maximumFractionDigits: 1 }) : "–";
const fixed = (x, digits = 1) => isNumber(x) ? x.toFixed(digits).replace("-", "−") : "–";
const percent = (x, digits = 1) => isNumber(x) ? fixed(100 * x, digits) + "%" : "–";
const files = (paths) => [paths].flat().map((path) => plain(path).split(/[/\\]/).filter(Boolean).pop() || "–");
const count = (n, one, many = one + "s") => `${grouped(n)} ${n === 1 ? one : many}`;
function duration(s) {
  if (!isNumber(s)) return "–";
  if (s < 0.9995) return `${s < 0.00995 ? (1000 * s).toFixed(1) : Math.round(1000 * s)} ms`;
  return s < 60 ? `${s.toFixed(1)} s` : `${Math.floor(Math.round(s) / 60)} min ${Math.round(s) % 60} s`;
}
function listed(words, most = 4) {
  const shown = words.slice(0, most).flatMap((word, i) => [i ? ", " : "", bdi(word)]);
  return words.length > most ? [...shown, ` and ${words.length - most} more`] : shown;
}

function nice(range, ticks) {
  const rough = range / ticks, unit = 10 ** Math.floor(Math.log10(rough));
  return unit * [1, 2, 2.5, 5, 10].find((m) => m * unit >= rough * 0.999);
}
function ticks(low, high, about) {
  const step = nice(high - low, about), found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + 1e-9 * step; i++) found.push(i * step || 0); // no -0
  return { step, values: found };
}
function fit(node, width) { // cut an SVG text, with the whole in its <title>; the options go first
  if (node.getComputedTextLength() <= width) return;
  const whole = node.textContent, letters = Array.from(whole);
  let low = 0, high = letters.length;
  while (low < high) {
    const middle = (low + high + 1) >> 1;
    node.textContent = letters.slice(0, middle).join("") + "…";
    if (node.getComputedTextLength() <= width) low = middle; else high = middle - 1;
  }
  node.textContent = letters.slice(0, low).join("") + "…";
  node.append(svg("title", {}, whole));
}

// ---- the box beside a point
function place(x, y) {
  const tip = at("tip"), { offsetWidth: w, offsetHeight: h } = tip, room = document.documentElement.clientWidth;
  const goesLeft = x - 18 - w >= 8, goesRight = x + 18 + w <= room - 8; // up and to the left there are fewest curves
  const tx = goesLeft ? x - 18 - w : goesRight ? x + 18 : Math.max(8, Math.min(room - w - 8, x - w / 2));
  const ty = Math.max(8, y - h - 14 >= 8 ? y - h - 14 : y + 18);
  tip.style.transform = `translate(${Math.round(tx)}px, ${Math.round(ty)}px)`;
}
function tip(children, x, y) {
  at("tip").replaceChildren(...children);
  at("tip").hidden = false;
  place(x, y);
}

// ---- facts, switches, and drawing again
const fact = (name, value, ...more) => el("div", {}, el("dt", {}, name), el("dd", {}, value, more.length ? el("small", {}, ...more) : null));
function switches(label, state, name, choices, changed) { // choices: [value, text] pairs, of which state[name] is one value
  return el("div", { class: "switch", role: "group", "aria-label": label }, el("span", { "aria-hidden": "true" }, label),
    el("div", {}, ...choices.map(([value, text]) => {
      const button = el("button", { type: "button", "data-set": name, "data-value": value, "aria-pressed": String(state[name] === value) }, text);
      button.addEventListener("click", () => {
        state[name] = value;
        for (const other of button.parentNode.children) other.setAttribute("aria-pressed", String(other === button));
        changed();
      });
      return button;
    })));
}
function whenResized(draw) { // also before and after printing
  let width = document.documentElement.clientWidth;
  const redraw = () => { width = document.documentElement.clientWidth; draw(); };
  window.addEventListener("resize", () => { if (document.documentElement.clientWidth !== width) redraw(); });
  window.addEventListener("beforeprint", redraw);
  window.addEventListener("afterprint", redraw);
}
