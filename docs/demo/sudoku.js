"use strict";
// Repeats the ACT step of the model until the rules of Sudoku confirm its answer, and shows each answer.

const EXAMPLES = {
  "easy": "53..7....6..195....98....6.8...6...34..8.3..17...2...6.6....28....419..5....8..79",
  "17 clues": ".......1.4.........2...........5.4.7..8...3....1.9....3..4..2...5.1........8.6...",
  "hard": "8..........36......7..9.2...5...7.......457.....1...3...1....68..85...1..9....4..",
};
const NINE = [...Array(9).keys()];
const UNITS = NINE.flatMap((i) => [
  {name: `row ${i + 1}`, cells: NINE.map((j) => 9 * i + j)},
  {name: `column ${i + 1}`, cells: NINE.map((j) => 9 * j + i)},
  {name: `box ${i + 1}`, cells: NINE.map((j) => 9 * (i - i % 3 + (j - j % 3) / 3) + 3 * (i % 3) + j % 3)},
]);

/** 81 characters, `.` for blanks, of a puzzle in one line or as a grid, framed or not; null for another text. */
function parse(pasted) {
  for (const kept of [/[1-9.0*?xX_]/g, /[1-9.0*?xX_-]/g, /[1-9 .0]/g]) {
    const found = (pasted.match(kept) ?? []).join("").replace(/[^1-9]/g, ".");
    if (found.length === 81) return found;
  }
  return null;
}

/** The first rule that an answer breaks, or null when the rules of Sudoku confirm it. */
function fault(puzzle, answer) {
  if ([...puzzle].some((digit, i) => digit !== "." && digit !== answer[i])) return "a given cell was changed";
  return repeated(answer) ?? (answer.includes(".") ? "a cell is empty" : null);
}

/** The first unit that holds a digit twice, or null. */
function repeated(answer) {
  for (const {name, cells} of UNITS) {
    const digits = cells.map((cell) => answer[cell]).filter((digit) => digit !== ".");
    const twice = digits.find((digit, i) => digits.indexOf(digit) !== i);
    if (twice) return `${name} holds ${twice} twice`;
  }
  return null;
}

/** ACT steps until the rules confirm an answer, at most as many as the model was trained for; yields each answer. */
async function* solve(model, puzzle, pause) {
  const {seq_len: length, hidden_size: width, halt_max_steps: steps} = model.config;
  const given = {inputs: {shape: [1, length], data: [...puzzle].map((c) => c === "." ? 1 : 1 + Number(c))}};
  const latents = {z_L: model.float([1, length, width]), z_H: model.float([1, length, width])};
  try {
    for (let step = 1; step <= steps; step++) {
      const fresh = {shape: [1], data: [Number(step === 1)]}; // the model then starts from its initial latents
      const found = await model.run({...given, fresh, ...latents}, pause);
      for (const name in latents) latents[name].data.set(found[`next_${name}`].data);
      const {data, shape: [, , size]} = found.logits;
      const answer = [...puzzle].map((_, i) => {
        const logits = data.subarray(i * size, (i + 1) * size), best = logits.indexOf(Math.max(...logits));
        return best > 1 ? best - 1 : ".";
      }).join("");
      yield answer;
      if (fault(puzzle, answer) === null) break;
    }
  } finally {
    for (const {data} of Object.values(latents)) model.unused[data.length].push(data);
  }
}

