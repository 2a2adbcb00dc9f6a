(() => {
  // ---- what is compared
  const measures = {
    recall: { word: "Recall", share: `share of the best ${grouped(data.n_select)} that it found` },
    mass: { word: "Score mass", share: "share of the attainable sum of scores" },
  };
  const strategies = (data.strategies || []).map((given, index) => ({
    ...given,
    index,
    points: [...(given.points || [])].sort((a, b) => a.n_budget - b.n_budget),
    shown: true,
  }));
  const byName = new Map([...strategies].reverse().map((s) => [s.name, s]));
  const isTruth = (s) => s.policy === "Exhaustive";
  const columns = [...new Map(strategies.flatMap((s) => s.points.map((p) => [p.budget, p.n_budget])))]
    .map(([budget, n]) => ({ budget, n, filled: strategies.filter((s) => !isTruth(s) && pointAt(s, budget)).length }))
    .filter((c, _, all) => c.filled || !all.some((other) => other.filled)) // no column for an exhaustive search alone
    .sort((a, b) => a.n - b.n);
  const most = Math.max(0, ...columns.map((c) => c.filled));
  const main = columns.filter((c) => 2 * c.filled >= most).pop(); // the largest budget that at least half of the strategies have
  function pointAt(s, budget) { return s.points.find((p) => p.budget === budget); }
  const valueAt = (s, budget, measure) => pointAt(s, budget)?.[measure]?.mean;
  function winners(budget, measure) {
    const rivals = strategies.filter((s) => !isTruth(s) && isNumber(valueAt(s, budget, measure)));
    const top = Math.max(...rivals.map((s) => valueAt(s, budget, measure)));
    const best = rivals.filter((s) => valueAt(s, budget, measure) === top);
    const std = Math.max(0, ...best.map((s) => pointAt(s, budget)[measure].std || 0));
    return { top, best, near: rivals.filter((s) => !best.includes(s) && valueAt(s, budget, measure) >= top - std) };
  }

  // ---- looks: a colour each; where there are too many, a colour for each policy and dashes within; grey draws at random
  const dashes = ["", "7 4", "1.5 4", "9 4 1.5 4"];
  const coloured = strategies.filter((s) => s.policy !== "Random" && !isTruth(s));
  const policies = [...new Set(coloured.map((s) => s.policy))];
  const byPolicy = coloured.length > 7 && policies.length > 2 && policies.length <= 7;
  const variants = new Map();
  for (const s of strategies) {
    const plainOne = !coloured.includes(s);
    const group = plainOne || byPolicy ? s.policy : "";
    const nth = variants.get(group) || 0;
    variants.set(group, nth + 1);
    s.colour = isTruth(s) ? "var(--ink)" : plainOne ? "var(--grey)" : `var(--c${byPolicy ? policies.indexOf(s.policy) : nth % 7})`;
    const variant = plainOne || byPolicy ? nth : Math.floor(nth / 7);
    s.dash = dashes[variant % 4];
    s.shape = (byPolicy || plainOne ? variant : nth) % 4;
  }
  const byFinal = [...strategies].sort((a, b) => (b.points.at(-1)?.recall?.mean ?? -1) - (a.points.at(-1)?.recall?.mean ?? -1));
  function marker(shape, x, y, r) {
    const d = [
      `M${x - r} ${y}a${r} ${r} 0 1 0 ${2 * r} 0a${r} ${r} 0 1 0 ${-2 * r} 0Z`,
      `M${x - 0.9 * r} ${y - 0.9 * r}h${1.8 * r}v${1.8 * r}h${-1.8 * r}Z`,
      `M${x} ${y - 1.3 * r}L${x + 1.2 * r} ${y + 0.85 * r}H${x - 1.2 * r}Z`,
      `M${x} ${y - 1.35 * r}L${x + 1.35 * r} ${y}L${x} ${y + 1.35 * r}L${x - 1.35 * r} ${y}Z`,
    ];
    return svg("path", { class: "dot", d: d[shape] });
  }
  function tinted(node, s) { node.style.setProperty("--s", s ? s.colour : "var(--c0)"); return node; }
  function key(s) {
    return tinted(svg("svg", { class: "key", viewBox: "0 0 30 12", "aria-hidden": "true" },
      svg("path", { class: "curve", d: "M1 6H29", "stroke-dasharray": s.dash || null }), marker(s.shape, 15, 6, 4)), s);
  }

  // ---- heading
  const pool = listed(files(data.pool), 2);
  function heading() {
    const title = `Which strategy finds the best ${grouped(data.n_select)} of ${count(data.pool_samples, "sample")}?`;
    put(at("title"), {}, [title]);
    document.title = `${title} – clusterucb`;
    put(at("facts"), {}, [
      fact("Pool", pool, count(data.pool_samples, "sample")),
      fact("Target", listed(files(data.target), 2), (data.subtasks || []).length ? listed(data.subtasks, 6) : null),
      fact("Model", bdi(files(data.model)[0])),
      fact("Selection", bdi(data.select), count(data.n_select, "sample")),
      data.truth?.served && (data.subtasks || []).length > 1
        ? fact("Rule", bdi(data.rule), "holds of each subtask's own best: ", listed(Object.entries(data.truth.served).map(([name, share]) => `${name} ${percent(share, 0)}`), 6))
        : null,
      fact("Repeated", count(data.seeds, "seed"), data.seeds > 1 ? "means ± one standard deviation" : "no spread to show"),
    ]);
    if (!main) return;
    const { top, best, near } = winners(main.budget, "recall");
    if (!best.length) return;
    const chance = strategies.find((s) => s.policy === "Random" && isNumber(valueAt(s, main.budget, "recall")));
    const rivals = most > 1;
    put(at("lead"), {}, [
      "With a budget of ", bdi(plain(main.budget)), ` (${count(main.n, "draw")}), `, el("b", {}, named(best[0].name)),
      best.length > 1 ? ` and ${count(best.length - 1, "other")}` : "",
      best.length > 1 ? " each" : "", " found ", el("b", {}, percent(top, 0)), ` of the ${grouped(data.n_select)} samples that an exhaustive search selects`,
      rivals && best.length === 1 ? ", more than any other strategy here" : "",
      `, at a total cost of ${percent(pointAt(best[0], main.budget).cost)} of what scoring the whole pool costs. `,
      near.length ? `${near.length === 1 ? "One other is" : near.length + " others are"} within one standard deviation of it. ` : "",
      chance && !best.includes(chance) ? `Random draws found ${percent(valueAt(chance, main.budget, "recall"), 0)}.` : "",
    ]);
  }

  // ---- the main chart
  const state = { measure: "recall", x: "cost", focus: null, now: null };
  const view = {}; // what the last drawing left: scales, nodes
  const xOf = (s, p) => state.x === "cost" ? p.cost : p.n_budget / data.pool_samples;
  const yOf = (p) => p[state.measure]?.mean;
  const drawable = (s) => s.points.filter((p) => isNumber(xOf(s, p)) && isNumber(yOf(p)));
  function tickText(step) {
    const digits = [0, 1, 2].find((d) => Math.abs(100 * step * 10 ** d - Math.round(100 * step * 10 ** d)) < 1e-6) ?? 3;
    return (value) => fixed(100 * value, digits) + "%";
  }
  function spread(labels, gap, low, high) { // move labels apart, as little as possible, within [low, high]
    labels.sort((a, b) => a.want - b.want);
    const blocks = [];
    for (const label of labels) {
      blocks.push({ members: [label], sum: label.want, top: label.want });
      for (;;) {
        const b = blocks.at(-1), a = blocks.at(-2);
        b.top = Math.min(Math.max(b.sum / b.members.length, low), high - gap * (b.members.length - 1));
        if (!a || a.top + gap * a.members.length <= b.top) break;
        a.sum += b.sum - gap * a.members.length * b.members.length;
        a.members.push(...b.members);
        blocks.pop();
      }
    }
    for (const block of blocks) block.members.forEach((label, i) => { label.y = block.top + i * gap; });
  }
  function domains(visible) {
    const near = visible.filter((s) => !isTruth(s)).flatMap((s) => drawable(s).map((p) => xOf(s, p)));
    const far = visible.filter(isTruth).flatMap((s) => drawable(s).map((p) => xOf(s, p)));
    const reach = near.length ? Math.max(...near) : Math.max(0, ...far);
    const xMax = (reach > 0 ? reach : 1) * 1.03;
    const ys = visible.flatMap((s) => drawable(s).flatMap((p) => {
      const { mean, std } = p[state.measure];
      return [mean, mean - (std || 0), mean + (std || 0)];
    }));
    let low = ys.length ? Math.min(...ys) : 0, high = ys.length ? Math.max(...ys) : 1;
    if (low > 0.5 && state.measure === "mass") {
      const step = nice(1 - low, 5);
      low = Math.max(0, Math.floor((low - 0.1 * step) / step) * step);
    } else low = low < 0 ? Math.floor(low * 10) / 10 : 0;
    high = high > 0.55 ? 1 : Math.min(1, Math.ceil(high * 1.04 / nice(high, 5)) * nice(high, 5) || 1);
    return { xMax, low, high };
  }
  function draw() {
    const host = at("curves"), visible = byFinal.filter((s) => s.shown);
    const width = Math.max(280, host.clientWidth || 720), wide = width >= 700;
    const { xMax, low, high } = domains(visible);
    const dense = visible.length > 12, pen = document.createElement("canvas").getContext("2d");
    pen.font = `13px ${getComputedStyle(document.body).fontFamily}`;
    const longest = Math.max(60, ...visible.map((s) => pen.measureText(plain(s.name)).width));
    const right = wide ? Math.min(longest + (dense ? 48 : 34), 0.32 * width) : 8;
    const yTicks = ticks(low, high, 5), xTicks = ticks(0, xMax, wide ? 8 : 4);
    const left = 46, top = 44, plotH = wide ? Math.min(760, Math.max(400, visible.length * 17)) : 300;
    const plotW = width - left - right, bottom = top + plotH, height = bottom + 50;
    const X = (v) => left + (v / xMax) * plotW, Y = (v) => bottom - ((v - low) / (high - low)) * plotH;
    const root = svg("svg", { viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true", class: dense ? "dense" : null });
    host.replaceChildren(root);
    const word = measures[state.measure];
    root.append(svg("text", { x: 0, y: 16, class: "axis-title y-title" }, `${word.word}: ${wide ? word.share : word.share.replace(" that it found", "").replace("attainable ", "")}`));
    for (const v of yTicks.values) {
      root.append(svg("line", { class: Math.abs(v - low) < 1e-9 ? "base" : "grid", x1: left, x2: left + plotW, y1: Y(v), y2: Y(v) }),
        svg("text", { x: left - 10, y: Y(v) + 4, "text-anchor": "end", class: "y-tick" }, tickText(yTicks.step)(v)));
    }
    for (const v of xTicks.values) {
      root.append(svg("line", { class: "base", x1: X(v), x2: X(v), y1: bottom, y2: bottom + 5 }),
        svg("text", { x: X(v), y: bottom + 20, "text-anchor": "middle", class: "x-tick" }, tickText(xTicks.step)(v)));
    }
    root.append(svg("text", { x: left + plotW, y: bottom + 42, "text-anchor": "end", class: "axis-title x-title" },
      state.x === "cost" ? `Total cost, in gradients of ${wide ? "all pool samples" : "the pool"}` : `Budget, in draws from ${wide ? "all pool samples" : "the pool"}`));
    root.append(svg("defs", {}, svg("clipPath", { id: "plot" }, svg("rect", { x: left - 8, y: top - 8, width: plotW + 16, height: plotH + 16 }))));
    if (low > 0) root.append(svg("text", { x: left + plotW, y: bottom - 8, "text-anchor": "end", class: "halo cut" }, `the vertical axis starts at ${tickText(yTicks.step)(low)}`));
    if (state.measure === "recall") {
      const end = Math.min(xMax, high);
      root.append(svg("line", { class: "chance", x1: X(0), y1: Y(0), x2: X(end), y2: Y(end) }));
      if (!visible.some((s) => s.policy === "Random")) {
        root.append(svg("text", { x: X(end) - 4, y: Y(end) + 18, "text-anchor": "end", class: "halo" }, "by chance"));
      }
    }
    Object.assign(view, { root, X, Y, left, width, targets: [], groups: new Map() });
    const beside = [], inside = [];
    let beyond = 0;
    for (const s of [...visible].reverse()) { // the best on top
      const points = drawable(s), kept = points.filter((p) => xOf(s, p) <= xMax * 1.0001), group = tinted(svg("g", { class: "strategy", "data-index": s.index }), s);
      root.append(group);
      view.groups.set(s, group);
      if (!points.length) continue;
      const inPlot = svg("g", { "clip-path": "url(#plot)" }), xy = points.map((p) => [X(xOf(s, p)), Y(yOf(p))]);
      const off = points.map((p) => (isNumber(p[state.measure].std) ? p[state.measure].std : 0));
      if (points.length > 1 && off.some((std) => std > 0)) {
        const upper = points.map((p, i) => `${xy[i][0]} ${Y(yOf(p) + off[i])}`), lower = points.map((p, i) => `${xy[i][0]} ${Y(yOf(p) - off[i])}`).reverse();
        inPlot.append(svg("path", { class: "band", d: `M${[...upper, ...lower].join("L")}Z` }));
      } else if (off[0] > 0 && points.length === 1) {
        inPlot.append(svg("line", { class: "whisker", x1: xy[0][0], x2: xy[0][0], y1: Y(yOf(points[0]) - off[0]), y2: Y(yOf(points[0]) + off[0]) }));
      }
      for (const [i, p] of points.entries()) {
        for (const seed of p[state.measure].seeds || []) if (isNumber(seed)) inPlot.append(svg("circle", { class: "seed", cx: xy[i][0], cy: Y(seed), r: 2 }));
      }
      if (points.length > 1) inPlot.append(svg("path", { class: "curve", d: `M${xy.map((c) => c.join(" ")).join("L")}`, "stroke-dasharray": s.dash || null }));
      for (const [i, p] of points.entries()) {
        if (!kept.includes(p)) continue;
        const dot = marker(s.shape, xy[i][0], xy[i][1], wide ? 4.2 : 3.6);
        inPlot.append(dot);
        view.targets.push({ s, p, x: xy[i][0], y: xy[i][1], dot });
      }
      group.append(inPlot);
      const [x, y] = kept.length ? xy[kept.length - 1] : [0, 0];
      if (!kept.length) {
        const p = points[0];
        group.append(svg("text", { x: left + plotW, y: Math.max(top, Math.min(bottom, Y(yOf(p)))) - 10 + 17 * beyond++, "text-anchor": "end", class: "halo" },
          svg("tspan", { class: "isolated" }, s.name), `: ${percent(yOf(p), 0)}, off the scale at ${percent(xOf(s, p), 0)} →`));
      } else if (wide) (kept.length === 1 && x < left + 0.7 * plotW ? inside : beside).push({ s, group, x, y, want: y });
    }
    if (wide) {
      spread(beside, 17, top, bottom);
      spread(inside, 17, top, bottom);
      for (const label of [...beside, ...inside]) {
        const into = inside.includes(label), edge = left + plotW + 22, lx = into ? label.x + 11 : dense ? edge + 14 : edge;
        if (!into) label.group.append(svg("path", { class: "leader", d: `M${label.x + 7} ${label.want}L${edge - 5} ${label.y}` }));
        if (!into && dense) label.group.append(marker(label.s.shape, edge + 4, label.y, 3.8));
        const [head, options] = parts(label.s.name);
        const text = svg("text", { x: lx, y: label.y + 4.5, class: "label" + (into ? " halo" : "") }, head, options ? svg("tspan", { class: "options" }, options) : null);
        label.group.append(text);
        fit(text, into ? Math.max(80, left + plotW - lx) : width - lx);
        text.addEventListener("pointerenter", () => focus(label.s));
      }
    }
    host.querySelectorAll(".focused").forEach((node) => node.classList.remove("focused"));
    focus(state.focus, true);
  }

  // ---- highlight and tooltip
  function focus(s, again) {
    if (state.focus === s && !again) return;
    state.focus = s;
    if (!view.root) return;
    view.root.classList.toggle("focused", Boolean(s && s.shown));
    for (const [other, group] of view.groups) group.classList.toggle("on", other === s);
    for (const button of at("legend").querySelectorAll("button[data-index]")) button.classList.toggle("on", Boolean(s) && button.dataset.index === String(s.index));
    if (s && view.groups.has(s)) view.root.append(view.groups.get(s));
  }
  const spreadText = (m) => m ? `${percent(m.mean)}${isNumber(m.std) && data.seeds > 1 ? ` ± ${fixed(100 * m.std)}` : ""}` : "–";
  function leave() {
    at("tip").hidden = true;
    state.now?.dot.classList.remove("now");
    state.now = null;
    state.keyed = false;
    focus(null);
  }
  function show(target, aloud) {
    if (state.now === target && !at("tip").hidden) return;
    state.now?.dot.classList.remove("now");
    state.now = target;
    state.keyed = Boolean(aloud);
    target.dot.classList.add("now");
    focus(target.s);
    const { s, p } = target, rows = [
      ["Recall", spreadText(p.recall)], ["Score mass", spreadText(p.mass)],
      ["Budget", [bdi(p.budget), ` (${count(p.n_budget, "draw")})`]],
      ["Total cost", `${percent(p.cost)} of all gradients`],
      ["Gradients", grouped(p.gradients)], ["Total time", duration(p.total_seconds)], ["Own time", duration(p.seconds)],
    ];
    const box = view.root.getBoundingClientRect(), scale = box.width / view.width;
    tip([el("p", { class: "head" }, key(s), named(s.name)), el("dl", {}, ...rows.flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, value)]))],
      box.left + target.x * scale, box.top + target.y * scale);
    if (aloud) at("spoken").textContent = `${isolated(s.name)}: recall ${spreadText(p.recall)}, score mass ${spreadText(p.mass)}, budget ${isolated(p.budget)}, cost ${percent(p.cost)}, ${duration(p.total_seconds)}`;
  }
  function listen() {
    const host = at("curves");
    const nearest = (event) => {
      const box = view.root.getBoundingClientRect(), scale = box.width / view.width;
      const x = (event.clientX - box.left) / scale, y = (event.clientY - box.top) / scale;
      let best = null, least = 46 ** 2;
      for (const t of view.targets) {
        const d = (t.x - x) ** 2 + (t.y - y) ** 2;
        if (d < least) [best, least] = [t, d];
      }
      return best;
    };
    const over = (event) => {
      if (event.target.closest?.(".label")) return;
      const found = nearest(event);
      if (found) show(found); else leave();
    };
    host.addEventListener("pointermove", over);
    host.addEventListener("pointerdown", over);
    host.addEventListener("pointerleave", (event) => { if (event.pointerType !== "touch") leave(); });
    document.addEventListener("pointerdown", (event) => { if (!host.contains(event.target)) leave(); });
    host.addEventListener("blur", leave);
    window.addEventListener("scroll", () => {
      if (at("tip").hidden) return;
      if (!state.keyed) return leave();
      at("tip").hidden = true;  // keys chose the point, and focus may scroll: the tip moves along
      return show(state.now, true);
    }, { passive: true });
    host.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
      if (event.key === "Escape") return leave();
      if (!step || !view.targets.length) return undefined;
      event.preventDefault();
      const rows = byFinal.map((s) => view.targets.filter((t) => t.s === s)).filter((row) => row.length);
      if (!state.now) return show(rows[0][0], true);
      const r = rows.findIndex((row) => row.includes(state.now)), row = rows[(r + step[1] + rows.length) % rows.length];
      const c = Math.min(Math.max(rows[r].indexOf(state.now) + step[0], 0), row.length - 1);
      return show(row[c], true);
    });
  }

  // ---- controls and legend
  function controls() {
    const group = (label, name, choices) => switches(label, state, name, Object.entries(choices), refresh);
    at("controls").append(group("Show", "measure", { recall: "Recall", mass: "Score mass" }), group("Against", "x", { cost: "Total cost", budget: "Budget" }));
    for (const s of byFinal) {
      const button = el("button", { type: "button", "aria-pressed": "true", "data-index": s.index }, key(s), named(s.name));
      button.addEventListener("click", () => { s.shown = !s.shown; shown(); });
      for (const type of ["pointerenter", "focus"]) button.addEventListener(type, () => focus(s));
      for (const type of ["pointerleave", "blur"]) button.addEventListener(type, () => focus(null));
      at("legend").append(el("li", {}, button));
    }
    if (strategies.length > 2) {
      const all = el("button", { type: "button", class: "all", id: "all" }, "Hide all");
      all.addEventListener("click", () => {
        const hide = strategies.every((s) => s.shown);
        for (const s of strategies) s.shown = !hide;
        shown();
      });
      at("legend").append(el("li", {}, all));
    }
  }
  function shown() {
    for (const button of at("legend").querySelectorAll("button[data-index]")) button.setAttribute("aria-pressed", String(strategies[button.dataset.index].shown));
    if (at("all")) at("all").textContent = strategies.every((s) => s.shown) ? "Hide all" : "Show all";
    draw();
    table();
  }
  function refresh() {
    leave();
    at("curves-title").textContent = state.measure === "recall" ? "How much of the best each strategy finds, for what it costs" : "How good the selected samples are, for what they cost";
    if (state.x === "budget") at("curves-title").textContent = at("curves-title").textContent.replace(/, for .*/, ", at each budget");
    const spreads = data.seeds > 1 ? ` The shaded band is one standard deviation over ${count(data.seeds, "seed")}; point at a curve to see each seed as a faint dot.` : " There was one seed, so nothing shows how much the curves vary.";
    at("curves-note").textContent = (state.x === "cost"
      ? "Up and to the left is better: more found, for less. The cost counts everything a strategy does, features and warm-up included; 100% is one gradient for every sample of the pool."
      : "Higher is better. A budget counts the draws only: what a strategy does before its first draw is left out here, so look at the total cost too.")
      + (state.measure === "recall" ? " The dotted line is what draws by chance would find if nothing else cost anything." : " Score mass forgives a near miss: a sample that is almost as good counts almost as much.")
      + spreads + " Select a name to hide or show its curve.";
    draw();
    table();
  }

  // ---- the table
  const sorting = { key: main ? "b" + columns.indexOf(main) : "name", down: Boolean(main) };
  function table() {
    const measure = state.measure, m = measures[measure];
    at("results-title").textContent = `${m.word} at every budget`;
    at("results-say").replaceChildren(`The ${m.share}, in %${data.seeds > 1 ? `, mean ± standard deviation over ${count(data.seeds, "seed")}` : ""}.`);
    const last = (s) => s.points.at(-1);
    const heads = [
      { key: "name", title: "Strategy", more: "", value: (s) => plain(s.name) },
      ...columns.map((c, i) => ({ key: "b" + i, column: c, title: bdi(c.budget), more: count(c.n, "draw"), value: (s) => valueAt(s, c.budget, measure) })),
      { key: "overhead", title: "Overhead", more: "before drawing", value: (s) => s.overhead },
      { key: "total", title: "Total time", more: "largest budget", value: (s) => last(s)?.total_seconds },
      { key: "seconds", title: "Own time", more: "largest budget", value: (s) => last(s)?.seconds },
    ];
    const by = heads.find((h) => h.key === sorting.key) || heads[0];
    const rows = strategies.filter((s) => !isTruth(s) || columns.some((c) => pointAt(s, c.budget))).sort((a, b) => {
      const u = by.value(a), v = by.value(b);
      if (by.key === "name") return (sorting.down ? -1 : 1) * u.localeCompare(v, "en", { numeric: true });
      if (!isNumber(u) || !isNumber(v)) return Number(isNumber(v)) - Number(isNumber(u));
      return (sorting.down ? -1 : 1) * (u - v);
    });
    const marks = columns.map((c) => winners(c.budget, measure));
    const kept = document.activeElement?.closest?.("#results")?.contains(document.activeElement) ? document.activeElement.dataset.key : null;
    const head = el("tr", {}, ...heads.map((h) => {
      const button = el("button", { type: "button", "data-key": h.key }, el("b", {}, h.title), h.more || "\u00a0");
      button.addEventListener("click", () => {
        if (sorting.key === h.key) sorting.down = !sorting.down;
        else Object.assign(sorting, { key: h.key, down: Boolean(h.column) });
        table();
      });
      return el("th", { scope: "col", "aria-sort": by === h ? (sorting.down ? "descending" : "ascending") : "none" }, button);
    }));
    const cell = (s, c, i) => {
      const found = pointAt(s, c.budget)?.[measure];
      if (!found || !isNumber(found.mean)) return el("td", { class: "off" }, "–");
      const mark = most > 1 && marks[i].best.includes(s) ? "best" : most > 1 && marks[i].near.includes(s) ? "near" : "";
      return el("td", { class: mark || (isTruth(s) ? "off" : null) }, el("span", { class: mark ? "flag" : null }, fixed(100 * found.mean)),
        data.seeds > 1 ? el("span", { class: "pm" }, `± ${fixed(100 * (found.std || 0))}`) : null,
        mark ? el("span", { class: "unseen" }, mark === "best" ? " best" : " within one standard deviation of the best") : null);
    };
    const body = rows.map((s) => el("tr", { "data-index": s.index }, el("th", { scope: "row" }, el("span", { class: "named" }, key(s), named(s.name))),
      ...columns.map((c, i) => cell(s, c, i)), el("td", {}, percent(s.overhead)), el("td", {}, duration(last(s)?.total_seconds)), el("td", {}, duration(last(s)?.seconds))));
    at("results").classList.toggle("dense", columns.length > 6);
    at("results").replaceChildren(el("caption", { class: "unseen" }, "Sort by a column with the button in its heading"), el("thead", {}, head), el("tbody", {}, ...body));
    if (kept) at("results").querySelector(`[data-key="${kept}"]`)?.focus();
    const sample = (kind, text) => el("span", { class: `swatches ${kind}` }, text);
    at("results-note").replaceChildren(
      ...(most > 1 ? [sample("best", "● best"), " has the highest mean of its column, ", sample("near", "○ close"), " lies within one standard deviation of it",
        strategies.some(isTruth) ? "; the exhaustive search is the yardstick and does not compete" : "", ". "] : []),
      "The same budget is not the same cost: the overhead, in gradients of the whole pool, comes on top. Total time is that of every pass; own time is what the strategy itself took, gradients left out.");
  }

  // ---- overlap
  function overlap() {
    const given = data.overlap, n = given?.names?.length || 0;
    if (n < 2) return;
    at("overlap-section").hidden = false;
    put(at("overlap-say"), {}, ["How much the selections have in common at a budget of ", bdi(given.budget), data.seeds > 1 ? ", mean over the seeds." : "."]);
    const heads = given.names.map((_, i) => el("th", { scope: "col" }, String(i + 1)));
    const rows = given.names.map((name, i) => {
      const s = byName.get(name);
      const row = el("tr", {}, el("th", { scope: "row" }, el("span", { class: "named" }, el("span", { class: "number" }, String(i + 1)), s ? key(s) : null, named(name))),
        ...given.names.map((other, j) => {
          const value = given.jaccard?.[i]?.[j];
          if (i === j || !isNumber(value)) return el("td", { class: "self" }, i === j ? "·" : "–");
          const cell = el("td", { class: value > 0.78 ? "high" : value > 0.63 ? "middle" : null }, fixed(100 * value, 0));
          cell.style.backgroundColor = `color-mix(in oklab, var(--heat) ${(4 + 96 * Math.min(1, Math.max(0, value))).toFixed(1)}%, var(--paper))`;
          cell.addEventListener("pointerenter", (event) => {
            const box = event.target.getBoundingClientRect();
            heads[j].classList.add("on");
            row.classList.add("on");
            tip([el("p", {}, named(name), " and ", named(other), ` share ${percent(value)} of what either selected`)], box.right, box.top);
          });
          cell.addEventListener("pointerleave", () => { heads[j].classList.remove("on"); row.classList.remove("on"); at("tip").hidden = true; });
          return cell;
        }));
      return row;
    });
    if (n > 10) at("overlap").classList.add("dense");
    at("overlap").append(el("thead", {}, el("tr", {}, el("td", { class: "self" }), ...heads)), el("tbody", {}, ...rows));
  }

  // ---- sources
  const chosen = { sources: [], others: [] };
  function sources() {
    const given = data.sources, names = Object.keys(given?.strategies || {});
    if (!names.length || !given.truth) return;
    at("sources-section").hidden = false;
    const tables = names.map((name) => new Map(Object.entries(given.strategies[name]))), truth = new Map(Object.entries(given.truth));
    const all = [...new Set([...truth.keys(), ...tables.flatMap((t) => [...t.keys()])])];
    const size = new Map(all.map((source) => [source, Math.max(truth.get(source) || 0, ...tables.map((t) => t.get(source) || 0))]));
    const ranked = all.sort((a, b) => size.get(b) - size.get(a) || (truth.get(b) || 0) - (truth.get(a) || 0));
    const kept = ranked.length === 13 ? 13 : 12;
    chosen.others = ranked.slice(kept);
    chosen.sources = ranked.slice(0, kept).sort((a, b) => (truth.get(b) || 0) - (truth.get(a) || 0) || size.get(b) - size.get(a));
    const sum = (t) => chosen.others.reduce((total, source) => total + (t.get(source) || 0), 0);
    const rows = (t) => [...chosen.sources.map((source) => t.get(source) || 0), ...(chosen.others.length ? [sum(t)] : [])];
    Object.assign(chosen, { names, tables: tables.map(rows), truth: rows(truth) });
    const pick = at("sources-pick"), order = names.map((_, i) => i).sort((a, b) => byFinal.indexOf(byName.get(names[a])) - byFinal.indexOf(byName.get(names[b])));
    const first = winners(main?.budget, "recall").best[0]?.name;
    for (const i of order) pick.append(el("option", { value: i }, names[i]));
    pick.value = String(Math.max(names.includes(first) ? names.indexOf(first) : order[0], 0));
    pick.addEventListener("change", dots);
    put(at("sources-say"), {}, ["at a budget of ", bdi(given.budget)]);
    put(at("sources-note"), {}, [`Each line is a source. Where the dot sits on the ring, the strategy selects as many of its samples as the exhaustive search does; left of the ring it selects fewer, right of it more.`,
      data.seeds > 1 ? " Counts are means over the seeds." : "", chosen.others.length ? ` Shown are the ${kept} largest of ${grouped(all.length)} sources, and the rest together.` : ""]);
    dots();
  }
  function dots() {
    if (!chosen.names) return;
    const pick = Number(at("sources-pick").value), s = byName.get(chosen.names[pick]), values = chosen.tables[pick], host = at("sources");
    const icon = (node) => svg("svg", { viewBox: "0 0 14 14" }, node);
    at("sources-guide").replaceChildren(
      el("span", {}, icon(svg("circle", { class: "ring", cx: 7, cy: 7, r: 5 })), "exhaustive search"),
      el("span", {}, tinted(icon(svg("circle", { class: "found", cx: 7, cy: 7, r: 5 })), s), named(chosen.names[pick])),
      chosen.names.length > 1 ? el("span", {}, icon(svg("line", { class: "tick", x1: 7, x2: 7, y1: 2, y2: 12 })), "the other strategies") : null);
    if (chosen.names.length < 2) at("sources-guide").lastChild.remove?.();
    const width = Math.max(280, host.clientWidth || 720), stacked = width < 620, rowH = stacked ? 46 : 34;
    const left = stacked ? 8 : Math.min(240, 0.28 * width), right = stacked ? 8 : 120, top = 34;
    const plotW = width - left - right, height = top + rowH * values.length + 8;
    const most = Math.max(1, ...chosen.truth, ...chosen.tables.flat()), scale = ticks(0, most, stacked ? 4 : 7), X = (v) => left + (v / most) * plotW;
    const root = tinted(svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `Selected samples of each source: exhaustive search against ${isolated(chosen.names[pick])}` }), s);
    host.replaceChildren(root);
    for (const v of scale.values) {
      root.append(svg("line", { class: v ? "grid" : "base", x1: X(v), x2: X(v), y1: top - 8, y2: height - 8 }), svg("text", { x: X(v), y: top - 15, "text-anchor": "middle" }, grouped(v)));
    }
    if (!stacked) root.append(svg("text", { x: width, y: top - 15, "text-anchor": "end" }, "found / best"));
    values.forEach((value, i) => {
      const y = top + rowH * i + (stacked ? 33 : rowH / 2), isRest = i === chosen.sources.length, best = chosen.truth[i];
      const name = svg("text", { class: isRest ? "name other" : "name", x: stacked ? 0 : left - 16, y: stacked ? y - 15 : y + 4.5, "text-anchor": stacked ? "start" : "end" },
        isRest ? `${grouped(chosen.others.length)} other sources` : isolatedText(chosen.sources[i]));
      const numbers = svg("text", { x: width, y: stacked ? y - 15 : y + 4.5, "text-anchor": "end" }, svg("tspan", { class: "strong" }, grouped(value)), ` / ${grouped(best)}`);
      root.append(svg("line", { class: "grid", x1: left, x2: left + plotW, y1: y, y2: y }));
      for (const [j, other] of chosen.tables.entries()) if (j !== pick) root.append(svg("line", { class: "tick", x1: X(other[i]), x2: X(other[i]), y1: y - 5, y2: y + 5 }));
      root.append(svg("line", { class: "gap", x1: X(value), x2: X(best), y1: y, y2: y }), svg("circle", { class: "ring", cx: X(best), cy: y, r: 6.5 }),
        svg("circle", { class: "found", cx: X(value), cy: y, r: 4.8 }), name, numbers);
      fit(name, stacked ? width - 110 : left - 20);
    });
  }
  const isolatedText = (text) => plain(text) || "(no name)";

  // ---- start
  function versions() {
    const truth = data.truth || {};
    put(at("versions"), {}, [`clusterucb ${plain(data.clusterucb)} · the yardstick is an exhaustive search: ${count(truth.scored, "pool sample")} scored`,
      truth.failed ? `, ${grouped(truth.failed)} could not be scored` : "", ` · rule `, bdi(data.rule), ...Object.entries(data.subtask_weights || {}).flatMap(([name, weight]) => [", ", bdi(name), ` × ${weight}`]), ` · batch size ${grouped(data.batch_size)} · model `, bdi(data.model),
      " · pool ", listed([data.pool].flat(), 9), " · target ", listed([data.target].flat(), 9)]);
  }
  at("page").hidden = at("footer").hidden = false;
  heading();
  controls();
  refresh();
  overlap();
  sources();
  versions();
  listen();
  whenResized(() => { leave(); draw(); dots(); });
})();
