"use strict";

const GIB = 2 ** 30, MIB = 2 ** 20;
const ROLES = {
  resident: "All weights stay on the GPU.",
  offloaded: "Weights are loaded when a stage needs them.",
  streamed: "Weights are streamed while others compute.",
};
const calls = JSON.parse(document.getElementById("answers").textContent);
const element = (id) => document.getElementById(id);

// ---- Figures in words, as the package's own (vramtune/units.py)

/** Digits behind the point; exact halves go to the even neighbour, as in Python. */
function fixed(value, digits) {
  const scaled = value * 10 ** digits, low = Math.floor(scaled);
  const isHalf = Number.isInteger(value * 2 ** (digits + 1)) && scaled - low === 0.5;
  return (isHalf ? (low + low % 2) / 10 ** digits : value).toFixed(digits);
}

function formatBytes(bytes) {
  if (bytes >= GIB / 10) return `${fixed(bytes / GIB, 2)} GiB`;
  if (bytes >= MIB) return `${fixed(bytes / MIB, 0)} MiB`;
  if (bytes >= 1024) return `${fixed(bytes / 1024, 0)} KiB`;
  return `${bytes} B`;
}

function formatSeconds(seconds) {
  const two = (number) => String(number).padStart(2, "0");
  if (seconds >= 99.95) {
    const whole = Number(fixed(seconds, 0)), minutes = Number(fixed(seconds / 60, 0));
    if (whole >= 3600) return `${Math.floor(minutes / 60)} h ${two(minutes % 60)} min`;
    return `${Math.floor(whole / 60)} min ${two(whole % 60)} s`;
  }
  if (seconds >= 0.9995) return `${fixed(seconds, seconds >= 9.995 ? 1 : 2)} s`;
  if (seconds >= 0.9995e-3) return `${fixed(seconds * 1e3, 0)} ms`;
  return seconds >= 0.5e-6 ? `${fixed(seconds * 1e6, 0)} µs` : "0 s";
}

const likely = (plan) => `(${formatSeconds(plan.lowSeconds)} to ${formatSeconds(plan.highSeconds)})`;

// ---- Elements

