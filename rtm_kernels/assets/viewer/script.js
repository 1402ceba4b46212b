"use strict";

const trace = JSON.parse(document.getElementById("trace").textContent);
const $ = (id) => document.getElementById(id);
const BLANKS = new Set([".", " ", "_"]);
const WALL = "#";
const MAZE = { S: "start", G: "goal", o: "path" };
const PLAY_MILLISECONDS = 700;
const ROWS_AROUND = 200;
const MOST_THUMBS = 64;
const state = { puzzle: 0, step: 0, timer: null };

const element = (tag, attributes = {}, text = "") => {
  const svg = document.documentElement.querySelector("svg").namespaceURI;
  const made = attributes.ns === "svg" ? document.createElementNS(svg, tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) if (name !== "ns") made.setAttribute(name, value);
  made.textContent = text;
  return made;
};
const drawn = (tag, attributes, text) => element(tag, { ...attributes, ns: "svg" }, text);
const current = () => trace.puzzles[state.puzzle];
const stepOf = (number) => (number > 0 ? current().steps[number - 1] : null);
const answerAt = (number) => (number > 0 ? current().steps[number - 1].answer : current().input);
const finite = (value) => typeof value === "number";
const many = (count, noun) => `${count} ${noun}${count === 1 ? "" : "s"}`;
const show = (value, digits = 3) => (finite(value) ? value.toFixed(digits) : value === null ? "–" : String(value));
const small = (value) => (finite(value) ? (value !== 0 && value < 0.001 ? value.toExponential(1) : value.toFixed(3)) : String(value ?? "–"));
const others = () => Object.keys(current().steps[0]?.delta ?? {}).filter((name) => name !== trace.output);
const hidden = (step) => { // |dz| of the latents beside the output: their largest
  const values = others().map((name) => step.delta[name]).filter(finite);
  return values.length ? Math.max(...values) : null;
};

// Boards

function shape(text) { // the grid that a text draws: that of the task, or, on a canvas, its own rectangle of digits
  const cells = [...text];
  if (trace.layout !== null) {
    const { rows, columns } = trace.layout;
    return cells.length === rows * columns ? { rows, columns, cells, token: (i) => i } : null;
  }
  if (trace.canvas === null || !/^[0-9]+(\n[0-9]+)*$/.test(text)) return null;
  const lines = text.split("\n");
  const columns = lines[0].length;
  if (lines.some((line) => line.length !== columns)) return null;
  const token = (i) => Math.floor(i / columns) * trace.canvas + i % columns;
  return { rows: lines.length, columns, cells: lines.flatMap((line) => [...line]), token };
}

function fits(text) {
  return shape(text) !== null;
}

function at(grid, row, column) {
  return grid !== null && row < grid.rows && column < grid.columns ? grid.cells[row * grid.columns + column] : undefined;
}

function kind() {
  return trace.canvas !== null ? "colours" : current().input.includes(WALL) ? "maze" : "symbols";
}

function board(target, puzzle, answer, before, changed, truth) {
  target.replaceChildren();
  const drawn = shape(answer);
  const [given, old, right] = [puzzle, before, truth].map((text) => (text === null ? null : shape(text)));
  if (drawn === null || given === null) {
    target.append(element("pre", {}, answer));
    return;
  }
  const { columns } = drawn;
  const { row_rules: rowRules, column_rules: columnRules } = trace.layout ?? { row_rules: [], column_rules: [] };
  const size = columns > 20 ? " dense" : columns > 12 ? " close" : "";
  const grid = element("div", { class: `grid ${kind()}${size}` });
  grid.style.gridTemplateColumns = `repeat(${columns}, minmax(0, 1fr))`;
  grid.style.setProperty("--columns", columns);
  if (drawn.rows > columns) grid.style.width = `${100 * columns / drawn.rows}%`;
  drawn.cells.forEach((character, i) => {
    const [row, column] = [Math.floor(i / columns), i % columns];
    const cell = { character, given: at(given, row, column), right: right === null ? null : at(right, row, column) };
    const names = ["cell", ...look(cell, changed.has(drawn.token(i)))];
    if (columnRules.includes(column)) names.push("ruled-left");
    if (rowRules.includes(row)) names.push("ruled-top");
    if (column === columns - 1) names.push("last-column");
    if (row === drawn.rows - 1) names.push("last-row");
    const shown = element("div", { class: names.join(" ") }, BLANKS.has(character) ? "" : character);
    const was = at(old, row, column);
    if (kind() === "symbols" && names.includes("changed") && was !== character && !BLANKS.has(was)) shown.append(element("span", { class: "old" }, was));
    grid.append(shown);
  });
  target.append(grid);
}

