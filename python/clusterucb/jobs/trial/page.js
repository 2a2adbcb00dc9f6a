(() => {
  const subtasks = Object.keys(data.judges || {});
  const arms = [...(data.arms || [])].sort((a, b) => a.mean - b.mean);
  const compared = arms.filter((arm) => arm.less_random && arm.name !== "nothing");
  const trained = arms.filter((arm) => arm.name !== "nothing");
  const isGrey = (arm) => arm.name === "random" || arm.name === "nothing";
  const coloured = arms.filter((arm) => !isGrey(arm)).map((arm) => arm.name).sort();
  const colour = (arm) => isGrey(arm) ? "var(--grey)" : `var(--c${coloured.indexOf(arm.name) % 7})`;
  const tinted = (node, arm) => { node.style.setProperty("--s", colour(arm)); return node; };
  const signed = (x, digits = 3) => isNumber(x) ? (x > 0 ? "+" : "") + fixed(x, digits) : "–";
  const interval = (d) => `${signed(d.mean)} [${signed(d.low)}, ${signed(d.high)}]`;
  const start = arms.find((arm) => arm.name === "nothing");
  const key = (arm) => tinted(svg("svg", { class: "key", viewBox: "0 0 30 12", "aria-hidden": "true" },
    svg("path", { class: "curve", d: "M1 6H29", "stroke-dasharray": arm.name === "nothing" ? "2 5" : null }), svg("circle", { class: "dot", cx: 15, cy: 6, r: 4 })), arm);

  function heading() {
    const only = compared.filter((arm) => arm.name === "selection")[0];
    const word = only ? { lower: "Yes: training on the selection lowers the loss more", higher: "No: random samples lower the loss more",
      unclear: "These judges cannot tell the selection from random samples" }[only.less_random.mean.verdict] : "Which selection lowers the loss most?";
    put(at("title"), {}, [word]);
    document.title = `${word} – clusterucb`;
    put(at("lead"), { class: "lead verdict" }, (data.verdict || []).map((sentence) => el("p", {}, sentence)));
    const judges = subtasks.reduce((sum, name) => sum + data.judges[name], 0);
    put(at("facts"), {}, [
      fact("Judges", count(judges, "unseen sample"), listed(subtasks.map((name) => `${name} ${data.judges[name]}`), 6)),
      fact("Pool", listed(files(data.pool), 2), count(data.pool_samples, "sample")),
      fact("Model", bdi(files(data.model)[0])),
      fact("Trainings", `${count(data.seeds, "seed")} at ${count((data.learning_rates || []).length, "learning rate")}`, (data.learning_rates || []).map((rate) => Number(rate).toExponential()).join(", ")),
      fact("Steps", grouped(trained[0]?.curve.at(-1).step), `of ${count(data.batch_size, "sample")}`),
    ]);
  }

  function frame(host, width, height, label) {
    const root = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label });
    host.replaceChildren(root);
    return root;
  }
  const tickOf = (step) => { const digits = Math.max(0, Math.ceil(-Math.log10(step) - 1e-9)); return (value, plus) => (plus ? signed : fixed)(value, digits); };

  // ---- differences from random samples, a row for each subtask and arm
  function apart() {
    const host = at("apart"), width = Math.max(280, host.clientWidth || 720), narrow = width < 620;
    const groups = [...subtasks.map((name) => [name, (arm) => arm.less_random.subtasks[name]]), ["mean of the subtasks", (arm) => arm.less_random.mean]];
    const all = compared.flatMap((arm) => groups.flatMap(([, of]) => [of(arm).low, of(arm).high]));
    const low = Math.min(0, ...all), high = Math.max(0, ...all), room = (high - low || 1) * 0.06;
    const rowH = 26, headH = 30, left = narrow ? 8 : Math.min(200, 0.26 * width), right = narrow ? 8 : 190, top = 30;
    const perRow = narrow ? rowH + 18 : rowH;
    const height = top + groups.length * (headH + compared.length * perRow) + 14;
    const X = (v) => left + ((v - low + room) / (high - low + 2 * room)) * (width - left - right);
    const root = frame(host, width, height, `Loss less that after random samples: ${compared.map((arm) => `${isolated(arm.name)} ${interval(arm.less_random.mean)}`).join("; ")}`);
    const scale = ticks(low - room, high + room, narrow ? 4 : 7), text = tickOf(scale.step);
    for (const v of scale.values) {
      root.append(svg("line", { class: Math.abs(v) < 1e-9 ? "zero" : "grid", x1: X(v), x2: X(v), y1: top - 6, y2: height - 10 }),
        svg("text", { x: X(v), y: top - 13, "text-anchor": "middle" }, text(v, true)));
    }
    let y = top;
    for (const [name, of] of groups) {
      const title = svg("text", { class: "group", x: 0, y: y + 20 }, plain(name) || "(no name)");
      root.append(title);
      fit(title, width - 8);
      y += headH;
      for (const arm of compared) {
        const d = of(arm), at_y = y + (narrow ? 30 : rowH / 2);
        const label = svg("text", { class: "name", x: narrow ? 0 : left - 14, y: narrow ? at_y - 14 : at_y + 4.5, "text-anchor": narrow ? "start" : "end" }, plain(arm.name));
        root.append(tinted(svg("g", {}, svg("line", { class: "whisker", x1: X(d.low), x2: X(d.high), y1: at_y, y2: at_y }), svg("circle", { class: "dot", cx: X(d.mean), cy: at_y, r: 5.4 })), arm),
          label, svg("text", { class: "value", x: width, y: narrow ? at_y - 14 : at_y + 4.5, "text-anchor": "end" }, interval(d)));
        fit(label, narrow ? width - 170 : left - 18);
        y += perRow;
      }
    }
    put(at("apart-say"), {}, []).replaceChildren("The loss on unseen samples after each training, less the loss after training on random samples. Left of the line, the samples taught more than random ones.");
    put(at("apart-note"), {}, []).replaceChildren(`The bars are ${Math.round(100 * data.confidence)} % intervals of a paired bootstrap over judges and seeds. A bar that crosses the line may be chance.`);
  }

  // ---- curves
  const state = { x: "passes", subtask: "" };
  const value = (point) => state.subtask ? point.subtasks[state.subtask] : point.mean;
  function points(arm) {
    const before = state.x === "passes" ? arm.selecting.passes : 0;
    const found = arm.curve.map((point) => ({ x: state.x === "passes" ? before + point.samples : point.step, y: value(point) }));
    return start ? [{ x: before, y: value(start.curve[0]) }, ...found] : found;
  }
  function curves() {
    at("curves-title").textContent = state.x === "passes" ? "What the loss costs, selecting included" : "How the loss falls in training";
    const host = at("curves"), width = Math.max(280, host.clientWidth || 720), narrow = width < 620;
    const lines = trained.map((arm) => [arm, points(arm)]);
    const xs = lines.flatMap(([, line]) => line.map((p) => p.x)), ys = lines.flatMap(([, line]) => line.map((p) => p.y));
    const xMax = Math.max(1, ...xs) * 1.02, least = Math.min(...ys), most = Math.max(...ys), space = (most - least || 1) * 0.08;
    const left = 50, right = 12, top = 40, height = narrow ? 320 : 420, bottom = height - 48;
    const X = (v) => left + (v / xMax) * (width - left - right), Y = (v) => bottom - ((v - least + space) / (most - least + 2 * space)) * (bottom - top);
    const root = frame(host, width, height, `Loss on the judges against ${state.x}`);
    const yScale = ticks(least - space, most + space, 5), xScale = ticks(0, xMax, narrow ? 4 : 8), text = tickOf(yScale.step);
    root.append(svg("text", { x: 0, y: 16, class: "axis-title" }, `Loss on the judges${state.subtask ? " of " + plain(state.subtask) : ", mean over the subtasks"}`));
    for (const v of yScale.values) root.append(svg("line", { class: "grid", x1: left, x2: width - right, y1: Y(v), y2: Y(v) }), svg("text", { x: left - 10, y: Y(v) + 4, "text-anchor": "end" }, text(v)));
    root.append(svg("line", { class: "base", x1: left, x2: width - right, y1: bottom, y2: bottom }));
    for (const v of xScale.values) root.append(svg("line", { class: "base", x1: X(v), x2: X(v), y1: bottom, y2: bottom + 5 }), svg("text", { x: X(v), y: bottom + 20, "text-anchor": "middle" }, grouped(v)));
    root.append(svg("text", { x: width - right, y: bottom + 42, "text-anchor": "end", class: "axis-title" }, state.x === "passes" ? "Passes of the model, in gradients of one sample" : "Steps"));
    for (const [arm, line] of lines) {
      const group = tinted(svg("g", {}, svg("path", { class: "curve", d: `M${line.map((p) => `${X(p.x)} ${Y(p.y)}`).join("L")}` })), arm);
      for (const p of line) {
        const dot = svg("circle", { class: "dot", cx: X(p.x), cy: Y(p.y), r: 4 });
        dot.addEventListener("pointerenter", (event) => {
          const box = event.target.getBoundingClientRect();
          tip([el("p", { class: "head" }, key(arm), bdi(plain(arm.name))), el("dl", {}, el("dt", {}, "Loss"), el("dd", {}, fixed(p.y, 3)), el("dt", {}, state.x === "passes" ? "Passes" : "Step"), el("dd", {}, grouped(p.x)))], box.right, box.top);
        });
        dot.addEventListener("pointerleave", () => { at("tip").hidden = true; });
        group.append(dot);
      }
      root.append(group);
    }
    at("legend").replaceChildren(...trained.map((arm) => el("li", {}, key(arm), bdi(plain(arm.name)))));
    at("curves-note").textContent = (state.x === "passes" ? "A curve begins where its samples are chosen: selecting costs passes before the first step. Random samples cost none." : "All arms take the same steps from the same start.")
      + " Means over the seeds and the learning rates.";
  }
  function controls() {
    const group = (label, name, choices) => switches(label, state, name, choices, curves);
    at("controls").append(group("Against", "x", [["passes", "All passes"], ["steps", "Steps"]]));
    if (subtasks.length > 1 && subtasks.length < 7) at("controls").append(group("Subtask", "subtask", [["", "Mean"], ...subtasks.map((name) => [name, name])]));
  }

  // ---- the table
  function table() {
    const rates = data.learning_rates || [];
    const heads = [["After training on", ""], ...subtasks.map((name) => [bdi(name), `${data.judges[name]} judges`]), ["Mean", "subtasks"], ["Worst", "subtask"],
      ...rates.map((rate) => ["Mean", `rate ${Number(rate).toExponential()}`]), ["Elsewhere", `${grouped(data.elsewhere)} samples`], ["Passes", "selecting"], ["Passes", "training"], ["Time", "selecting"], ["Time", "training"]];
    const verdict = (arm, name) => arm.less_random && !isGrey(arm) ? (name ? arm.less_random.subtasks[name] : arm.less_random.mean).verdict : null;
    const mark = { lower: "lower than after random samples", higher: "higher than after random samples" };
    const cell = (arm, shown, name) => {
      const found = verdict(arm, name), sign = { lower: "▼ ", higher: "▲ " }[found] || "";
      return el("td", { class: found && found !== "unclear" ? found : null }, sign, shown, mark[found] ? el("span", { class: "unseen" }, ` ${mark[found]}`) : null);
    };
    const rows = arms.map((arm) => el("tr", {}, el("th", { scope: "row" }, el("span", { class: "named" }, key(arm), el("bdi", {}, plain(arm.name)))),
      ...subtasks.map((name) => cell(arm, fixed(arm.subtasks[name], 3), name)), cell(arm, fixed(arm.mean, 3), ""), el("td", {}, fixed(arm.worst, 3)),
      ...rates.map((_, i) => el("td", {}, fixed(arm.by_rate[arm.by_rate.length > 1 ? i : 0], 3))), el("td", {}, fixed(arm.elsewhere, 3)),
      el("td", {}, grouped(Math.round(arm.selecting.passes))), el("td", {}, grouped(arm.training.passes)), el("td", {}, duration(arm.selecting.seconds)), el("td", {}, duration(arm.training.seconds))));
    at("results").replaceChildren(el("thead", {}, el("tr", {}, ...heads.map(([head, more]) => el("th", { scope: "col" }, el("b", {}, head), more || "\u00a0")))), el("tbody", {}, ...rows));
    at("results-note").textContent = "▼ marks a loss that is lower than after random samples, ▲ one that is higher, if the interval of the difference excludes 0. "
      + "Elsewhere is the loss on random samples of the pool on which the arm did not train: what the training costs there. Training time is that of one training.";
  }

  at("page").hidden = at("footer").hidden = false;
  heading();
  controls();
  apart();
  curves();
  table();
  put(at("versions"), {}, [`clusterucb ${plain(data.clusterucb)} · ${count(data.epochs, "epoch")} · batch size ${grouped(data.batch_size)} · runs `, listed(Object.values(data.runs || {}), 9), " · target ", listed([data.target].flat(), 9)]);
  whenResized(() => { apart(); curves(); });
})();
