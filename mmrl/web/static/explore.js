// The page of python -m mmrl.explore. All text enters the page as text, never as HTML.

const element = (id) => document.getElementById(id);
const count = Number(document.body.dataset.count);
const HEAT = [230, 159, 0];
const FINE = 512; // pixels of the overlay of a small image
const BOX = ["#000000", "#56b4e9"];

// The open study: what /record and /looks say of it.
let study = null;
let chosen = -1;
let shown = 0;

async function ask(path, body) {
  const options = body === undefined ? {} : {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify(body),
  };
  const answer = await fetch(path, options);
  const given = await answer.json();
  if (!answer.ok) throw new Error(given.error);
  element("error").hidden = true;
  return given;
}

// Runs what a click or an input asks for; what fails is said on the page.
async function run(work) {
  try {
    await work();
  } catch (error) {
    element("error").textContent = error.message;
    element("error").hidden = false;
  }
}

function made(name, properties, ...children) {
  const node = Object.assign(document.createElement(name), properties);
  node.append(...children);
  return node;
}

function picture({ row, id, score }) {
  const image = made("img", { src: `/thumbnail/${row}`, alt: id, loading: "lazy" });
  const label = score === undefined ? id : `${score.toFixed(3)} ${id}`;
  const button = made("button", { type: "button" }, image, made("span", { textContent: label }));
  button.dataset.row = row;
  button.addEventListener("click", () => run(() => open(row)));
  return made("li", {}, button);
}

async function more() {
  const { records } = await ask(`/records/${shown}`);
  element("records").append(...records.map(picture));
  shown += records.length;
  element("more").hidden = shown >= count;
}

async function search(text) {
  const begun = performance.now();
  const { hits } = await ask("/search", { text });
  element("hits").replaceChildren(...hits.map(picture));
  const milliseconds = Math.round(performance.now() - begun);
  element("found").textContent = `${hits.length} nearest images, ${milliseconds} ms`;
}

async function open(row) {
  const [record, looks, { hits }] = await Promise.all([
    ask(`/record/${row}`), ask("/looks", { row }), ask("/neighbours", { row }),
  ]);
  study = { row, ...record, ...looks };
  chosen = -1;
  for (const button of document.querySelectorAll(".pictures button")) {
    button.toggleAttribute("aria-current", Number(button.dataset.row) === row);
  }
  element("title").textContent = record.id;
  element("image").alt = record.id;
  element("image").src = `/image/${row}`;
  report();
  element("reports").replaceChildren(...hits.map((hit) => made(
    "li", { className: hit.row === row ? "own" : "" },
    `${hit.score.toFixed(3)} ${hit.row === row ? "(its own) " : ""}${hit.text}`,
  )));
  element("study").hidden = false;
  element("changed").value = study.text;
  await element("image").decode();
  draw();
  await compare();
  if (getComputedStyle(element("study")).position !== "sticky") element("study").scrollIntoView();
}

function report() {
  const parts = [];
  let end = 0;
  study.words.forEach(([word, from, to], index) => {
    const button = made("button", { type: "button", className: "word", textContent: word });
    button.setAttribute("aria-pressed", "false");
    button.addEventListener("click", () => look(index));
    parts.push(study.text.slice(end, from), button);
    end = to;
  });
  element("report").replaceChildren(...parts, study.text.slice(end));
}

function look(index) {
  chosen = chosen === index ? -1 : index;
  document.querySelectorAll(".word").forEach((button, place) => {
    const same = chosen >= 0 && study.maps[place] === study.maps[chosen];
    button.setAttribute("aria-pressed", String(place === chosen || same));
  });
  draw();
}

function draw() {
  const image = element("image");
  const canvas = element("overlay");
  const scale = Math.max(1, FINE / Math.max(image.naturalWidth, image.naturalHeight));
  canvas.width = Math.round(scale * image.naturalWidth);
  canvas.height = Math.round(scale * image.naturalHeight);
  const context = canvas.getContext("2d");
  const said = [];
  if (chosen >= 0) said.push(heat(context, study.weights[study.maps[chosen]]));
  const labels = study.boxes.map((box) => frame(context, box));
  if (labels.length) said.push(`dashed: ${[...new Set(labels)].join(", ")}`);
  element("caption").textContent = said.join("; ");
}

// Draws a map over the square that the encoder saw; returns what it shows.
function heat(context, weights) {
  const [rows, columns] = study.grid;
  const low = Math.min(...weights);
  const high = Math.max(...weights);
  const small = made("canvas", { width: columns, height: rows });
  const pixels = new ImageData(columns, rows);
  weights.forEach((weight, cell) => {
    const scaled = high > low ? (weight - low) / (high - low) : 0;
    pixels.data.set([...HEAT, 200 * scaled], 4 * cell);
  });
  small.getContext("2d").putImageData(pixels, 0, 0);
  const { width, height } = context.canvas;
  const [x0, y0, x1, y1] = study.square;
  context.drawImage(small, x0 * width, y0 * height, (x1 - x0) * width, (y1 - y0) * height);
  const mean = weights.reduce((sum, weight) => sum + weight, 0) / weights.length;
  const peak = mean > 0 ? `, peak ${(high / mean).toFixed(1)} \u00d7 uniform` : "";
  return `orange: where \u201c${study.labels[study.maps[chosen]]}\u201d looks${peak}`;
}

function frame(context, { label, xyxy }) {
  const { width, height } = context.canvas;
  const [x0, y0, x1, y1] = xyxy;
  const thin = Math.max(width, height) / 200;
  BOX.forEach((colour, layer) => {
    context.strokeStyle = colour;
    context.lineWidth = layer ? thin : 2 * thin;
    context.setLineDash(layer ? [4 * thin, 2 * thin] : []);
    context.strokeRect(x0 * width, y0 * height, (x1 - x0) * width, (y1 - y0) * height);
  });
  return label;
}

async function compare() {
  const text = element("changed").value;
  const { row } = study;
  const found = await ask("/choice", { row, text });
  if (study.row !== row || element("changed").value !== text) return; // another change came
  ["own", "other"].forEach((name, place) => {
    const line = element(name);
    line.querySelector("td").textContent = found.cosines[place].toFixed(3);
    const share = found.shares[place];
    line.querySelector("meter").value = share ?? 0;
    line.querySelector("output").textContent = share === null ? "" : `${(100 * share).toFixed(1)} %`;
  });
}

function swapped(text) {
  return text.replace(/\b(left|right)\b/gi, (word) => {
    const other = word.toLowerCase() === "left" ? "right" : "left";
    if (word === word.toUpperCase()) return other.toUpperCase();
    return word[0] === word[0].toUpperCase() ? other[0].toUpperCase() + other.slice(1) : other;
  });
}

function change(text) {
  element("changed").value = text;
  run(compare);
}

let pause;
element("search").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = element("query").value.trim() || element("query").placeholder;
  run(() => search(text));
});
element("more").addEventListener("click", () => run(more));
element("sides").addEventListener("click", () => change(swapped(element("changed").value)));
element("reset").addEventListener("click", () => change(study.text));
element("changed").addEventListener("input", () => {
  clearTimeout(pause);
  pause = setTimeout(() => run(compare), 250);
});
run(more);