function look({ character, given, right }, changed) { // the classes of a cell
  const names = [];
  if (kind() === "colours") names.push(`c${character}`);
  else if (!BLANKS.has(given)) names.push("given");
  if (kind() === "maze" && character in MAZE) names.push(MAZE[character]);
  if (character === WALL && given === WALL) names.push("wall");
  if (kind() !== "colours" && character !== given) names.push("filled");
  if (changed) names.push("changed");
  if (changed && BLANKS.has(character)) names.push("gone");
  if (right !== null && character !== right && !BLANKS.has(character)) names.push("wrong");
  return names;
}

// The current step

function describe() {
  const { steps, end, target } = current();
  const step = stepOf(state.step);
  const headline = $("headline");
  headline.replaceChildren();
  if (step === null) {
    headline.append("The input, before the first step");
  } else {
    const before = [...answerAt(state.step - 1)];
    const filled = step.changed.filter((i) => BLANKS.has(before[i])).length;
    const revised = step.changed.length - filled;
    const count = many(step.changed.length, "cell");
    headline.append(`Step ${step.step}: `);
    if (!step.changed.length) headline.append("no cell changed");
    else if (!fits(step.answer) || kind() === "colours") headline.append(element("mark", {}, `${count} changed`));
    else if (kind() === "maze") headline.append(element("mark", {}, `${count} changed`), `: ${filled} marked, ${revised} unmarked`);
    else if (!revised || !filled) headline.append(element("mark", {}, `${count} ${filled ? "filled in" : "revised"}`));
    else headline.append(element("mark", {}, `${count} changed`), `: ${filled} filled in, ${revised} revised`);
  }
  const verdict = $("verdict");
  verdict.className = step !== null && step.verified ? "good" : "";
  const last = state.step === steps.length;
  const why = end.reason === "max_steps" ? "the cap" : end.reason;
  const stopped = last ? ` Stopped here: ${why}.` : "";
  if (step === null) verdict.textContent = `${many(steps.length, "step")} to ${end.status}`;
  else if (!step.finite) verdict.textContent = `The latents are not finite.${stopped}`;
  else if (step.verified) verdict.textContent = `✓ Verified: every rule holds.${last && end.reason !== "verified" ? stopped : ""}`;
  else verdict.textContent = `✗ Not solved yet${step.fault ? `: ${step.fault}` : ""}.${unlike(step.answer)}${stopped}`;
  $("board").setAttribute("aria-label", `${headline.textContent}. ${verdict.textContent}`);
  return target;
}

function unlike(answer) { // how many cells of the answer are not those it should become
  const { target, end } = current();
  const [found, right] = [shape(answer), target === null ? null : shape(target)];
  if (found === null || right === null) return "";
  const whole = end.status === "verified" ? "final answer" : "solution";
  if (found.rows !== right.rows || found.columns !== right.columns) return ` The ${whole} is ${right.rows} × ${right.columns}.`;
  const count = found.cells.filter((character, i) => character !== right.cells[i]).length;
  return ` ${many(count, "cell")} unlike the ${whole}.`;
}

function facts() {
  const { input, steps, end } = current();
  const blanks = [...input].filter((character) => BLANKS.has(character)).length;
  const grid = shape(input);
  const items = [
    [kind() === "maze" ? "open cells" : "blank cells", grid !== null && kind() !== "colours" ? blanks : null],
    ["size", grid !== null && kind() === "colours" ? `${grid.rows} × ${grid.columns}` : null],
    ["steps", `${steps.length} / ${trace.policy.max_steps}`],
    ["changes", steps.reduce((sum, step) => sum + step.changed.length, 0)],
    ["ended", end.status === end.reason ? end.status : `${end.status} (${end.reason})`],
    ["answer of", end.answer_step ? `step ${end.answer_step}` : null],
    ["p halt", end.halt_probability === null ? null : show(end.halt_probability)],
    ["time", finite(end.seconds) ? (end.seconds < 1 ? `${(1000 * end.seconds).toFixed(0)} ms` : `${end.seconds.toFixed(2)} s`) : null],
  ];
  $("facts").replaceChildren(...items.filter(([, value]) => value !== null).flatMap(([name, value]) => [
    element("dt", {}, name), element("dd", {}, String(value))]));
}