function make(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

function draw(name, attributes, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

/** Headings are left-aligned where they begin with `<`; a cell is text or an element. */
function fill(table, headings, rows, marked = -1) {
  const align = headings.map((heading) => heading.startsWith("<") ? "left" : "");
  const head = headings.map((heading, i) => make("th", {scope: "col", className: align[i]}, heading.replace("<", "")));
  const lines = rows.map((row, number) => make("tr", {className: number === marked ? "marked" : ""}, ...row.map((cell, i) =>
    make(i ? "td" : "th", {className: align[i], scope: i ? undefined : "row"}, cell))));
  table.replaceChildren(make("thead", {}, make("tr", {}, ...head)), make("tbody", {}, ...lines));
}

/** A button in a table that makes a choice; the focus is on it again when the table has been made anew. */
function chooser(table, words, changed) {
  const button = make("button", {type: "button", textContent: words});
  button.addEventListener("click", () => {
    choose({...choice, ...changed});
    [...element(table).querySelectorAll("button")].find((each) => each.textContent === words)?.focus();
  });
  return button;
}

// ---- What is chosen

let choice = {};
const distinct = (values) => [...new Set(values)];
const callsOf = (model) => calls.filter((call) => call.model === model);

/** A budget's name: all that the GPU gives, or what is asked. Budgets above what it gives are left out but for one. */
const isAll = (plan) => plan.limitBytes < plan.askedBytes;
const budgetOf = (plan) => isAll(plan) ? "all" : String(plan.askedBytes);
const budgetWords = (plan) => isAll(plan) ? `all that it gives (${formatBytes(plan.limitBytes)})` : formatBytes(plan.askedBytes);

/** The plan for that budget; for one that was not planned for, the next below. */
const planFor = (card, budget) => card.plans.findLast((plan) =>
  budget === "all" || plan.askedBytes <= Number(budget)) ?? card.plans[0];

function offer(id, options, chosen) {
  const select = element(id);
  const value = options.some(([key]) => key === chosen) ? chosen : options[0]?.[0] ?? "";
  select.replaceChildren(...options.map(([key, words]) => make("option", {value: key, textContent: words})));
  select.value = value;
  select.parentElement.hidden = options.length < 2;
  return value;
}

/** Take a choice, put right what does not exist, and show it. */
function choose(wanted) {
  const model = offer("model", distinct(calls.map((call) => call.model)).map((name) => [name, name]), wanted.model);
  const settings = offer("settings", distinct(callsOf(model).map((call) => call.settings)).map((words) =>
    [words, words || "default settings"]), wanted.settings);
  const alike = callsOf(model).filter((call) => call.settings === settings);
  const quantization = offer("quantization", alike.map((call) =>
    [call.quantization, call.quantization || "as it is"]), wanted.quantization);
  const call = alike.find((each) => each.quantization === quantization);
  const gpu = offer("gpu", call.gpus.map(({gpu, memoryBytes}) =>
    [gpu, `${gpu}, ${fixed(memoryBytes / GIB, 0)} GiB`]), wanted.gpu);
  const card = call.gpus.find((each) => each.gpu === gpu);
  const budget = Number(wanted.budget) > 0 ? wanted.budget : "all";
  offer("budget", card ? card.plans.map((plan) => [budgetOf(plan), budgetWords(plan)]) : [],
    card && budgetOf(planFor(card, budget)));
  choice = {model, settings, quantization, gpu, budget};
  history.replaceState(null, "", `#${new URLSearchParams(choice)}`);
  show(call, card);
}

// ---- What is shown

function show(call, card) {
  const plan = card && planFor(card, choice.budget);
  document.title = card ? `${call.model} on ${card.gpu} - vramtune` : `${call.model} - vramtune`;
  showVerdict(call, card, plan);
  element("planned").hidden = !card;
  element("ranked").hidden = !card;
  if (!card) return;
  showStages(plan);
  showFrontier(card, plan);
  showGpus(call, card);
}

function showVerdict(call, card, plan) {
  const tone = !plan?.fits ? "bad" : plan.isNarrow ? "attention" : "good";
  const word = !card ? "Not predicted" : !plan.fits ? "Does not fit" : plan.isNarrow ? "Fits narrowly" : "Fits";
  const permissions = plan?.permissions ? `Changes the output, as was allowed: ${plan.permissions}.` : "";
  const sentence = !card ? call.error
    : !plan.fits ? `${call.model} needs ${formatBytes(card.leastBytes)} on ${card.gpu}; the budget is ${formatBytes(plan.limitBytes)}.`
    : `${call.model} on ${card.gpu} in ${formatBytes(plan.limitBytes)}. ${ROLES[plan.role]} ${permissions}`;
  const verdict = element("verdict");
  verdict.className = `verdict ${tone}`;
  verdict.querySelector("strong").textContent = word;
  verdict.querySelector("span:last-child").textContent = sentence;
  const facts = plan?.fits ? [
    ["Peak", formatBytes(plan.peakBytes), `of ${formatBytes(plan.limitBytes)}`, plan.peakBytes / plan.limitBytes],
    ["Per call", formatSeconds(plan.seconds), likely(plan)],
    ["Bound", formatSeconds(plan.boundSeconds), "no plan in this budget is faster"],
    ["Moved", formatBytes(plan.movedBytes), "to the GPU, per call"],
    ["Least budget", formatBytes(card.leastBytes), "with which it runs"],
  ] : [];
  element("facts").replaceChildren(...facts.map(([label, value, note, share]) => make("div", {className: "fact"},
    make("dt", {}, label), make("dd", {className: "value"}, value), make("dd", {className: "note"}, note),
    ...(share === undefined ? [] : [meter(share)]))));
}

function meter(share) {
  const made = make("dd", {className: "meter", ariaHidden: "true"});
  made.style.setProperty("--share", `${fixed(100 * share, 1)}%`);
  return made;
}

function showStages(plan) {
  const stages = plan.stages ?? [];
  const longest = Math.max(...stages.map((stage) => stage.seconds));
  fill(element("stage-table"), ["<Stage", "Seconds", "<Computing and waiting", "Peak", "Moved"], stages.map((stage) => [
    stage.name, formatSeconds(stage.seconds), shares(stage, longest), formatBytes(stage.peakBytes),
    formatBytes(stage.movedBytes),
  ]));
}

function shares(stage, longest) {
  const bar = make("div", {className: "shares", ariaHidden: "true"}, make("span"));
  const waiting = Math.max(stage.seconds - stage.computeSeconds, 0);
  for (const [kind, seconds] of [["compute", stage.seconds - waiting], ["waiting", waiting]]) {
    const part = make("i", {className: kind});
    part.style.setProperty("--share", `${fixed(100 * seconds / longest, 1)}%`);
    bar.firstChild.append(part);
  }
  return bar;
}

function showFrontier(card, chosen) {
  const fitting = card.plans.filter((plan) => plan.fits);
  element("frontier-caption").textContent = `${choice.model} on ${card.gpu}: seconds per call by budget, predicted`;
  drawFrontier(element("frontier-figure"), fitting, chosen);
  element("frontier-figure").toggleAttribute("hidden", !fitting.length);
  fill(element("budget-table"), ["<Budget", "Seconds", "<Verdict", "<Likely", "Bound", "Peak", "Moved"],
    card.plans.map((plan) => [
      chooser("budget-table", budgetWords(plan), {budget: budgetOf(plan)}), ...verdictCells(card, plan),
      ...(plan.fits ? [formatSeconds(plan.boundSeconds), formatBytes(plan.peakBytes), formatBytes(plan.movedBytes)] : ["", "", ""]),
    ]), card.plans.indexOf(chosen));
}

const verdictCells = (card, plan) => plan.fits
  ? [formatSeconds(plan.seconds), plan.isNarrow ? `narrowly, ${plan.role}` : plan.role, likely(plan)]
  : ["", `needs ${formatBytes(card.leastBytes)}`, ""];

/** Distance of ticks: 1, 2 or 5 times a power of ten, at most six of them. */
function tickStep(most) {
  const power = 10 ** Math.floor(Math.log10(most / 6));
  return [1, 2, 5, 10].map((each) => each * power).find((step) => most / step <= 6);
}

function drawFrontier(figure, plans, chosen) {
  const left = 58, right = Math.min(figure.parentElement.clientWidth || 640, 640) - 12, top = 12, bottom = 252;
  figure.setAttribute("viewBox", `0 0 ${right + 12} 300`);
  const mostGib = 1.08 * Math.max(...plans.map((plan) => plan.limitBytes / GIB));
  const mostSeconds = 1.05 * Math.max(...plans.map((plan) => plan.highSeconds));
  const x = (plan) => left + (right - left) * plan.limitBytes / GIB / mostGib;
  const y = (seconds) => bottom - (bottom - top) * seconds / mostSeconds;
  const parts = [];
  const step = tickStep(mostSeconds), stepGib = tickStep(mostGib);
  for (let tick = 0; tick <= mostSeconds; tick += step) {
    parts.push(draw("line", {class: "grid-line", x1: left, x2: right, y1: y(tick), y2: y(tick)}),
      draw("text", {x: left - 8, y: y(tick) + 4, "text-anchor": "end"}, String(Number(tick.toPrecision(6)))));
  }
  for (let tick = 0; tick <= mostGib; tick += stepGib) {
    const place = left + (right - left) * tick / mostGib;
    parts.push(draw("text", {x: place, y: bottom + 18, "text-anchor": "middle"}, String(Number(tick.toPrecision(6)))));
  }
  parts.push(draw("text", {x: (left + right) / 2, y: bottom + 38, "text-anchor": "middle"},
    "budget (GiB)"));
  parts.push(draw("text", {transform: `translate(14 ${(top + bottom) / 2}) rotate(-90)`, "text-anchor": "middle"},
    "seconds per call"));
  const line = (seconds) => plans.map((plan, i) => `${i ? "L" : "M"}${x(plan)} ${y(seconds(plan))}`).join("");
  parts.push(draw("path", {class: "bound-line", d: line((plan) => plan.boundSeconds)}));
  parts.push(draw("path", {class: "plan-line", d: line((plan) => plan.seconds)}));
  for (const plan of plans) {
    parts.push(draw("line", {class: "likely-line", x1: x(plan), x2: x(plan), y1: y(plan.lowSeconds), y2: y(plan.highSeconds)}),
      draw("circle", {class: plan === chosen ? "chosen" : "", cx: x(plan), cy: y(plan.seconds), r: plan === chosen ? 7 : 5}));
  }
  figure.replaceChildren(...parts);
}

function showGpus(call, chosen) {
  const found = call.gpus.map((card) => ({card, plan: planFor(card, choice.budget)}));
  found.sort((a, b) => b.plan.fits - a.plan.fits || (a.plan.fits ? a.plan.seconds - b.plan.seconds
    : a.card.leastBytes - b.card.leastBytes));
  const fitting = found.filter(({plan}) => plan.fits);
  const most = Math.max(...found.map(({plan}) => plan.askedBytes));
  const budget = choice.budget === "all" ? `up to ${formatBytes(most)}` : `in ${formatBytes(Number(choice.budget))} or what there is`;
  element("gpus-summary").textContent = `${call.model} fits ${fitting.length} of ${found.length} GPUs, ${budget}; the fastest first.`;
  fill(element("gpu-table"), ["<GPU", "Seconds", "<Verdict", "<Likely", "Budget", "Memory"], found.map(({card, plan}) => [
    chooser("gpu-table", card.gpu, {gpu: card.gpu}), ...verdictCells(card, plan), formatBytes(plan.limitBytes),
    `${fixed(card.memoryBytes / GIB, 0)} GiB`,
  ]), found.findIndex(({card}) => card === chosen));
}

// ---- Begin

const fromAddress = () => Object.fromEntries(new URLSearchParams(location.hash.slice(1)));
for (const id of ["model", "settings", "quantization", "gpu", "budget"]) {
  element(id).addEventListener("change", (event) => choose({...choice, [id]: event.target.value}));
}
addEventListener("hashchange", () => choose(fromAddress()));
addEventListener("resize", () => choose(choice));  // the picture is as wide as there is room
choose(fromAddress());
