/* Glue of report.html: draws the charts with Observable Plot, shows the network that is picked, sorts
   and filters the tables. All figures come from results.json, which the page holds. */
"use strict";
(() => {
  const results = JSON.parse(document.getElementById("results").textContent);
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  const percent = (value) => `${fixed(100 * value, 2)}%`;
  const count = (value) => value.toLocaleString("en-US");
  const ends = (low, high, show) => `[${show(low)}, ${show(high)}]`;
  const colour = (name) => `var(--${name})`;

  /* As the tables round: of a tie, to the even digit. */
  function fixed(value, digits) {
    const [, kept, rest] = value.toFixed(60).match(`^(.*\\.\\d{${digits}})(\\d*)$`);
    return /[02468]$/.test(kept) && /^50*$/.test(rest) ? kept : value.toFixed(digits);
  }

  function make(tag, attributes = {}, ...children) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.append(...children);
    return element;
  }

  /* A network as the charts and cards take it: of a candidate, with what the front knows of it. */
  function networksOf(scenario) {
    const known = new Map();
    for (const one of scenario.search.measured)
      known.set(one.id, { id: one.id, architecture: one.architecture, ms: one.median_ms, ci: one.ci_percent,
        predicted: one.predicted_accuracy, point: null });
    for (const point of [...scenario.front, ...scenario.asked])
      known.set(point.id, { id: point.id, architecture: point.architecture, ms: point.latency.median_ms,
        ci: point.latency.ci_percent, predicted: point.predicted_accuracy, point });
    return [...known.values()].sort((one, other) => one.ms - other.ms);
  }

  const scenarios = results.scenarios.map((facts, number) => ({
    facts, number, networks: networksOf(facts), near: false, picked: null, kept: null, plot: null,
  }));
  const isTested = (network) => network.point !== null && network.point.test_accuracy !== null;
  const lowered = (facts) => facts.device.precision !== "fp32";
  const heightOf = (network) => (isTested(network) ? network.point.test_accuracy : network.predicted);

  /* Charts */
  function plot(box, options) {
    const made = Plot.plot({ width: Math.max(box.clientWidth, 280), marginLeft: 56, marginBottom: 40,
      inset: 8, grid: true, style: { fontSize: "12px", overflow: "visible" }, ...options });
    made.setAttribute("role", "img");
    made.setAttribute("aria-label", box.dataset.label);
    all("g[aria-label]", made).forEach((group) => group.removeAttribute("aria-label")); // of no role
    box.replaceChildren(made);
    return made;
  }

  /* Points by the thousand, as one path: a curve that draws a dot at each point and nothing between. */
  const dots = (context) => ({ lineStart() {}, lineEnd() {}, point(x, y) { context.moveTo(x, y); context.lineTo(x, y); } });
  const dust = (data, options) => Plot.line(data, { z: null, curve: dots, strokeWidth: 4, strokeLinecap: "round", ...options });

  const rate = (label) => ({ label, tickFormat: (value) => `${+(100 * value).toFixed(2)}%`, ticks: 6 });
  const tip = (data, x, y, title) =>
    Plot.tip(data, Plot.pointer({ x, y, title, fill: colour("card"), stroke: colour("line") }));

  function drawFront(box) {
    const scenario = scenarios[box.dataset.number];
    const { facts, networks } = scenario;
    const reference = { ms: facts.reference_latency.median_ms, ci: facts.reference_latency.ci_percent,
      ...results.reference, ...(lowered(facts) && results.reference[facts.device.precision]) };
    const points = networks.filter((one) => one.point !== null);
    const front = points.filter((one) => one.point.roles.includes("front"));
    const tested = points.filter(isTested);
    const candidates = scenario.near ? [] : networks.filter((one) => one.point === null);
    const compared = reference.test_accuracy === null ? [] : [reference];
    const opponent = reference.finetuned && !lowered(facts) ? [{ ms: reference.ms, ...reference.finetuned }] : [];
    const across = (data, y, name) => Plot.ruleY(data, { y, stroke: colour(name),
      x1: (d) => d.ms * (1 - d.ci / 100), x2: (d) => d.ms * (1 + d.ci / 100) });
    const upright = (data, of, name) => Plot.ruleX(data, { x: "ms", stroke: colour(name),
      y1: (d) => of(d).test_low, y2: (d) => of(d).test_high });
    scenario.plot = plot(box, {
      height: Math.min(520, 220 + box.clientWidth / 2.5),
      x: { label: "latency in ms, median, batch 1" }, y: rate("accuracy"),
      marks: [
        dust(candidates, { x: "ms", y: "predicted", stroke: colour("candidate") }),
        Plot.ruleX([reference], { x: "ms", stroke: colour("reference"), strokeDasharray: "4 4", strokeOpacity: 0.6 }),
        Plot.ruleY(compared, { y: "test_accuracy", stroke: colour("reference"), strokeDasharray: "4 4", strokeOpacity: 0.6 }),
        Plot.line(front, { x: "ms", y: "predicted", stroke: colour("front"), curve: "step-after" }),
        across(front, "predicted", "front"),
        Plot.dot(points, { x: "ms", y: "predicted", r: 4, fill: colour("front") }),
        upright(tested, (d) => d.point, "finetuned"),
        Plot.dot(tested, { x: "ms", y: heightOf, r: 6, symbol: "diamond", fill: colour("finetuned") }),
        upright(opponent, (d) => d, "reference"), upright(compared, (d) => d, "reference"),
        across(compared, "test_accuracy", "reference"),
        Plot.dot(opponent, { x: "ms", y: "test_accuracy", r: 7, symbol: "star", stroke: colour("reference"), fill: colour("card") }),
        Plot.dot(compared, { x: "ms", y: "test_accuracy", r: 8, symbol: "star", fill: colour("reference") }),
        tip([...points, ...candidates], "ms", heightOf, (d) => summary(d)),
      ],
    });
    scenario.plot.setAttribute("aria-hidden", "true"); // the box tells what it shows
    scenario.plot.onclick = (event) => pick(scenario, nearest(scenario, event));
    for (const [name, value] of [["role", "application"], ["tabindex", "0"], ["aria-label", box.dataset.label]])
      box.setAttribute(name, value);
    box.onkeydown = (event) => step(scenario, event);
    ring(scenario);
  }

  function drawPredictor(box) {
    const samples = results.predictor.architectures;
    const final = new Map(scenarios.filter((one) => !lowered(one.facts)).flatMap((one) => one.networks.filter(isTested).map((each) => [each.id, each.point])));
    const networks = [...final.values()];
    const values = [...samples.flatMap((d) => [d.predicted, d.accuracy]), ...networks.flatMap((d) => [d.predicted_accuracy, d.accuracy])];
    const line = d3.extent(values).map((value) => ({ value }));
    const bars = (data, name) => Plot.ruleY(data, { y: "accuracy", x1: "predicted_low", x2: "predicted_high",
      stroke: colour(name), strokeOpacity: 0.5, clip: true });
    plot(box, { height: 320, x: { ...rate("predicted"), domain: d3.extent(values), nice: true }, y: rate("measured on the validation images"),
      marks: [
        Plot.line(line, { x: "value", y: "value", stroke: colour("line") }),
        bars(samples, "front"), bars(networks, "finetuned"),
        Plot.dot(samples, { x: "predicted", y: "accuracy", r: 4, fill: colour("front") }),
        Plot.dot(networks, { x: "predicted_accuracy", y: "accuracy", r: 6, symbol: "diamond", fill: colour("finetuned") }),
        tip(samples, "predicted", "accuracy", (d) => `${d.id}\npredicted ${percent(d.predicted)} ${ends(d.predicted_low, d.predicted_high, percent)}\nmeasured ${percent(d.accuracy)}`),
      ] });
  }

  function drawTau(box) {
    const ranked = Object.entries(results.predictor.quality).map(([name, each]) => ({ name, ...each.kendall_tau }));
    plot(box, { height: 60 + 40 * ranked.length, marginLeft: 140, x: { label: "Kendall tau", domain: [d3.min(ranked, (d) => Math.min(0, d.low)), 1] },
      y: { label: null, domain: ranked.map((d) => d.name) },
      marks: [
        Plot.ruleY(ranked, { y: "name", x1: "low", x2: "high", stroke: colour("front"), strokeWidth: 2 }),
        Plot.dot(ranked, { x: "value", y: "name", r: 5, fill: colour("front") }),
        Plot.ruleX([0], { stroke: colour("line") }),
      ] });
  }

  function drawLibrary(box) {
    const { blocks } = results.library.stages[box.dataset.number];
    const words = (spec) => [spec.family, ...Object.entries(spec.options).map(([name, value]) => `${name} ${value}`)].join("\n");
    plot(box, { height: 240, x: { label: "MACs", tickFormat: "~s", ticks: 5 }, y: { label: "NSR" },
      marks: [
        Plot.dot(blocks, { x: "macs", y: "nsr", r: 4, fill: colour("front"), fillOpacity: 0.7 }),
        tip(blocks, "macs", "nsr", (d) => `${words(d.block)}\nNSR ${fixed(d.nsr, 3)}, ${count(d.macs)} MACs`),
      ] });
  }

  function drawCourse(box, name, label) {
    const told = scenarios[box.dataset.number].facts.search.measured.filter((one) => one[name] !== null);
    plot(box, { height: 220, x: { label: "measurement" }, y: { label },
      marks: [
        dust(told, { x: (_, index) => index + 1, y: name, stroke: colour("front") }),
        Plot.ruleY([0].slice(name === "temperature_c"), { stroke: colour("line") }),
      ] });
  }

  const charts = {
    front: drawFront, predictor: drawPredictor, tau: drawTau, library: drawLibrary,
    drift: (box) => drawCourse(box, "drift_percent", "drift, %"),
    temperature: (box) => drawCourse(box, "temperature_c", "°C"),
  };

  /* The network that is picked */
  const summary = (network) =>
    `${network.id}\n${fixed(network.ms, 4)} ms, predicted ${percent(network.predicted)}` +
    (isTested(network) ? `\ntest ${percent(network.point.test_accuracy)} ${ends(network.point.test_low, network.point.test_high, percent)}` : "");

  const place = (scenario, network) =>
    [scenario.plot.scale("x").apply(network.ms), scenario.plot.scale("y").apply(heightOf(network))];

  function nearest(scenario, event) {
    const frame = scenario.plot.getBoundingClientRect();
    const at = [event.clientX - frame.left, event.clientY - frame.top];
    const shown = scenario.near ? scenario.networks.filter((one) => one.point) : scenario.networks;
    const far = (network) => Math.hypot(...place(scenario, network).map((value, axis) => value - at[axis])) - (network.point ? 6 : 0);
    return d3.least(shown, far);
  }

  function step(scenario, event) {
    const move = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1 }[event.key];
    const path = event.shiftKey && !scenario.near ? scenario.networks : scenario.networks.filter((one) => one.point);
    if (event.key === "Enter") keep(scenario, scenario.picked);
    else if (event.key === "Escape") keep(scenario, null);
    else if (move) {
      const onPath = path.indexOf(scenario.picked);
      const from = onPath >= 0 ? onPath : d3.bisector((one) => one.ms).left(path, scenario.picked ? scenario.picked.ms : 0) - (move > 0);
      pick(scenario, path[Math.min(Math.max(from + move, 0), path.length - 1)]);
    } else return;
    event.preventDefault();
  }

  function ring(scenario) {
    all(".ring", scenario.plot).forEach((old) => old.remove());
    for (const [name, network] of [["picked", scenario.picked], ["kept", scenario.kept]]) {
      if (!network) continue;
      const [x, y] = place(scenario, network);
      d3.select(scenario.plot).append("circle").attr("class", `ring ${name}`).attr("cx", x).attr("cy", y).attr("r", 11);
    }
  }

  function pick(scenario, network) {
    scenario.picked = network;
    document.querySelector(`[data-said="${scenario.number}"]`).textContent = summary(network).replaceAll("\n", ", ");
    show(scenario);
  }

  function keep(scenario, network) {
    scenario.kept = network;
    show(scenario);
  }

  function show(scenario) {
    const shown = [scenario.kept, scenario.kept === scenario.picked ? null : scenario.picked].filter((each) => each);
    const box = document.querySelector(`[data-picked="${scenario.number}"]`);
    box.replaceChildren(...shown.map((network) => card(scenario, network, shown)));
    ring(scenario);
  }

  function figures({ point, ms, ci, predicted }) {
    const latency = `${fixed(ms, 4)} ms ${ends(ms * (1 - ci / 100), ms * (1 + ci / 100), (value) => fixed(value, 4))}`;
    if (point === null) return [["latency", latency], ["predicted", percent(predicted)]];
    const tested = isTested({ point });
    return [
      ["latency", latency],
      tested && ["test", `${percent(point.test_accuracy)} ${ends(point.test_low, point.test_high, percent)}`],
      ["predicted", `${percent(predicted)} ${ends(point.predicted_low, point.predicted_high, percent)}`],
      ["raw prediction", `${percent(point.raw_accuracy)} ${ends(point.raw_low, point.raw_high, percent)}`],
      tested && ["validation", percent(point.accuracy)],
      ["params", count(point.params)], ["MACs", count(point.macs)],
    ].filter((each) => each);
  }

  function card(scenario, network, shown) {
    const kept = scenario.kept === network;
    const button = make("button", { type: "button" }, kept ? "Let go" : "Keep to compare");
    button.onclick = () => keep(scenario, kept ? null : network);
    const list = make("dl", {}, ...figures(network).flatMap(([name, text]) => [make("dt", {}, name), make("dd", {}, text)]));
    const { folder } = document.querySelector("main").dataset;
    const path = (network.point || {}).weights;
    const words = path ? `donna export ${folder} ${network.id} --to ${network.id}` : `donna finetune ${folder} ${network.id}`;
    const files = path ? [["weights", path], ["ONNX", network.point.onnx]].flatMap(([name, href]) => [make("a", { href }, name), " "]) : [];
    const copy = make("button", { type: "button", class: "copy", "aria-label": `Copy ${words}` }, "Copy");
    return make("article", { class: "card", "aria-label": `Network ${network.id}`, "data-network": network.id },
      make("h3", {}, make("code", {}, network.id), " ", button), list, drawing(network, shown.find((each) => each !== network)),
      make("p", { class: "files" }, ...files),
      make("span", { class: "command" }, make("code", { tabindex: "0" }, words), copy));
  }

  /* Its blocks, large; where another is beside it, stages that differ are marked. */
  function drawing(network, other) {
    const box = make("div", { class: "net large" });
    network.architecture.forEach((choice, stage) => {
      const block = document.getElementById(`block-${stage}-${choice}`).content.firstElementChild.cloneNode(true);
      const nsr = results.library.stages[stage].blocks[choice].nsr;
      block.prepend(make("span", { class: "stage" }, `stage ${stage}`));
      block.append(make("span", { class: "nsr" }, `NSR ${fixed(nsr, 3)}`));
      if (other && other.architecture[stage] !== choice) block.classList.add("differs");
      box.append(block);
    });
    return box;
  }

  /* Tables */
  function sort(button) {
    const head = button.closest("th"), body = head.closest("table").tBodies[0];
    const up = head.getAttribute("aria-sort") !== "ascending";
    const number = [...head.parentNode.children].indexOf(head);
    const value = (row) => row.children[number].dataset.value;
    const isNumber = [...body.rows].every((row) => value(row) === "" || !Number.isNaN(+value(row)));
    const order = isNumber ? (one, other) => one - other : (one, other) => one.localeCompare(other);
    const rows = [...body.rows].sort((one, other) =>
      (value(one) === "") - (value(other) === "") || (up ? 1 : -1) * order(value(one), value(other)));
    all("th", head.parentNode).forEach((each) => each.setAttribute("aria-sort", "none"));
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    body.append(...rows);
  }

  function filter(input) {
    const name = input.dataset.filter, words = input.value.toLowerCase().split(/[\s,]+/);
    const rows = [...document.getElementById(name).tBodies[0].rows];
    for (const row of rows) {
      const text = `${row.textContent} ${[...row.children].map((cell) => cell.dataset.value).join(" ")}`.toLowerCase();
      row.hidden = !words.every((word) => text.includes(word));
    }
    const left = rows.filter((row) => !row.hidden).length;
    document.querySelector(`[data-count="${name}"]`).textContent = `${left} of ${rows.length} networks`;
  }

  function copy(button) {
    const code = button.parentNode.querySelector("code");
    getSelection().selectAllChildren(code);
    const said = (text) => { button.textContent = text; };
    const copied = navigator.clipboard ? navigator.clipboard.writeText(code.textContent) : Promise.reject();
    copied.then(() => said("Copied"), () => said("Selected"));
  }

  document.addEventListener("click", ({ target }) => {
    const button = target.closest("button");
    if (!button) return;
    if (button.closest("thead")) sort(button);
    if (button.matches(".copy")) copy(button);
    if (button.dataset.show) {
      const [number, id] = button.dataset.show.split(":");
      const scenario = scenarios[number];
      pick(scenario, scenario.networks.find((one) => one.id === id));
      scenario.plot.closest(".choice").scrollIntoView({ block: "nearest" });
    }
  });
  document.addEventListener("input", ({ target }) => {
    if (target.dataset.filter) filter(target);
    if (target.dataset.near) {
      scenarios[target.dataset.near].near = target.checked;
      drawFront(document.querySelector(`[data-chart="front"][data-number="${target.dataset.near}"]`));
    }
  });

  /* A chart is drawn when it is first seen to have a width, and again where that changes. */
  const widths = new Map();
  const watch = new ResizeObserver((entries) => {
    for (const { target, contentRect } of entries) {
      if (contentRect.width === 0 || widths.get(target) === contentRect.width) continue;
      widths.set(target, contentRect.width);
      charts[target.dataset.chart](target);
    }
  });
  all("[data-chart]").forEach((box) => {
    charts[box.dataset.chart](box);
    widths.set(box, box.clientWidth);
    watch.observe(box);
  });
  for (const scenario of scenarios) {
    const { fastest_as_accurate: fastest, most_accurate_as_fast: accurate } = scenario.facts.headline;
    const first = (fastest || accurate || scenario.facts.front[0]).id;
    pick(scenario, scenario.networks.find((one) => one.id === first));
  }
})();