const LEGENDS = { // classes, character and meaning of the swatches; the last one is shown where the right answer is known
  symbols: [["given", "5", "given"], ["filled", "5", "filled in by the model"], ["changed", "5", "changed in this step"], ["filled wrong", "5", "not the "]],
  maze: [["start", "S", "start"], ["goal", "G", "goal"], ["given wall", "", "wall"], ["filled path", "", "marked by the model"],
    ["filled path changed", "", "marked in this step"], ["changed gone", "", "unmarked in this step"], ["filled path wrong", "", "not in the "]],
  colours: [["c3 changed", "", "changed in this step"], ["c3 wrong", "", "not the "]],
};

function legend() {
  const list = $("legend");
  list.replaceChildren();
  if (!fits(current().input)) return;
  const { target, end } = current();
  for (const [names, character, meaning] of LEGENDS[kind()]) {
    const unlike = names.includes("wrong");
    if (unlike && target === null) continue;
    const item = element("li");
    const swatch = element("span", { class: `grid ${kind()}`, "aria-hidden": "true" });
    swatch.append(element("span", { class: `cell ${names}` }, character));
    item.append(swatch, unlike ? `${meaning}${end.status === "verified" ? "final answer" : "solution"}` : meaning);
    list.append(item);
  }
}

// One small board per step: what changed then, and what was still wrong

function strip() {
  const { input, steps, target } = current();
  const list = $("strip");
  list.replaceChildren();
  list.hidden = !fits(input) || steps.length > MOST_THUMBS;
  if (list.hidden) return;
  const [given, right] = [shape(input), target === null ? null : shape(target)];
  for (const step of steps) {
    const found = shape(step.answer) ?? given;
    const { rows, columns } = found;
    const svg = drawn("svg", { viewBox: `0 0 ${columns} ${rows}`, class: kind(), "aria-hidden": "true" });
    const [moved, dots] = [new Set(step.changed), []];
    found.cells.forEach((character, i) => {
      const [x, y] = [i % columns, Math.floor(i / columns)];
      const start = at(given, y, x);
      const name = moved.has(found.token(i)) ? "moved" : kind() === "colours" ? `c${character}` : start === WALL ? "wall"
        : !BLANKS.has(start) ? "given" : kind() === "maze" && !BLANKS.has(character) ? "marked" : "";
      if (name) svg.append(drawn("rect", { class: name, x, y, width: 1, height: 1 }));
      if (right !== null && character !== at(right, y, x)) dots.push([x, y]);
    });
    const radius = columns > 12 ? 0.4 : 0.22;
    for (const [x, y] of dots) svg.append(drawn("circle", { class: "astray", cx: x + 0.5, cy: y + 0.5, r: radius }));
    const button = element("button", { class: "thumb", "data-step": step.step, title: `Step ${step.step}: ${many(step.changed.length, "cell")} changed` });
    button.append(svg, element("span", {}, step.verified ? `✓ ${step.step}` : String(step.step)));
    button.addEventListener("click", () => { play(false); go(step.step); });
    const item = element("li");
    item.append(button);
    list.append(item);
  }
}

function markStrip() {
  document.querySelectorAll(".thumb").forEach((thumb) => {
    const here = Number(thumb.dataset.step) === state.step;
    thumb.setAttribute("aria-pressed", String(here));
    const view = $("strip");
    if (here && (thumb.offsetLeft < view.scrollLeft || thumb.offsetLeft + thumb.offsetWidth > view.scrollLeft + view.clientWidth)) {
      view.scrollLeft = thumb.offsetLeft - view.clientWidth / 2;
    }
  });
}

// Charts

const CHART = { width: 420, height: 122, left: 34, right: 44, top: 8, bottom: 20 };

function frame(svg, label) {
  const { width, height, left, right, bottom } = CHART;
  svg.replaceChildren();
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  svg.setAttribute("role", "img");
  svg.setAttribute("aria-label", label);
  const count = current().steps.length;
  const every = Math.max(1, Math.ceil(count / 8));
  svg.append(drawn("line", { class: "axis", x1: left, x2: width - right, y1: height - bottom, y2: height - bottom }));
  for (let step = every === 1 ? 1 : every; step <= count; step += every) {
    svg.append(drawn("text", { x: across(step), y: height - 5, "text-anchor": "middle" }, String(step)));
  }
}

function across(step) {
  const { width, left, right } = CHART;
  const count = current().steps.length;
  const room = width - left - right;
  return left + room * (step - 0.5) / Math.max(1, count);
}