/** The model inside the page, unpacked. */
async function load() {
  const packed = Uint8Array.from(atob(document.getElementById("model").textContent.trim()), (c) => c.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Model(new Uint8Array(await new Response(stream).arrayBuffer()));
}

const at = (id) => document.getElementById(id);
const cells = [];
let model = null, puzzle = ".".repeat(81), history = [], running = 0;

function say(line, kind = "") {
  at("status").textContent = line;
  at("status").className = kind;
}

/** Show a puzzle, or the answer after a step of its history, in which cells that changed are marked. */
function draw(step) {
  const answer = step ? history[step - 1] : puzzle, before = step > 1 ? history[step - 2] : puzzle;
  cells.forEach((cell, i) => {
    cell.value = answer[i] === "." ? "" : answer[i];
    cell.classList.toggle("given", puzzle[i] !== ".");
    cell.classList.toggle("changed", step > 0 && answer[i] !== before[i]);
    cell.classList.toggle("wrong", step > 0 && answer[i] !== "." && UNITS.some(({cells: unit}) =>
      unit.includes(i) && unit.some((j) => j !== i && answer[j] === answer[i])));
  });
  at("step").max = history.length;
  at("step").value = step;
  at("shown").textContent = step ? `step ${step} of ${history.length}` : "the puzzle";
}

function take(text) {
  running++;
  puzzle = text;
  history = [];
  draw(0);
  say(`${[...puzzle].filter((c) => c !== ".").length} clues`);
}

async function start() {
  if (!model) return;
  const wrong = repeated(puzzle), own = ++running, begin = performance.now();
  history = [];
  draw(0);
  if (wrong) return say(`Not a Sudoku: ${wrong}.`, "bad");
  say("Thinking…");
  let slice = begin;
  const pause = (least = 30) => performance.now() - slice > least && new Promise((done) => setTimeout(() => {
    slice = performance.now();
    done();
  }));
  for await (const answer of solve(model, puzzle, pause)) {
    if (own !== running) return; // another puzzle was taken meanwhile
    history.push(answer);
    draw(history.length);
    say(`Step ${history.length}…`);
    await pause(0);
  }
  const broken = fault(puzzle, history.at(-1));
  const cost = `${history.length} step${history.length > 1 ? "s" : ""}, ${Math.round(performance.now() - begin)} ms`;
  if (broken) say(`Not solved: ${cost}; ${broken}.`, "bad");
  else say(`Solved, and confirmed by the rules: ${cost}.`, "good");
  document.body.dataset.answers = history.join(" ");
}

for (let i = 0; i < 81; i++) {
  const cell = document.createElement("input");
  Object.assign(cell, {inputMode: "numeric", autocomplete: "off", className: "cell"});
  cell.setAttribute("aria-label", `row ${Math.floor(i / 9) + 1}, column ${i % 9 + 1}`);
  cell.addEventListener("focus", () => cell.select());
  cell.addEventListener("input", () => {
    const typed = cell.value.replace(/[^1-9]/g, "").slice(-1);
    take(puzzle.slice(0, i) + (typed || ".") + puzzle.slice(i + 1));
    if (typed) cells[i + 1]?.focus();
  });
  cell.addEventListener("keydown", (event) => {
    const next = {ArrowLeft: i - 1, ArrowRight: i + 1, ArrowUp: i - 9, ArrowDown: i + 9}[event.key];
    if (event.key === "Enter") start();
    if (next === undefined) return;
    event.preventDefault();
    cells[next]?.focus();
  });
  if (i % 9 === 0) at("board").append(document.createElement("div"));
  at("board").lastChild.append(cell);
  cells.push(cell);
}
document.addEventListener("paste", (event) => {
  const pasted = event.clipboardData.getData("text"), found = parse(pasted);
  if (pasted.trim().length < 2) return;
  event.preventDefault();
  if (found) take(found);
  else say("That is no Sudoku: a puzzle has 81 cells, with . or 0 for blanks.", "bad");
});
for (const [name, text] of Object.entries(EXAMPLES)) {
  const button = document.createElement("button");
  button.textContent = name;
  button.addEventListener("click", () => { take(text); start(); });
  at("examples").append(button);
}
at("solve").addEventListener("click", start);
at("clear").addEventListener("click", () => take(".".repeat(81)));
at("step").addEventListener("input", () => draw(Number(at("step").value)));

(async () => {
  const asked = parse(decodeURIComponent(location.hash.slice(1)));
  take(asked ?? EXAMPLES.easy);
  try {
    model = await load();
    at("solve").disabled = false;
    if (asked) await start();
  } catch (error) {
    say(`This browser cannot run the model: ${error.message}`, "bad");
  }
})();
