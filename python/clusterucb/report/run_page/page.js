(() => {
  const subtasks = data.subtasks || [], outcome = data.outcome, recall = outcome && outcome.recall;
  const finished = outcome !== null && data.status === "finished";
  const colour = (i) => `var(--c${i % 7})`;
  const tinted = (node, i) => { node.style.setProperty("--s", colour(i)); return node; };
  const noun = (n, word) => `${grouped(n)} ${n === 1 ? word : word + "s"}`;
  const score = (x) => isNumber(x) ? (x < 0 ? "−" : "") + Math.abs(x).toFixed(Math.abs(x) < 0.0995 ? 4 : 3) : "–";
  const having = (of) => subtasks.filter((name) => Object.hasOwn(of, name)); // the keys of an object come in an order of their own
  const text = (strings) => strings.filter(Boolean).join(" ");
  function frame(host, width, height, label) {
    const root = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label });
    host.replaceChildren(root);
    return root;
  }
  const tipOf = (node, children) => {
    node.addEventListener("pointermove", (event) => tip(children(), event.clientX, event.clientY));
    node.addEventListener("pointerleave", () => { at("tip").hidden = true; });
    return node;
  };
  const terms = (pairs) => el("dl", {}, pairs.flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, value)]));

  // ---- the heading
  function heading() {
    const n = outcome ? outcome.n_selected : 0, share = data.scored / data.pool;
    const found = recall ? `, about ${percent(recall.estimate, 0)} of the best found` : "";
    const title = outcome ? `${grouped(n)} of ${noun(data.pool, "sample")} selected${found}` : `${grouped(data.scored)} of ${noun(data.pool, "sample")} scored so far`;
    put(at("title"), {}, [title]);
    document.title = `${title} – clusterucb`;
    const state = finished ? "The run is finished." : data.status === "finished" ? "" : "The run has not ended: this page shows it as it was when the page was made.";
    put(at("lead"), {}, [text([
      `It computed the gradients of ${noun(data.scored, "pool sample")}, ${percent(share)} of the pool, in ${duration(outcome ? data.cost.seconds : (data.trail.at(-1) || {}).seconds)} in all.`,
      outcome && data.cost.total > 0 ? `With the target, the warm-up and the features, that costs ${data.cost.total.toFixed(3)} of a gradient of every pool sample.` : "",
      recall && data.scored < data.pool ? `Between ${percent(recall.low, 0)} and ${percent(recall.high, 0)} of the ${grouped(outcome.n_select)} samples that scoring everything would select are among the scored ones, with 90% confidence.`
        : outcome && !recall ? "The recall cannot be estimated: too few draws were random, or there is a cap on sources." : "",
      state,
    ])]);
    const target = subtasks.reduce((sum, name) => sum + data.target[name], 0);
    put(at("facts"), {}, [
      fact("Pool", listed(files((data.inputs.pool_files || []).length ? data.inputs.pool_files : ["pool"]), 2), noun(data.pool, "sample")),
      fact("Target", noun(target, "sample"), listed(subtasks.map((name) => `${name} ${data.target[name]}`), 6)),
      fact("Budget", plain(data.asked.budget || "–"), `${grouped(data.tokens)} tokens scored`),
      fact("Policy", bdi(described(data.options["--policy"])), outcome ? `rule: ${plain(outcome.rule)}` : null),
      fact("Scored", noun(data.scored, "sample"), data.failed ? `${grouped(data.failed)} failed` : "none failed"),
    ]);
  }
  function described(strategy) {
    if (!strategy || typeof strategy !== "object") return plain(strategy || "–");
    const name = plain(strategy.class || strategy.name || "–");
    return name.split(/[.:]/).pop();
  }

  // ---- a chart of lines that a pointer and the arrow keys read
  function lines(host, { xs, series, low, high, x, y, label }) {
    const width = Math.max(280, host.clientWidth || 460), height = Math.min(300, Math.max(210, width * 0.58)), left = 46, right = 14, top = 12, bottom = 40;
    const X = (v) => left + (v / xs.at(-1)) * (width - left - right), Y = (v) => height - bottom - ((v - low) / (high - low || 1)) * (height - top - bottom);
    const root = frame(host, width, height, label);
    for (const v of ticks(low, high, 4).values) root.append(svg("line", { class: "grid", x1: left, x2: width - right, y1: Y(v), y2: Y(v) }), svg("text", { x: left - 8, y: Y(v) + 4, "text-anchor": "end" }, y.format(v)));
    for (const v of ticks(0, xs.at(-1), width < 400 ? 3 : 5).values) root.append(svg("text", { x: X(v), y: height - bottom + 20, "text-anchor": "middle" }, x.format(v)));
    root.append(svg("line", { class: "base", x1: left, x2: width - right, y1: height - bottom, y2: height - bottom }), svg("text", { class: "axis-title", x: width - right, y: height - 4, "text-anchor": "end" }, x.title));
    const path = (values) => values.map((v, i) => isNumber(v) ? `${X(xs[i]).toFixed(1)} ${Y(v).toFixed(1)}` : null).filter(Boolean);
    series.forEach((one, i) => {
      if (one.low) root.append(tinted(svg("path", { class: "band", d: "M" + [...path(one.high), ...path(one.low).reverse()].join("L") + "Z" }), i));
      root.append(tinted(svg("path", { class: "curve", d: "M" + path(one.values).join("L") }), i));
    });
    const cursor = svg("line", { class: "cursor", y1: top, y2: height - bottom, visibility: "hidden" });
    const dots = series.map((_, i) => tinted(svg("circle", { class: "dot", r: 4.5, visibility: "hidden" }), i));
    root.append(cursor, ...dots);
    let now = -1;
    const said = (i) => [`${x.format(xs[i])} ${x.unit}`, ...series.map((one) => `${one.name ? plain(one.name) + " " : ""}${y.say(one, i)}`)];
    function show(i, clientX, clientY) {
      now = i;
      put(cursor, { x1: X(xs[i]), x2: X(xs[i]), visibility: "visible" }, []);
      dots.forEach((dot, k) => put(dot, isNumber(series[k].values[i]) ? { cx: X(xs[i]), cy: Y(series[k].values[i]), visibility: "visible" } : { visibility: "hidden" }, []));
      const box = root.getBoundingClientRect(), scale = box.width / width;
      tip([el("p", { class: "head" }, said(i)[0]), terms(series.map((one) => [bdi(one.name || "recall"), y.say(one, i)]))], clientX ?? box.left + X(xs[i]) * scale, clientY ?? box.top + 40);
    }
    function leave() { now = -1; at("tip").hidden = true; for (const node of [cursor, ...dots]) node.setAttribute("visibility", "hidden"); }
    root.addEventListener("pointermove", (event) => {
      const box = root.getBoundingClientRect(), v = ((event.clientX - box.left) * width / box.width - left) / (width - left - right) * xs.at(-1);
      show(xs.reduce((best, each, i) => Math.abs(each - v) < Math.abs(xs[best] - v) ? i : best, 0), event.clientX, event.clientY);
    });
    root.addEventListener("pointerleave", leave);
    put(host, { tabindex: 0, role: "application", "aria-roledescription": "chart", "aria-label": `${label}. Left and right arrows read it.` }, []);
    host.onblur = leave;
    host.onkeydown = (event) => {
      const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (event.key === "Escape") leave();
      if (!step) return;
      event.preventDefault();
      show(now < 0 ? (step > 0 ? 0 : xs.length - 1) : Math.max(0, Math.min(xs.length - 1, now + step)));
      at("spoken").textContent = said(now).join(", ");
    };
  }

  // ---- the search as it went
  const state = { axis: "draws", colour: "score", subtask: 0, calibrated: subtasks[0] };
  const trail = (data.trail || []).filter((point) => isNumber(point.seconds));
  const secondsAt = (draws) => { // linear between the estimates, whose times are known
    const after = trail.findIndex((point) => point.draws >= draws), b = trail[after < 0 ? trail.length - 1 : after], a = after > 0 ? trail[after - 1] : null;
    return a ? a.seconds + (b.seconds - a.seconds) * (Math.min(draws, b.draws) - a.draws) / (b.draws - a.draws || 1) : b.seconds * Math.min(1, draws / b.draws);
  };
  function search() {
    const bySeconds = state.axis === "seconds" && trail.length > 1;
    const x = bySeconds ? { title: "time of the run", unit: "", format: duration } : { title: "samples scored", unit: "samples scored", format: (v) => grouped(v) };
    const place = (draws) => bySeconds ? secondsAt(draws) : draws;
    at("recall-part").hidden = trail.length < 2;
    if (trail.length > 1) {
      const column = (k) => trail.map((point) => point.recall[k]);
      lines(at("recall"), { xs: trail.map((point) => place(point.draws)), low: 0, high: 1, x, label: `Estimated recall: ${percent(trail[0].recall[0], 0)} after ${grouped(trail[0].draws)} samples, ${percent(trail.at(-1).recall[0], 0)} after ${grouped(trail.at(-1).draws)}`,
        y: { format: (v) => percent(v, 0), say: (one, i) => `${percent(one.values[i], 0)} (${percent(one.low[i], 0)} to ${percent(one.high[i], 0)})` }, series: [{ name: "", values: column(0), low: column(1), high: column(2) }] });
    }
    const names = having(data.best.curves), all = names.flatMap((name) => data.best.curves[name]).filter(isNumber);
    const [low, high] = [Math.min(...all), Math.max(...all)];
    at("best-say").textContent = `the mean score of the best that a subtask would select${names.length < subtasks.length ? `, for ${names.length} of ${subtasks.length} subtasks` : ""}`;
    lines(at("best"), { xs: data.best.draws.map(place), low: Math.min(0, low), high: high + (high - low) * 0.04, x, label: `Best so far: ${names.map((name) => `${isolated(name)} ${score(data.best.curves[name].at(-1))}`).join(", ")}`,
      y: { format: (v) => fixed(v, 2), say: (one, i) => score(one.values[i]) }, series: names.map((name) => ({ name, values: data.best.curves[name] })) });
    at("best-legend").replaceChildren(...(names.length > 1 ? names.map((name, i) => el("li", {}, tinted(el("i"), i), bdi(name))) : []));
  }
  function searchText() {
    const half = trail.find((point) => point.draws >= data.scored / 2), last = trail.at(-1), spent = data.scored < data.pool && (!outcome || outcome.stopped === "budget");
    const gain = spent && half && half !== last ? last.recall[0] - half.recall[0] : null;
    at("search-say").textContent = text([
      recall ? `The estimated recall is ${percent(recall.estimate, 0)} at the end.` : last ? `The estimated recall is ${percent(last.recall[0], 0)} after ${noun(last.draws, "sample")}.` : "There are no estimates of the recall along the way.",
      gain === null ? "" : gain < 0.03 ? `It hardly rose in the second half (${percent(half.recall[0], 0)} at half): a smaller budget would have found as much.` : `The second half of the draws raised it from ${percent(half.recall[0], 0)}: ${recall && recall.estimate > 0.95 ? "now there is little left to find" : gain > 0.1 ? "a larger budget would find more" : "more draws would add a little"}.`,
      finished ? `Why it stopped: ${plain({ budget: "the budget is spent", exhausted: "the whole pool is scored", recall: "the recall that was asked for is reached", interrupted: "it was interrupted" }[outcome.stopped] || outcome.stopped)}.` : "",
    ]);
    at("search-controls").replaceChildren(...(trail.length > 1 ? [switches("Axis", state, "axis", [["draws", "samples"], ["seconds", "time"]], search)] : []));
  }

  // ---- arms over time
  function arms() {
    const host = at("arms"), { rows, others, edges } = data.arms, width = Math.max(280, host.clientWidth || 900), narrow = width < 620;
    const shown = [...rows, ...(others.arms ? [{ ...others, arm: null }] : [])], columns = edges.length - 1, left = narrow ? 64 : 178, right = narrow ? 4 : 120;
    const h = Math.max(10, Math.min(20, 460 / shown.length)), top = 22, height = top + shown.length * h + 34;
    const most = Math.max(1, ...shown.flatMap((row) => row.times)), w = (width - left - right) / columns;
    const root = frame(host, width, height, `Draws by cluster: ${rows.slice(0, 5).map((row) => `cluster ${row.arm} ${row.draws}`).join(", ")}`);
    if (!narrow) root.append(svg("text", { x: left - 10, y: 12, "text-anchor": "end" }, "cluster, mean score"), svg("text", { x: width - right + 12, y: 12 }, "drawn, selected"));
    shown.forEach((row, i) => {
      const y = top + i * h, name = row.arm === null ? `${grouped(row.arms)} others` : `${row.arm}`;
      root.append(svg("text", { x: left - 10, y: y + h - Math.max(2, (h - 10) / 2), "text-anchor": "end", "font-size": Math.min(12.5, h) }, narrow || row.arm === null ? name : `${name}   ${score(row.mean)}`));
      if (!narrow) root.append(svg("text", { x: width - right + 12, y: y + h - Math.max(2, (h - 10) / 2), "font-size": Math.min(12.5, h) }, `${grouped(row.draws)}, ${grouped(row.selected)}`));
      row.times.forEach((n, k) => { if (n) root.append(svg("rect", { class: "cell", x: left + k * w, y: y + 0.5, width: Math.max(1, w - 0.6), height: h - 1, opacity: (0.16 + 0.84 * n / most).toFixed(3) })); });
      root.append(tipOf(svg("rect", { class: "hit", x: left, y, width: width - left - right, height: h }), () => [el("p", { class: "head" }, row.arm === null ? name : `cluster ${name}`),
        terms([["drawn", grouped(row.draws)], ["selected", grouped(row.selected)], ...(isNumber(row.mean) ? [["mean score", score(row.mean)]] : [])])]));
    });
    root.append(svg("text", { x: left, y: height - 8 }, "first draw"), svg("text", { class: "axis-title", x: width - right, y: height - 8, "text-anchor": "end" }, `draw ${grouped(data.scored)}`));
    at("arms-say").textContent = `Each row is a cluster, those with the largest mean score first; each column is ${noun(Math.round(data.scored / columns) || 1, "draw")}. The darker a cell, the more of them came from that cluster.`;
    const top5 = rows.slice(0, 5), n = top5.reduce((sum, row) => sum + row.draws, 0), chosen = rows.reduce((sum, row) => sum + row.selected, 0) + others.selected;
    at("arms-note").textContent = text([`The five clusters with the largest mean scores, of ${grouped(data.arms.count)}, took ${percent(n / data.scored, 0)} of the draws`, chosen ? `and gave ${percent(top5.reduce((sum, row) => sum + row.selected, 0) / chosen, 0)} of the selection.` : "so far."]);
  }

  // ---- what was expected
  function outlook() {
    at("outlook-section").hidden = !data.calibration;
    if (!data.calibration) return;
    const names = having(data.calibration), [total, missed] = data.missed || [0, []];
    at("outlook-say").textContent = text([`About ${total < 10 ? fixed(total) : grouped(Math.round(total))} of the best ${grouped(outcome.n_select)} samples were not drawn.`,
      total < 1 || !missed.length ? "There is hardly anything left to find." : `The sources where most are expected: ${missed.slice(0, 2).map(([name, n]) => `${plain(name)} (${fixed(n)})`).join(" and ")}.`]);
    const select = el("select", { id: "calibration-pick" }, names.map((name) => el("option", { value: name }, name)));
    select.addEventListener("change", () => { state.calibrated = select.value; calibration(); });
    at("calibration-controls").replaceChildren(...(names.length > 1 ? [el("label", { for: "calibration-pick" }, "Subtask"), select] : []));
    calibration();
    const host = at("missed"), width = Math.max(280, host.clientWidth || 460), some = missed.slice(0, 12), left = Math.min(190, width * 0.42), top = 6, h = 25;
    const root = frame(host, width, top + Math.max(1, some.length) * h + 8, `Expected missed samples: ${some.map(([name, n]) => `${isolated(name)} ${fixed(n)}`).join(", ") || "none"}`);
    const most = Math.max(...some.map(([, n]) => n), 1e-9);
    if (!some.length) root.append(svg("text", { x: 0, y: 20 }, "none"));
    some.forEach(([name, n], i) => {
      const label = svg("text", { class: "name isolated", x: left - 10, y: top + i * h + 16, "text-anchor": "end" }, name), wide = (width - left - 60) * n / most;
      root.append(label, tinted(svg("rect", { class: "bar on", x: left, y: top + i * h + 4, width: Math.max(1.5, wide), height: h - 10, rx: 2 }), 0), svg("text", { x: left + wide + 8, y: top + i * h + 16 }, fixed(n)));
      fit(label, left - 12);
    });
  }
  function calibration() {
    const host = at("calibration"), one = data.calibration[state.calibrated] || Object.values(data.calibration)[0], n = one.counts.length;
    const width = Math.max(260, Math.min(440, host.clientWidth || 420)), left = 52, bottom = 44, side = width - left - 12, height = side + bottom + 8, step = side / n;
    const most = Math.max(1, ...one.counts.flat()), root = frame(host, width, height, `Predicted against observed scores, correlation ${fixed(one.correlation, 2)}`);
    put(root, { style: null }, []);
    root.style.maxWidth = `${width}px`;
    one.counts.forEach((row, i) => row.forEach((c, j) => {
      if (c) root.append(tipOf(svg("rect", { class: "cell", x: left + i * step, y: 8 + side - (j + 1) * step, width: step - 0.6, height: step - 0.6, opacity: (0.12 + 0.88 * Math.sqrt(c / most)).toFixed(3) }),
        () => [el("p", { class: "head" }, noun(c, "draw")), terms([["predicted", `about ${score(one.low + (i + 0.5) * (one.high - one.low) / n)}`], ["observed", `about ${score(one.low + (j + 0.5) * (one.high - one.low) / n)}`]])]));
    }));
    root.append(svg("line", { class: "diagonal", x1: left, y1: 8 + side, x2: left + side, y2: 8 }), svg("line", { class: "base", x1: left, x2: left + side, y1: 8 + side, y2: 8 + side }));
    for (const v of ticks(one.low, one.high, 4).values) {
      const along = (v - one.low) / (one.high - one.low || 1) * side;
      root.append(svg("text", { x: left + along, y: 8 + side + 18, "text-anchor": "middle" }, fixed(v, 2)), svg("text", { x: left - 8, y: 8 + side - along + 4, "text-anchor": "end" }, fixed(v, 2)));
    }
    root.append(svg("text", { class: "axis-title", x: left + side, y: height - 4, "text-anchor": "end" }, "predicted from the other draws"), svg("text", { class: "axis-title", x: left + 8, y: 22 }, "observed"));
    at("calibration-say").textContent = `Near the dashed line, features predict scores. Correlation: ${fixed(one.correlation, 2)}.`;
  }

  // ---- the map
  const points = data.map ? unpacked(data.map) : null;
  function numbers(base64, Kind) {
    const bytes = Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
    return new Kind(bytes.buffer);
  }
  function unpacked(map) {
    const grid = new Map(), x = numbers(map.x, Uint16Array), y = numbers(map.y, Uint16Array);
    const key = (i) => (x[i] >> 10) * 64 + (y[i] >> 10);
    for (let i = 0; i < x.length; i++) { const own = grid.get(key(i)); if (own) own.push(i); else grid.set(key(i), [i]); }
    return { x, y, grid, source: numbers(map.source, Uint32Array), selected: map.selected, isSelected: new Set(map.selected),
      scores: map.scores.map((one) => ({ ...one, values: numbers(one.values, Uint16Array) })) };
  }
  const rgb = (name) => { const hex = getComputedStyle(document.documentElement).getPropertyValue(name).trim(); return [1, 3, 5].map((k) => parseInt(hex.slice(k, k + 2), 16)); };
  const css = (c, alpha = 1) => `rgb(${c.map(Math.round).join(" ")} / ${alpha})`;
  let view = null; // where the map is drawn, and which point is marked
  function ranked() { // the six sources with most selected samples have colours of their own
    return data.sources.rows.slice(0, 6).map((row) => data.map.names.indexOf(row.name)).filter((index) => index >= 0);
  }
  function canvasOf(kind, width, height, ratio) {
    const host = at("map"), canvas = host.querySelector(`canvas.${kind}`) || host.appendChild(el("canvas", { class: kind, "aria-hidden": "true" }));
    put(canvas, { width: Math.round(width * ratio), height: Math.round(height * ratio) }, []);
    canvas.style.height = `${height}px`;
    const pen = canvas.getContext("2d");
    pen.scale(ratio, ratio);
    return pen;
  }
  function drawMap() {
    const host = at("map"), width = Math.max(280, host.clientWidth || 900), height = Math.round(Math.min(560, Math.max(320, width * 0.56))), ratio = Math.min(2, window.devicePixelRatio || 1), pad = 16;
    const X = (i) => pad + points.x[i] / 65535 * (width - 2 * pad), Y = (i) => height - pad - points.y[i] / 65535 * (height - 2 * pad);
    const n = data.map.drawn, size = n > 20000 ? 2 : n > 4000 ? 3.4 : 5.4, grey = rgb("--grey"), heat = rgb("--heat"), low = rgb("--axis"), paper = rgb("--tint");
    const pen = canvasOf("base", width, height, ratio), scored = points.scores[state.subtask].values, first = ranked();
    const opaque = (c, alpha) => c.reduce((sum, each, k) => sum + (Math.round(paper[k] + (each - paper[k]) * alpha) << (8 * k)), 0xff << 24) >>> 0;
    const steps = Array.from({ length: 33 }, (_, k) => opaque(low.map((c, j) => c + (heat[j] - c) * k / 32), 0.9)); // a colour for each step of the scores
    const unscored = opaque(grey, 0.5), ofSource = new Map(first.map((index, k) => [index, opaque(rgb(`--c${k}`), 0.85)])), ofScored = opaque(heat, 0.5);
    const colour = { score: (i) => scored[i] ? steps[Math.round((scored[i] - 1) / 65534 * 32)] : unscored, source: (i) => ofSource.get(points.source[i]) ?? unscored, status: () => ofScored }[state.colour];
    const wide = pen.canvas.width, high = pen.canvas.height, image = pen.createImageData(wide, high), pixels = new Uint32Array(image.data.buffer);
    const square = (i, side, value) => { // written into the image: a hundred thousand calls of fillRect take longer than a frame
      const x0 = Math.max(0, Math.round((X(i) - side / 2) * ratio)), x1 = Math.min(wide, Math.round((X(i) + side / 2) * ratio)), y1 = Math.min(high, Math.round((Y(i) + side / 2) * ratio));
      for (let y = Math.max(0, Math.round((Y(i) - side / 2) * ratio)); y < y1; y++) pixels.fill(value, y * wide + x0, y * wide + x1);
    };
    for (let i = n; i < points.x.length; i++) square(i, 2.6, unscored);
    for (let i = 0; i < n; i++) square(i, size, colour(i));
    pen.putImageData(image, 0, 0);
    const many = points.selected.length > 1000; // a thousand rings hide what is in them, and take long
    pen.lineWidth = 1.5;
    pen.strokeStyle = css(rgb("--ink"), 0.9);
    pen.fillStyle = css(rgb("--ink"), 0.9);
    pen.beginPath();
    for (const i of points.selected) {
      if (many) { pen.fillRect(X(i) - 1.2, Y(i) - 1.2, 2.4, 2.4); continue; }
      pen.moveTo(X(i) + size / 2 + 2.2, Y(i));
      pen.arc(X(i), Y(i), size / 2 + 2.2, 0, 7);
    }
    pen.stroke();
    view = { X, Y, width, height, pad, size, marks: canvasOf("mark", width, height, ratio), marked: -1 };
  }
  function mark(i) {
    if (i === view.marked) return;
    view.marked = i;
    view.marks.clearRect(0, 0, view.width, view.height);
    if (i < 0) return;
    view.marks.strokeStyle = css(rgb("--ink"));
    view.marks.lineWidth = 3;
    view.marks.beginPath();
    view.marks.arc(view.X(i), view.Y(i), view.size / 2 + 6, 0, 7);
    view.marks.stroke();
  }
  function nearest(px, py) {
    const gx = ((px - view.pad) / (view.width - 2 * view.pad)) * 65535 >> 10, gy = ((view.height - view.pad - py) / (view.height - 2 * view.pad)) * 65535 >> 10;
    let best = -1, least = 18 ** 2;
    for (let a = gx - 1; a <= gx + 1; a++) for (let b = gy - 1; b <= gy + 1; b++) for (const i of points.grid.get(a * 64 + b) || []) {
      const d = (view.X(i) - px) ** 2 + (view.Y(i) - py) ** 2 - (points.isSelected.has(i) ? 9 : 0);
      if (d < least) { least = d; best = i; }
    }
    return best;
  }
  function about(i) {
    const isDrawn = i < data.map.drawn, told = data.map.texts[i];
    const value = (one) => one.values[i] ? score(one.low + (one.values[i] - 1) / 65534 * (one.high - one.low)) : "failed";
    return [el("p", { class: "head" }, points.isSelected.has(i) ? "selected" : isDrawn ? "scored, not selected" : "not scored"),
      terms([["source", bdi(data.map.names[points.source[i]] ?? "–")], ...(isDrawn ? points.scores.map((one) => [bdi(one.name), value(one)]) : [])]),
      told ? el("p", { class: "text" }, bdi(told[0]), told[0] ? el("br") : null, el("b", {}, bdi(told[1]))) : null].filter(Boolean);
  }
  function mapSection() {
    at("map-section").hidden = !points;
    if (!points) return;
    const host = at("map"), where = () => host.getBoundingClientRect();
    const pointed = (event) => {
      const box = where(), i = nearest((event.clientX - box.left) * view.width / box.width, (event.clientY - box.top) * view.height / box.height);
      mark(i);
      if (i < 0) at("tip").hidden = true; else tip(about(i), event.clientX, event.clientY);
    };
    const leave = () => { at("tip").hidden = true; mark(-1); };
    host.addEventListener("pointermove", pointed);
    host.addEventListener("pointerdown", pointed);
    host.addEventListener("pointerleave", leave);
    host.addEventListener("blur", leave);
    let rank = -1;
    host.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key], n = points.selected.length;
      if (event.key === "Escape") leave();
      if (!step || !n) return;
      event.preventDefault();
      rank = (rank + step + n) % n;
      const i = points.selected[rank], box = where();
      mark(i);
      const content = about(i);
      tip(content, box.left + view.X(i) * box.width / view.width, box.top + view.Y(i) * box.height / view.height);
      at("spoken").textContent = content.map((node) => node.textContent).join(", ");
    });
    const subtask = el("select", { id: "map-subtask" }, points.scores.map((one, i) => el("option", { value: i }, one.name)));
    subtask.addEventListener("change", () => { state.subtask = Number(subtask.value); repaint(); });
    const repaint = () => { drawMap(); mapLegend(); };
    at("map-controls").replaceChildren(switches("Colour", state, "colour", [["score", "score"], ["source", "source"], ["status", "scored"]], repaint),
      ...(points.scores.length > 1 ? [el("span", { class: "picker" }, el("label", { for: "map-subtask" }, "Score for"), subtask)] : []));
    window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => drawMap());
    const [n, undrawn] = data.map.shown_of, shown = points.x.length - data.map.drawn;
    at("map-say").textContent = "Samples with similar features lie near each other: groups of similar samples are placed by multidimensional scaling, and a sample lies around the middle of its group. Point at a sample, or tap it, to read it.";
    at("map-note").textContent = text([data.map.drawn < n ? `Shown are ${grouped(data.map.drawn)} of ${grouped(n)} scored samples.` : "", shown < undrawn ? `Of the ${grouped(undrawn)} samples that were not scored, ${grouped(shown)} evenly spaced ones are shown.` : ""]);
    repaint();
  }
  function mapLegend() {
    const scored = points.scores[state.subtask], items = [];
    if (state.colour === "score") { const ramp = el("i", { class: "ramp" }); ramp.style.setProperty("--low", "var(--axis)"); items.push(el("li", {}, score(scored.low), ramp, score(scored.high))); }
    if (state.colour === "source") items.push(...ranked().map((index, k) => el("li", {}, tinted(el("i"), k), bdi(data.map.names[index]))));
    if (state.colour === "status") { const scoredKey = el("i"); scoredKey.style.setProperty("--s", "var(--heat)"); items.push(el("li", {}, scoredKey, "scored")); }
    const grey = el("i"); grey.style.setProperty("--s", "var(--grey)");
    items.push(el("li", {}, grey, state.colour === "source" ? "another source, or not scored" : "not scored"), el("li", {}, el("i", { class: points.selected.length > 1000 ? "full" : "ring" }), "selected"));
    at("map-legend").replaceChildren(...items);
  }

  // ---- distributions
  function histogram(host, { low, high, drawn, selected }, label, i) {
    const width = Math.max(260, host.clientWidth || 420), height = 150, left = 8, bottom = 24, n = drawn.length, w = (width - 2 * left) / n, most = Math.max(1, ...drawn.map(Math.sqrt)), top = 8;
    const root = frame(host, width, height, label), H = (c) => Math.sqrt(c) / most * (height - bottom - top);
    drawn.forEach((c, k) => {
      const a = low + k * (high - low) / n, node = (count, kind) => count ? root.append(tinted(svg("rect", { class: `bar ${kind}`, x: left + k * w, y: height - bottom - H(count), width: Math.max(1, w - 1), height: H(count) }), i)) : null;
      node(c, ""); node(selected[k], "on");
      root.append(tipOf(svg("rect", { class: "hit", x: left + k * w, y: top, width: w, height: height - bottom - top }), () => [el("p", { class: "head" }, `${score(a)} to ${score(a + (high - low) / n)}`), terms([["scored", grouped(c)], ["selected", grouped(selected[k])]])]));
    });
    root.append(svg("line", { class: "base", x1: left, x2: width - left, y1: height - bottom, y2: height - bottom }));
    for (const v of ticks(low, high, 5).values) root.append(svg("text", { x: left + (v - low) / (high - low || 1) * (width - 2 * left), y: height - 6, "text-anchor": "middle" }, fixed(v, 2)));
  }
  function scores() {
    const names = having(data.scores);
    at("scores-say").textContent = text(["How the scores of the scored samples are distributed, and in colour those of the selected ones. A bar's height is the square root of its count.",
      names.length > 1 ? "A selected sample with a low score for one subtask is selected for another." : "",
      outcome && isNumber(outcome.length_correlation) ? `Scores and lengths of answers: Spearman's correlation is ${fixed(outcome.length_correlation, 2)}.` : ""]);
    const hosts = names.map((name) => el("div", { class: "chart" }));
    at("scores").replaceChildren(...names.map((name, i) => el("div", {}, el("h3", {}, bdi(name)), served(name), hosts[i])));
    names.forEach((name, i) => histogram(hosts[i], data.scores[name], `Scores for ${isolated(name)}`, i));
  }
  const served = (name) => outcome && outcome.served && isNumber(outcome.served[name]) ? el("p", { class: "small" }, `The selection holds ${percent(outcome.served[name], 0)} of this subtask's own best samples.`) : null;

  function made() {
    const dup = data.duplicates, rejected = data.rejected || [], { edges, pool, drawn, selected } = data.lengths;
    at("made-say").textContent = text([
      outcome && outcome.captured_by ? `One subtask, ${plain(outcome.captured_by)}, captures the selection.` : "",
      dup ? (dup.count ? `${noun(dup.count, "selected sample")} nearly repeat${dup.count === 1 ? "s" : ""} a better one: at least 70% of their sequences of three words are the same.` : "No selected sample nearly repeats another one.") + (outcome.n_selected > 2000 ? " The first 2,000 were compared." : "") : "",
      rejected.length ? `Rejected lines: ${rejected.map(([kind, n]) => `${plain(kind)} ${grouped(n)}`).join(", ")}.` : "",
    ]);
    const host = el("div", { class: "chart" }), parts = [el("div", {}, el("h3", {}, "Lengths in tokens"), el("p", { class: "small" }, "the share of the samples in each interval"), host, el("ul", { class: "legend" },
      ...[["pool", "--grey"], ["scored", "--c1"], ["selected", "--c0"]].map(([name, c]) => { const key = el("i"); key.style.setProperty("--s", `var(${c})`); return el("li", {}, key, name); })))];
    if (dup && dup.pairs.length) parts.push(el("div", {}, el("h3", {}, "Near-duplicates among the selected"), el("p", { class: "small" }, "the pairs that share most: the better sample, the other one, and the share of their sequences of three words that both have"), el("table", { class: "results" },
      el("tbody", {}, dup.pairs.map(([a, b, share]) => el("tr", {}, el("th", { scope: "row" }, bdi(a)), el("td", {}, bdi(b)), el("td", {}, percent(share, 0))))))));
    at("made").replaceChildren(...parts);
    const width = Math.max(260, host.clientWidth || 460), height = 190, bottom = 24, n = pool.length, w = (width - 8) / n, share = (of) => { const sum = of.reduce((a, b) => a + b, 0) || 1; return of.map((c) => c / sum); };
    const kinds = [["pool", share(pool), "var(--grey)"], ["scored", share(drawn), "var(--c1)"], ["selected", share(selected), "var(--c0)"]], most = Math.max(...kinds.flatMap(([, of]) => of)), root = frame(host, width, height, "Lengths of the pool, the scored and the selected samples");
    for (let k = 0; k < n; k++) {
      kinds.forEach(([, of, c], j) => { const h = of[k] / most * (height - bottom - 10), bar = svg("rect", { class: "bar on", x: 4 + k * w + w * (0.1 + 0.27 * j), y: height - bottom - h, width: Math.max(1, w * 0.25), height: h }); bar.style.fill = c; root.append(bar); });
      root.append(svg("text", { x: 4 + (k + 0.5) * w, y: height - 7, "text-anchor": "middle" }, grouped(edges[k])), tipOf(svg("rect", { class: "hit", x: 4 + k * w, y: 4, width: w, height: height - bottom - 4 }),
        () => [el("p", { class: "head" }, `${grouped(edges[k])} to ${grouped(edges[k + 1] - 1)} tokens`), terms(kinds.map(([name, of]) => [name, percent(of[k])]))]));
    }
  }

  // ---- tables
  function sources() {
    const rows = data.sources.rows, columns = [["pool", "in the pool", grouped], ["drawn", "scored", grouped], ["selected", "selected", grouped], ["mean", "mean score", score], ["best", "best score", score], ["missed", "expected missed", (v) => isNumber(v) ? fixed(v) : "–"]]
      .filter(([key]) => rows.some((row) => row[key] !== null));
    let sorted = "selected", rising = false, most = 12;
    const table = at("sources");
    function draw() {
      const order = [...rows].sort((a, b) => (rising ? 1 : -1) * ((a[sorted] ?? -Infinity) - (b[sorted] ?? -Infinity))).slice(0, most);
      table.replaceChildren(el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "source"), columns.map(([key, title]) => {
        const button = el("button", { type: "button" }, el("b", {}, title));
        button.addEventListener("click", () => { rising = sorted === key ? !rising : false; sorted = key; draw(); table.querySelectorAll("thead button")[columns.findIndex(([k]) => k === key)].focus(); });
        return el("th", { scope: "col", "aria-sort": sorted === key ? (rising ? "ascending" : "descending") : "none" }, button);
      }))), el("tbody", {}, order.map((row) => el("tr", {}, el("th", { scope: "row" }, bdi(row.name)), columns.map(([key, , format]) => el("td", {}, format(row[key])))))));
    }
    draw();
    const more = at("sources-more");
    more.hidden = rows.length <= most;
    more.textContent = `Show all ${grouped(rows.length)}`;
    more.addEventListener("click", () => { most = rows.length; more.hidden = true; draw(); });
    at("sources-note").textContent = data.sources.count > rows.length ? `The first ${grouped(rows.length)} of ${grouped(data.sources.count)} sources.` : "";
  }
  function cost() {
    at("cost-section").hidden = !outcome; // the passes are counted at the end
    const { phases, total, seconds, forward, exhaustive_seconds: whole } = data.cost, cells = (row) => [el("td", {}, grouped(row.gradients)), el("td", {}, grouped(row.forward_passes)), el("td", {}, row.share.toFixed(3)), el("td", {}, duration(row.seconds))];
    const sum = (key) => phases.reduce((all, row) => all + (row[key] || 0), 0);
    at("cost").replaceChildren(el("thead", {}, el("tr", {}, ["phase", "gradients", "forward passes", "of all pool gradients", "time"].map((title) => el("th", { scope: "col" }, title)))),
      el("tbody", {}, phases.map((row) => el("tr", {}, el("th", { scope: "row" }, row.name + (row.reused ? " (cached)" : "")), cells(row))), el("tr", { class: "sum" }, el("th", { scope: "row" }, "total"), cells({ gradients: sum("gradients"), forward_passes: sum("forward_passes"), share: total || sum("share"), seconds }))));
    const before = phases.filter((row) => row.name === "warm-up" || row.name === "target").reduce((all, row) => all + row.share, 0);
    at("cost-say").textContent = text([`Scoring every sample exactly would have cost ${(1 + before).toFixed(3)} of all pool gradients, with the target and the warm-up,`, isNumber(whole) ? `and about ${duration(whole)} here.` : "in the same unit."]);
    at("cost-note").textContent = `Every pass is counted. A forward pass counts as ${forward} of a gradient.`;
  }

  // ---- the selected samples
  const shownOf = { n: 50, query: "", order: "rank" };
  function item(one, rank) {
    const asked = one.turns.filter((turn) => !turn[2] && turn[0] === "user").at(-1), learnt = one.turns.filter((turn) => turn[2]).map((turn) => turn[1]).join(" ");
    const start = [asked ? asked[1].slice(0, 140) : "", learnt.slice(0, 140)].filter(Boolean).join(" → ");
    const body = el("div", { class: "talk", hidden: "" }), button = el("button", { class: "row", type: "button", "aria-expanded": "false" }, el("span", { class: "rank" }, rank), el("span", {}, score(one.score)), el("span", { class: "from" }, bdi(one.source)), el("span", { class: "start" }, bdi(start)));
    button.addEventListener("click", () => {
      const open = body.hidden;
      body.hidden = !open;
      button.setAttribute("aria-expanded", String(open));
      if (open && !body.firstChild) body.append(el("p", {}, bdi(one.id), ` · ${noun(one.tokens, "token")} · drawn as number ${grouped(one.draw + 1)} from cluster ${one.arm}`,
        one.scores.length > 1 ? [" · ", ...subtasks.flatMap((name, k) => [k ? ", " : "", bdi(name), ` ${score(one.scores[k])}`])] : []),
        ...(one.turns.length ? one.turns.map(([role, said, learnt]) => el("div", { class: learnt ? "learnt" : "" }, el("b", {}, role + (learnt ? ", learnt" : "")), bdi(said))) : [el("p", {}, "The page keeps the texts of the best samples only; selected.jsonl has all.")]));
    });
    return el("li", {}, button, body);
  }
  function list() {
    const selected = data.listed.selected || [], section = at("list-section");
    section.hidden = !selected.length;
    if (!selected.length) return;
    const wanted = shownOf.query.toLowerCase(), numbered = selected.map((one, i) => [one, i + 1]);
    const hits = wanted ? numbered.filter(([one]) => [one.id, one.source, ...one.turns.map((turn) => turn[1])].some((value) => value.toLowerCase().includes(wanted))) : numbered;
    const by = { rank: (a, b) => a[1] - b[1], score: (a, b) => b[0].score - a[0].score, source: (a, b) => a[0].source.localeCompare(b[0].source) || a[1] - b[1], length: (a, b) => b[0].tokens - a[0].tokens, draw: (a, b) => a[0].draw - b[0].draw };
    const sorted = [...hits].sort(by[shownOf.order]);
    at("list").replaceChildren(...sorted.slice(0, shownOf.n).map(([one, rank]) => item(one, rank)));
    at("list-more").hidden = sorted.length <= shownOf.n;
    const more = outcome.n_selected > selected.length ? ` The list has the first ${grouped(selected.length)}; selected.jsonl has all.` : "";
    at("list-say").textContent = `${wanted ? `${noun(hits.length, "sample")} with “${shownOf.query}”` : `Best first. ${noun(outcome.n_selected, "sample")}`}.${more} The number is the reward under the rule ${plain(outcome.rule)}. Open a row to read the conversation; what is learnt is marked.`;
  }
  function listSection() {
    const find = el("input", { id: "list-find", type: "search", placeholder: "id, source or text", autocomplete: "off" }), sort = el("select", { id: "list-sort" }, [["rank", "rank"], ["score", "score"], ["source", "source"], ["length", "length"], ["draw", "draw"]].map(([value, name]) => el("option", { value }, name)));
    find.addEventListener("input", () => { shownOf.query = find.value; shownOf.n = 50; list(); });
    sort.addEventListener("change", () => { shownOf.order = sort.value; list(); });
    at("list-controls").replaceChildren(el("label", { for: "list-find" }, "Find"), find, el("label", { for: "list-sort" }, "Sort by"), sort);
    at("list-more").addEventListener("click", () => { shownOf.n += 100; list(); });
    list();
    at("edges").replaceChildren(...[["below", "Just below the cut"], ["worst", "The lowest scores"]].filter(([name]) => (data.listed[name] || []).length).map(([name, title]) =>
      el("div", {}, el("h3", {}, title), el("ol", { class: "listing" }, data.listed[name].map((one, i) => item(one, i + 1))))));
  }

  function again() {
    at("again-say").textContent = text([`The run folder is ${data.folder}.`, data.config ? "Its config.yaml, with all options:" : "It has no config.yaml."]);
    at("config").textContent = data.config.split("\n").map(plain).join("\n");
    at("config").hidden = !data.config;
    at("versions").textContent = `clusterucb ${plain(data.version)}; ${Object.entries(data.versions || {}).map(([name, version]) => `${plain(name)} ${plain(version)}`).join(", ")}`;
  }

  function charts() { search(); arms(); outlook(); scores(); made(); if (points) drawMap(); }
  at("page").hidden = false;
  at("footer").hidden = false;
  heading(); searchText(); search(); arms(); outlook(); mapSection(); scores(); made(); sources(); listSection(); cost(); again();
  whenResized(charts);
})();