function mark(svg) {
  svg.querySelector(".now")?.remove();
  if (state.step === 0) return;
  const x = across(state.step);
  svg.append(drawn("line", { class: "now", x1: x, x2: x, y1: CHART.top, y2: CHART.height - CHART.bottom }));
}

function curve(svg, values, down, name, label) {
  let path = "";
  values.forEach((value, i) => {
    if (!finite(value)) return;
    const joined = i > 0 && finite(values[i - 1]);
    path += `${joined ? "L" : "M"}${across(i + 1).toFixed(1)} ${down(value).toFixed(1)}`;
  });
  svg.append(drawn("path", { class: name, d: path }));
  if (values.length <= 40) {
    values.forEach((value, i) => {
      if (finite(value)) svg.append(drawn("circle", { class: `dot ${name}`, cx: across(i + 1), cy: down(value), r: 2.4 }));
    });
  }
  const last = values.findLast(finite);
  if (last === undefined) return null;
  const text = drawn("text", { class: name, x: across(values.length) + 7, y: down(last) + 4 }, label);
  svg.append(text);
  return text;
}

function apart(first, second) { // two labels at the ends of their curves, not on top of each other
  if (!first || !second) return;
  const [a, b] = [Number(first.getAttribute("y")), Number(second.getAttribute("y"))];
  const [upper, lower] = a <= b ? [first, second] : [second, first];
  const [low, high] = [CHART.top + 8, CHART.height - CHART.bottom];
  const middle = Math.min(Math.max((a + b) / 2, low + 7), high - 7);
  if (Math.abs(a - b) >= 14) return;
  upper.setAttribute("y", middle - 7);
  lower.setAttribute("y", middle + 7);
}

function level(svg, y, text) {
  const { width, left, right } = CHART;
  svg.append(drawn("line", { class: "axis", x1: left, x2: width - right, y1: y, y2: y }));
  svg.append(drawn("text", { x: left - 6, y: y + 4, "text-anchor": "end" }, text));
}

function charts() {
  const { steps } = current();
  const [top, floor] = [CHART.top, CHART.height - CHART.bottom];
  const changedChart = $("changed-chart");
  frame(changedChart, "Cells changed at each step");
  const most = Math.max(1, ...steps.map((step) => step.changed.length));
  level(changedChart, top, String(most));
  level(changedChart, floor, "0");
  const wide = Math.max(1.5, Math.min(28, 0.72 * (CHART.width - CHART.left - CHART.right) / Math.max(1, steps.length)));
  steps.forEach((step, i) => {
    const height = (floor - top) * step.changed.length / most;
    changedChart.append(drawn("rect", { class: "bar", "data-step": i + 1, x: across(i + 1) - wide / 2, y: floor - height, width: wide, height }));
  });

  const haltChart = $("halt-chart");
  frame(haltChart, "Halting probability p at each step, and its sum so far");
  const down = (value) => floor - (floor - top) * Math.min(1, Math.max(0, value));
  level(haltChart, top, "1");
  level(haltChart, floor, "0");
  if (steps.some((step) => finite(step.p_halt))) {
    if (trace.policy.on.includes("q")) {
      const y = down(trace.policy.q_threshold);
      haltChart.append(drawn("line", { class: "limit", x1: CHART.left, x2: CHART.width - CHART.right, y1: y, y2: y }));
    }
    const sum = curve(haltChart, steps.map((step) => step.accumulated_p), down, "second", "Σp");
    apart(curve(haltChart, steps.map((step) => step.p_halt), down, "first", "p"), sum);
  } else {
    haltChart.append(drawn("text", { x: CHART.left + 10, y: 60 }, "this model has no halting head"));
  }
  latent(steps, top, floor);
}

function latent(steps, top, floor) {
  const svg = $("latent-chart");
  frame(svg, "Relative change of the latents at each step, logarithmic");
  const y = steps.map((step) => step.delta[trace.output]);
  const z = steps.map(hidden);
  const logs = [...y, ...z].filter((value) => finite(value) && value > 0).map(Math.log10);
  if (!logs.length) {
    svg.append(drawn("text", { x: CHART.left + 10, y: 60 }, "no latent is carried between steps"));
    return;
  }
  const low = Math.floor(Math.min(...logs));
  const high = Math.max(low + 1, Math.ceil(Math.max(...logs)));
  const down = (value) => floor - (floor - top) * (Math.max(low, Math.log10(Math.max(value, Number.MIN_VALUE))) - low) / (high - low);
  for (let power = low; power <= high; power += Math.ceil((high - low) / 4)) {
    level(svg, down(10 ** power), power < -3 ? `1e${power}` : String(Number((10 ** power).toFixed(3))));
  }
  const second = z.some(finite) ? curve(svg, z, down, "second", "‖Δz‖") : null;
  apart(curve(svg, y, down, "first", "‖Δy‖"), second);
}

// The table

function table() {
  const { steps } = current();
  const head = ["step", "cells changed", "p halt", "Σ p", "‖Δy‖/‖y‖", "‖Δz‖/‖z‖", "active", "ms", "verdict"];
  const row = element("tr");
  for (const name of head) row.append(element("th", { scope: "col" }, name));
  document.querySelector("thead").replaceChildren(row);
  const body = document.querySelector("tbody");
  body.replaceChildren();
  const first = steps.length > 2 * ROWS_AROUND ? Math.max(0, state.step - 1 - ROWS_AROUND) : 0;
  steps.slice(first, first + 2 * ROWS_AROUND).forEach((step) => {
    const before = step.step > 1 ? steps[step.step - 2].seconds : 0;
    const line = element("tr", { "data-step": step.step });
    const verdict = step.verified ? "✓ verified" : step.finite ? step.fault : "not finite";
    for (const value of [step.step, step.changed.length, show(step.p_halt), show(step.accumulated_p), small(step.delta[trace.output] ?? null),
      small(hidden(step)), step.active, show(1000 * (step.seconds - before), 1), verdict]) line.append(element("td", {}, String(value)));
    line.addEventListener("click", () => go(step.step));
    body.append(line);
  });
}

// Moving

function draw() {
  const { input, steps } = current();
  const step = stepOf(state.step);
  const truth = describe();
  board($("board"), input, answerAt(state.step), answerAt(Math.max(0, state.step - 1)), new Set(step?.changed ?? []), truth);
  for (const id of ["changed-chart", "halt-chart", "latent-chart"]) mark($(id));
  document.querySelectorAll(".bar").forEach((bar) => bar.classList.toggle("current", Number(bar.dataset.step) === state.step));
  markStrip();
  if (steps.length > 2 * ROWS_AROUND) table();
  document.querySelectorAll("tbody tr").forEach((row) => {
    const here = Number(row.dataset.step) === state.step;
    here ? row.setAttribute("aria-current", "step") : row.removeAttribute("aria-current");
    const view = row.closest(".scroll");
    if (here && (row.offsetTop < view.scrollTop + 32 || row.offsetTop + row.offsetHeight > view.scrollTop + view.clientHeight)) {
      view.scrollTop = row.offsetTop - view.clientHeight / 2;
    }
  });
  $("slider").value = state.step;
  $("slider").setAttribute("aria-valuetext", `step ${state.step} of ${steps.length}`);
  $("counter").textContent = `${state.step} / ${steps.length}`;
  $("back").disabled = state.step === 0;
  $("forward").disabled = state.step === steps.length;
  $("changed-reading").textContent = step ? many(step.changed.length, "cell") : "";
  $("halt-reading").textContent = step && step.p_halt !== null ? `p ${show(step.p_halt)}, Σp ${show(step.accumulated_p)}` : "";
  $("latent-reading").textContent = step && Object.keys(step.delta).length ? `‖Δy‖ ${small(step.delta[trace.output] ?? null)}, ‖Δz‖ ${small(hidden(step))}` : "";
  document.body.dataset.step = state.step;
  document.body.dataset.puzzle = state.puzzle;
}

function go(step) {
  state.step = Math.max(0, Math.min(current().steps.length, step));
  draw();
  history.replaceState(null, "", `#puzzle=${state.puzzle + 1}&step=${state.step}`);
}

function open(puzzle, step) {
  state.puzzle = Math.max(0, Math.min(trace.puzzles.length - 1, puzzle));
  $("puzzles").selectedIndex = state.puzzle;
  $("previous-puzzle").disabled = state.puzzle === 0;
  $("next-puzzle").disabled = state.puzzle === trace.puzzles.length - 1;
  $("slider").max = current().steps.length;
  const { input } = current();
  $("input-figure").classList.toggle("text", !fits(input));
  board($("input"), input, input, input, new Set(), null);
  $("input").setAttribute("aria-label", `Input: ${input}`);
  facts();
  legend();
  strip();
  charts();
  table();
  go(step);
}

function play(on) {
  clearInterval(state.timer);
  state.timer = null;
  if (on) {
    if (state.step === current().steps.length) go(0);
    state.timer = setInterval(() => {
      go(state.step + 1);
      if (state.step === current().steps.length) play(false);
    }, PLAY_MILLISECONDS);
  }
  $("play").textContent = on ? "❚❚" : "▶";
  $("play").setAttribute("aria-label", on ? "Pause" : "Play");
}

function change(puzzle) {
  play(false);
  open(puzzle, 0);
}

function fragment() {
  const wanted = new URLSearchParams(location.hash.slice(1));
  const number = (name, otherwise) => (/^\d{1,6}$/.test(wanted.get(name) ?? "") ? Number(wanted.get(name)) : otherwise);
  open(number("puzzle", 1) - 1, number("step", 0));
}

const KEYS = {
  ArrowLeft: () => { play(false); go(state.step - 1); },
  ArrowRight: () => { play(false); go(state.step + 1); },
  Home: () => { play(false); go(0); },
  End: () => { play(false); go(current().steps.length); },
  ArrowUp: () => change(state.puzzle - 1),
  ArrowDown: () => change(state.puzzle + 1),
  " ": () => play(state.timer === null),
};

function listen() {
  $("play").addEventListener("click", () => play(state.timer === null));
  $("back").addEventListener("click", KEYS.ArrowLeft);
  $("forward").addEventListener("click", KEYS.ArrowRight);
  $("slider").addEventListener("input", (event) => { play(false); go(Number(event.target.value)); });
  $("puzzles").addEventListener("change", (event) => change(event.target.selectedIndex));
  $("previous-puzzle").addEventListener("click", KEYS.ArrowUp);
  $("next-puzzle").addEventListener("click", KEYS.ArrowDown);
  document.addEventListener("keydown", (event) => {
    const act = KEYS[event.key];
    if (!act || event.ctrlKey || event.metaKey || event.altKey || event.target.tagName === "SELECT") return;
    event.preventDefault();
    act();
  });
  for (const id of ["changed-chart", "halt-chart", "latent-chart"]) {
    $(id).addEventListener("click", (event) => {
      const box = $(id).getBoundingClientRect();
      const x = (event.clientX - box.left) * CHART.width / box.width;
      const share = (x - CHART.left) / (CHART.width - CHART.left - CHART.right);
      play(false);
      go(Math.max(1, Math.ceil(share * current().steps.length)));
    });
  }
  addEventListener("hashchange", fragment);
}

function words() { // a text: the shade of each word says how many rounds it took
  const { words, rounds } = trace;
  const text = element("pre");
  for (const [word, taken] of words) {
    text.append(element("span", { title: many(taken, "round"), style: `--share: ${70 * taken / rounds}%` }, word));
  }
  const mean = words.reduce((sum, [, taken]) => sum + taken, 0) / Math.max(1, words.length);
  $("title").textContent = document.title;
  $("about").textContent = `${many(words.length, "word")}, ${mean.toFixed(2)} of ${many(rounds, "round")} in the mean; darker words took more`;
  $("stage").replaceChildren(text);
  for (const part of document.querySelectorAll("nav, footer, #curves, #summary")) part.remove();
}

function start() {
  if (trace.words) return words();
  $("title").textContent = `${trace.task} trace`;
  $("about").textContent = `${many(trace.puzzles.length, "puzzle")} · model ${trace.model.split(/[\\/]/).pop()} · halting: ${trace.policy.on.join("+") || "fixed"}, at most ${trace.policy.max_steps} steps`;
  $("provenance").textContent = `weights sha256 ${trace.weights_sha256.slice(0, 12)}… · rtm_kernels ${trace.versions.rtm_kernels ?? "?"} · torch ${trace.versions.torch ?? "?"} · executor ${trace.executor}`;
  trace.puzzles.forEach((puzzle, i) => {
    const sign = puzzle.end.status === "verified" ? "✓" : "✗";
    $("puzzles").append(element("option", {}, `${sign} puzzle ${i + 1} of ${trace.puzzles.length}: ${many(puzzle.steps.length, "step")}, ${puzzle.end.status}`));
  });
  listen();
  play(false);
  const asked = location.hash.includes("step=") || matchMedia("(prefers-reduced-motion: reduce)").matches;
  fragment();
  if (!asked) play(true); // the answer forms before anything is pressed
}

start();
