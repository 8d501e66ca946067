"use strict";
// The patient's page. Arrays are [z][y][x]; x runs to the left, y to the back, z to the head.
// Every text from the data reaches the page as textContent.

const data = JSON.parse(document.getElementById("data").textContent);
const { report, size, spacing, affine } = data;
const strides = [1, size[0], size[0] * size[1]];
const root = document.documentElement;
const $ = (id) => document.getElementById(id);
const SLICE_PIXELS = 50; // of the wheel
const STRONGEST = 8; // variables that are shown by themselves
const FONT = '12px system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif';
const NAMES = "xyz";

const state = {
  at: [...data.start], // voxel x, y, z
  window: Object.keys(data.hu_windows)[0],
  suv: [...data.suv_window],
  opacity: 0.8,
  contours: Object.fromEntries(data.labels.map(({ label }) => [label, true])),
  crosshair: true,
};
let ct, pet, numbers; // codes of HU, codes of SUV, numbers of lesions
let planes, active;
let pointed = 0; // the lesion under the pointer

// --- data ----------------------------------------------------------------------------------------

async function inflated(text) {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Response(stream).arrayBuffer();
}

async function codes(volume) {
  const values = new Uint8Array(await inflated(volume.deflated));
  for (let i = strides[2]; i < values.length; i++) values[i] += values[i - strides[2]];
  return values;
}

const offset = (at) => at[0] + at[1] * strides[1] + at[2] * strides[2];
const positionOf = (at) =>
  affine.slice(0, 3).map((row) => row[0] * at[0] + row[1] * at[1] + row[2] * at[2] + row[3]);
const classOf = (number) => (number ? report.lesions[number - 1].label : 0);

// --- colours -------------------------------------------------------------------------------------

// For each code: the CT's grey, the PET's red, green, blue and opacity, the projection's grey.
const shades = {};

function makeShades() {
  const share = (value, [low, high]) => Math.min(1, Math.max(0, (value - low) / (high - low)));
  shades.ct = data.ct.table.map((hu) => 255 * share(hu, data.hu_windows[state.window]));
  const uptake = data.pet.table.map((suv) => share(suv, state.suv));
  shades.projected = uptake.map((part) => 255 * (1 - part));
  shades.pet = uptake.map((part) => {
    const [red, green, blue, opacity] = data.pet_colours[Math.round(255 * part)];
    return [red, green, blue, opacity * state.opacity];
  });
}

// --- planes --------------------------------------------------------------------------------------

function makePlane(box, [name, ends], i, projected) {
  const cut = 2 - i; // axes are numbered x, y, z
  const [across, down] = [0, 1, 2].filter((axis) => axis !== cut);
  const label = projected ? `${name} PET projection` : `${name} plane`;
  const canvas = make("canvas", "", { tabindex: 0, role: "img", "aria-label": label });
  const picture = make("canvas", "", { width: size[across], height: size[down] });
  const image = new ImageData(size[across], size[down]);
  image.data.fill(255);
  const plane = { name, ends, cut, across, down, projected, box, canvas, picture, image };
  Object.assign(plane, { upwards: down === 2, wheel: 0 });
  box.append(canvas);
  if (projected) project(plane);
  return plane;
}

/** Calls visit(pixel, voxel) for every pixel of a plane through `at`. */
function eachPixel(plane, at, visit) {
  const [width, height] = [size[plane.across], size[plane.down]];
  const step = strides[plane.across];
  for (let row = 0, pixel = 0; row < height; row++) {
    const line = plane.upwards ? height - 1 - row : row;
    let voxel = at * strides[plane.cut] + line * strides[plane.down];
    for (let column = 0; column < width; column++, pixel++, voxel += step) visit(pixel, voxel);
  }
}

/** The brightest code of each ray, and the outlines of what lies on it. */
function project(plane) {
  const count = size[plane.across] * size[plane.down];
  const masks = data.labels.map(() => new Uint8Array(count));
  const maskOf = Object.fromEntries(data.labels.map(({ label }, k) => [label, masks[k]]));
  plane.brightest = new Uint8Array(count);
  for (let at = 0; at < size[plane.cut]; at++) {
    eachPixel(plane, at, (pixel, voxel) => {
      if (pet[voxel] > plane.brightest[pixel]) plane.brightest[pixel] = pet[voxel];
      if (numbers[voxel]) maskOf[classOf(numbers[voxel])][pixel] = 1;
    });
  }
  plane.outlines = masks.map((mask) => outline(mask, size[plane.across], size[plane.down]));
}

function paint(plane) {
  const pixels = plane.image.data;
  if (plane.projected) {
    for (let i = 0; i < plane.brightest.length; i++) {
      pixels.fill(shades.projected[plane.brightest[i]], 4 * i, 4 * i + 3);
    }
  } else {
    const classes = new Uint8Array(size[plane.across] * size[plane.down]);
    eachPixel(plane, state.at[plane.cut], (pixel, voxel) => {
      const grey = shades.ct[ct[voxel]];
      const colour = shades.pet[pet[voxel]];
      const i = 4 * pixel;
      for (let k = 0; k < 3; k++) pixels[i + k] = grey + (colour[k] - grey) * colour[3];
      if (numbers[voxel]) classes[pixel] = classOf(numbers[voxel]);
    });
    plane.outlines = data.labels.map(({ label }) =>
      outline(classes.map((found) => found === label), size[plane.across], size[plane.down]));
  }
  plane.picture.getContext("2d").putImageData(plane.image, 0, 0);
}

/** The line half-way between voxels inside and outside, by marching squares, in pixels. */
function outline(mask, width, height) {
  const path = new Path2D();
  const inside = (x, y) => (x >= 0 && y >= 0 && x < width && y < height ? mask[x + y * width] : 0);
  for (let y = -1; y < height; y++) {
    for (let x = -1; x < width; x++) {
      const [a, b, c, d] = [inside(x, y), inside(x + 1, y), inside(x + 1, y + 1), inside(x, y + 1)];
      if (a === b && b === c && c === d) continue;
      // Where the line crosses the square's edges, whose corners are centres of voxels.
      const ends = [];
      if (a !== b) ends.push([x + 1, y + 0.5]);
      if (b !== c) ends.push([x + 1.5, y + 1]);
      if (c !== d) ends.push([x + 1, y + 1.5]);
      if (d !== a) ends.push([x + 0.5, y + 1]);
      if (ends.length === 4 && !a) ends.push(ends.shift()); // corners that touch are of one piece
      for (let i = 0; i < ends.length; i += 2) {
        path.moveTo(...ends[i]);
        path.lineTo(...ends[i + 1]);
      }
    }
  }
  return path;
}

/** Where a plane's picture lies on its canvas, in CSS pixels: left, top, and pixels a voxel. */
function place({ canvas, across, down }) {
  const [width, height] = [size[across] * spacing[across], size[down] * spacing[down]];
  const scale = Math.min(canvas.clientWidth / width, canvas.clientHeight / height);
  return {
    left: (canvas.clientWidth - scale * width) / 2,
    top: (canvas.clientHeight - scale * height) / 2,
    wide: scale * spacing[across],
    tall: scale * spacing[down],
    scale, // pixels a mm
  };
}

function draw(plane) {
  const { canvas, across, down, cut, projected } = plane;
  const { left, top, wide, tall, scale } = place(plane);
  const [width, height] = [wide * size[across], tall * size[down]];
  const ratio = window.devicePixelRatio || 1;
  canvas.width = Math.round(canvas.clientWidth * ratio);
  canvas.height = Math.round(canvas.clientHeight * ratio);
  const pen = canvas.getContext("2d");
  pen.scale(ratio, ratio);
  pen.imageSmoothingQuality = "high";
  pen.drawImage(plane.picture, left, top, width, height);
  data.labels.forEach(({ label, colour }, k) => {
    if (!state.contours[label]) return;
    const path = new Path2D();
    path.addPath(plane.outlines[k], new DOMMatrix([wide, 0, 0, tall, left, top]));
    pen.strokeStyle = colour;
    pen.lineWidth = 1.6;
    pen.stroke(path);
  });
  const spot = (at) => {
    const line = plane.upwards ? size[down] - 1 - at[down] : at[down];
    return [left + (at[across] + 0.5) * wide, top + (line + 0.5) * tall];
  };
  if (state.crosshair) {
    const [[x, y], gap] = [spot(state.at), 9];
    pen.fillStyle = projected ? "rgba(0, 120, 80, 0.8)" : "rgba(127, 208, 176, 0.8)";
    pen.fillRect(left, y - 0.5, Math.max(0, x - gap - left), 1);
    pen.fillRect(x + gap, y - 0.5, Math.max(0, left + width - x - gap), 1);
    pen.fillRect(x - 0.5, top, 1, Math.max(0, y - gap - top));
    pen.fillRect(x - 0.5, y + gap, 1, Math.max(0, top + height - y - gap));
  }
  const [ink, paper] = projected ? ["#111", "#fff"] : ["#fff", "#000"];
  const write = (text, atX, atY, align) => {
    pen.textAlign = align;
    pen.strokeStyle = paper;
    pen.lineWidth = 3;
    pen.lineJoin = "round";
    pen.strokeText(text, atX, atY);
    pen.fillStyle = ink;
    pen.fillText(text, atX, atY);
  };
  pen.font = FONT;
  const position = positionOf(state.at)[cut];
  const title = projected ? "PET MIP" : `${plane.name}, ${NAMES[cut]} = ${position.toFixed(0)} mm`;
  write(title, left + 6, top + 16, "left");
  const bar = data.scale_bars_mm.find((mm) => mm <= width / scale / 3) || data.scale_bars_mm.at(-1);
  pen.fillStyle = paper;
  pen.fillRect(left + 7, top + height - 11, bar * scale + 2, 5);
  pen.fillStyle = ink;
  pen.fillRect(left + 8, top + height - 10, bar * scale, 3);
  write(`${bar} mm`, left + 8, top + height - 15, "left");
  if (projected) data.places.forEach((at, i) => {
    if (!at || !state.contours[report.lesions[i].label]) return;
    const [x, y] = spot(at);
    write(i + 1, x + 10, y - 6, "left");
  });
  pen.font = `bold ${FONT}`;
  write(plane.ends[0], left + 6, top + height / 2, "left");
  write(plane.ends[1], left + width - 6, top + height / 2, "right");
}

// --- what moves ----------------------------------------------------------------------------------

let asked = false;

/** Draw once before the next frame, however many things have changed. */
function refresh() {
  if (asked) return;
  asked = true;
  requestAnimationFrame(() => {
    asked = false;
    for (const plane of planes) {
      paint(plane);
      draw(plane);
      plane.box.classList.toggle("active", plane === active);
    }
    const here = numbers[offset(state.at)];
    sayWhere(here);
    markRow();
    // What a program may want to know.
    const [x, y, z] = positionOf(state.at).map((mm) => mm.toFixed(2));
    Object.assign(root.dataset, { x, y, z, lesion: here, ready: "true" });
  });
}

/** Marks the row of the lesion under the pointer, or else under the crosshair. */
function markRow() {
  const marked = pointed || numbers[offset(state.at)];
  document.querySelectorAll("#lesions tbody tr").forEach((row) =>
    row.classList.toggle("here", Number(row.dataset.lesion) === marked));
}

function sayWhere(here) {
  const i = offset(state.at);
  const words = [];
  const say = (name, value) => words.push(`${name} `, make("b", value), "    ");
  positionOf(state.at).forEach((mm, axis) => say(NAMES[axis], mm.toFixed(1)));
  words.push("mm (LPS)    ");
  say("SUV", data.pet.table[pet[i]].toFixed(1));
  say("HU", data.ct.table[ct[i]].toFixed(0));
  if (here) say("lesion", `${here} (${report.lesions[here - 1].class})`);
  $("readout").replaceChildren(...words);
}

function moveTo(at) {
  state.at = at.map((value, axis) => Math.min(size[axis] - 1, Math.max(0, Math.round(value))));
  refresh();
}

function scroll(plane, slices) {
  const at = [...state.at];
  at[plane.cut] += slices;
  moveTo(at);
}

/** The voxel under the pointer; in a projection the hottest on its ray. None beside the picture. */
function voxelAt(plane, event) {
  const { left, top, wide, tall } = place(plane);
  const box = plane.canvas.getBoundingClientRect();
  const column = Math.floor((event.clientX - box.left - left) / wide);
  const row = Math.floor((event.clientY - box.top - top) / tall);
  if (column < 0 || row < 0 || column >= size[plane.across] || row >= size[plane.down]) return null;
  const at = [...state.at];
  at[plane.across] = column;
  at[plane.down] = plane.upwards ? size[plane.down] - 1 - row : row;
  if (plane.projected) {
    const along = (depth) => { const one = [...at]; one[plane.cut] = depth; return one; };
    let best = 0;
    for (let depth = 1; depth < size[plane.cut]; depth++) {
      if (pet[offset(along(depth))] > pet[offset(along(best))]) best = depth;
    }
    at[plane.cut] = best;
  }
  return at;
}

function listen(plane) {
  const { canvas } = plane;
  const follow = (event) => {
    const at = voxelAt(plane, event);
    if (at && event.buttons & 1) moveTo(at);
    pointed = at && numbers[offset(at)];
    markRow();
  };
  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    follow(event);
  });
  canvas.addEventListener("pointermove", follow);
  canvas.addEventListener("pointerleave", () => { pointed = 0; markRow(); });
  canvas.addEventListener("focus", () => { active = plane.projected ? active : plane; refresh(); });
  canvas.addEventListener("wheel", (event) => {
    event.preventDefault();
    if (plane.projected) return;
    active = plane;
    plane.wheel += event.deltaY * (event.deltaMode ? SLICE_PIXELS / 3 : 1);
    const slices = Math.trunc(plane.wheel / SLICE_PIXELS);
    plane.wheel -= slices * SLICE_PIXELS;
    scroll(plane, plane.upwards ? slices : -slices); // down: to the feet, to the back, to the left
  }, { passive: false });
}

function onKey(event) {
  const slices = { ArrowUp: 1, ArrowDown: -1, PageUp: 10, PageDown: -10 }[event.key];
  const key = event.key.toLowerCase();
  const own = slices ? "input" : "input[type=number]"; // which has a use for the key itself
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches(own)) return;
  const row = event.target.closest("#lesions tbody tr");
  if (slices) scroll(active, active.upwards ? -slices : slices);
  else if (event.key === "Enter" && row) row.click();
  else if (key === "c") toggleContours();
  else if (key === "x") $("crosshair").click();
  else if (key === "w") chooseWindow();
  else return;
  event.preventDefault();
}

function toggleContours() {
  const boxes = [...document.querySelectorAll("input[data-label]")];
  const on = !boxes.some((box) => box.checked);
  for (const box of boxes) {
    box.checked = on;
    state.contours[box.dataset.label] = on;
  }
  refresh();
}

/** A window by its name; without one, the next. */
function chooseWindow(name) {
  const names = Object.keys(data.hu_windows);
  state.window = name ?? names[(names.indexOf(state.window) + 1) % names.length];
  for (const button of $("windows").querySelectorAll("button")) {
    button.setAttribute("aria-pressed", button.textContent === state.window);
  }
  recolour();
}

function recolour() {
  makeShades();
  refresh();
}

// --- what stands still ---------------------------------------------------------------------------

function make(name, text = "", attributes = {}) {
  const element = document.createElement(name);
  element.textContent = text;
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  return element;
}

function makeTools() {
  const ramp = data.pet_colours.flatMap((colour) => [...colour.slice(0, 3), 255 * colour[3]]);
  $("ramp").getContext("2d").putImageData(new ImageData(Uint8ClampedArray.from(ramp), 256), 0, 0);
  for (const name of Object.keys(data.hu_windows)) {
    const button = make("button", name, { type: "button" });
    button.addEventListener("click", () => chooseWindow(name));
    $("windows").append(button);
  }
  for (const { label, name, colour } of [...data.labels].reverse()) {
    const box = make("input", "", { type: "checkbox", "data-label": label });
    box.checked = true;
    box.addEventListener("change", () => { state.contours[label] = box.checked; refresh(); });
    const words = make("label");
    const text = make("span", ` ${name}`);
    text.style.borderBottom = `2px solid ${colour}`;
    words.append(box, text);
    $("switches").prepend(words);
  }
  $("crosshair").addEventListener("change", (event) => {
    state.crosshair = event.target.checked;
    refresh();
  });
  $("opacity").addEventListener("input", (event) => {
    state.opacity = event.target.value / 100;
    recolour();
  });
  [$("low").value, $("high").value] = state.suv;
  const onSuv = () => {
    const given = [$("low").valueAsNumber, $("high").valueAsNumber];
    if (!(given[0] < given[1])) return; // half-typed
    state.suv = given;
    recolour();
  };
  $("low").addEventListener("input", onSuv);
  $("high").addEventListener("input", onSuv);
}

function makeTable() {
  const columns = [
    ["#", ""], ["class", ""],
    ["volume", "mL", "volume_ml", 1], ["diameter", "mm", "diameter_mm", 0],
    ["SUVmax", "", "suv_max", 1], ["SUVpeak", "", "suv_peak", 1], ["TLG", "SUV × mL", "tlg", 0],
    ["confidence", "mean p", "confidence", 2],
  ];
  const head = make("tr");
  for (const [name, unit] of columns) {
    const cell = make("th", name, { scope: "col" });
    cell.append(make("small", unit));
    head.append(cell);
  }
  document.querySelector("#lesions thead").append(head);
  const body = document.querySelector("#lesions tbody");
  report.lesions.forEach((lesion, i) => {
    const row = make("tr", "", { tabindex: 0, "data-lesion": i + 1 });
    const kind = make("td");
    const swatch = make("i");
    swatch.style.background = data.labels.find(({ label }) => label === lesion.label).colour;
    kind.append(swatch, lesion.class);
    row.append(make("td", i + 1), kind);
    for (const [, , key, digits] of columns.slice(2)) {
      row.append(make("td", lesion[key] == null ? "–" : lesion[key].toFixed(digits)));
    }
    row.addEventListener("click", () => data.places[i] && moveTo(data.places[i]));
    body.append(row);
  });
  if (!report.lesions.length) {
    const cell = make("td", "no lesion found", { colspan: columns.length });
    cell.style.textAlign = "left";
    body.append(cell);
  }
}

function svg(name, attributes, text) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text !== undefined) element.textContent = text;
  return element;
}

const sum = (values) => values.reduce((total, value) => total + value, 0);
const readable = (name) => name.replaceAll("_", " ");
const signed = (value, digits) => `${value < 0 ? "−" : "+"}${Math.abs(value).toFixed(digits)}`;

/** T and N, with how likely each stage is where a model says so, and why. */
function makeStage() {
  const { stage } = report;
  if (!stage) return;
  const section = $("stage");
  section.hidden = false;
  const title = make("h2", `Stage (${stage.edition}, by ${stage.by}) `);
  title.append(make("span", `${stage.t.stage} ${stage.n.stage}`, { class: "big" }));
  section.append(title);
  for (const axis of [stage.t, stage.n]) {
    const line = make("p", "");
    line.append(make("b", axis.stage), `: ${axis.reasons.join(", ")}`);
    section.append(line);
    const likely = Object.entries(axis.probabilities);
    if (!likely.length) continue;
    const shares = likely.map(([name, share]) => `${name} ${(100 * share).toFixed(0)}%`);
    section.append(make("p", shares.join(", ")));
  }
  for (const note of stage.notes) section.append(make("small", note));
}

function makeRisk() {
  const { risk } = report;
  if (!risk) return;
  const section = $("risk");
  section.hidden = false;
  const below = risk.share_of_training_patients_below;
  const said = make("p", `${risk.direction}; above `);
  said.append(make("b", `${(100 * below).toFixed(0)}%`), " of the training patients");
  const title = make("h2", "Risk of recurrence (RFS) ");
  title.append(make("span", signed(risk.value, 2), { class: "big" }));
  section.append(title, said, makeScale(below));
  if (risk.interval_95) {
    const ends = risk.interval_95.map((end) => signed(end, 2)).join(" to ");
    section.append(make("p", `95% interval over training samples: ${ends}`));
  }
  if (risk.expected_recurrence_free_days != null) {
    const days = make("p", "expected without recurrence: ");
    days.append(make("b", `${risk.expected_recurrence_free_days.toFixed(0)} days`));
    if (risk.horizon_days) days.append(` of the next ${risk.horizon_days.toFixed(0)}`);
    section.append(days);
  }
  if (data.curve) {
    const dashed = make("small", "dashed: observed in patients of low, middle and high risk");
    section.append(make("h2", "Chance of no recurrence"), makeCurve(), dashed);
  }
  const bars = Object.entries(risk.variables);
  const rest = bars.splice(STRONGEST);
  if (rest.length) bars.push([`${rest.length} others`, sum(rest.map(([, moved]) => moved))]);
  bars.push(...Object.entries(risk.branches).map(([name, moved]) => [`network: ${name}`, moved]));
  if (bars.length) section.append(make("h2", "What moved it"), makeBars(bars));
  const measured = Object.entries(risk.measured ?? {}).map((pair) => pair.join(" "));
  if (measured.length) section.append(make("small", `Measured: ${readable(measured.join(", "))}`));
}

/** Where the risk lies among the training patients, from the lowest to the highest. */
function makeScale(below) {
  const drawing = svg("svg", { viewBox: "0 0 320 30", role: "img", "aria-label": "its rank" });
  const dot = { cx: 4 + 312 * below, cy: 10, r: 6, fill: "#7fd0b0", stroke: "#15181c" };
  drawing.append(
    svg("rect", { x: 4, y: 8, width: 312, height: 4, rx: 2, fill: "#3b4650" }),
    svg("circle", { ...dot, "stroke-width": 2 }),
    svg("text", { x: 4, y: 27 }, "lowest"),
    svg("text", { x: 160, y: 27, "text-anchor": "middle" }, "training patients"),
    svg("text", { x: 316, y: 27, "text-anchor": "end" }, "highest"),
  );
  return drawing;
}

/** The patient's curve over the years, and those observed in groups of low to high risk. */
function makeCurve() {
  const { days, patient, groups } = data.curve;
  const [left, right, top, bottom] = [36, 316, 6, 112];
  const last = days.at(-1);
  const x = (day) => left + ((right - left) * day) / last;
  const y = (chance) => bottom - (bottom - top) * chance;
  const box = { viewBox: "0 0 320 146", role: "img", "aria-label": "chance of no recurrence" };
  const drawing = svg("svg", box);
  for (const chance of [0, 0.5, 1]) {
    const height = y(chance);
    drawing.append(
      svg("rect", { x: left, y: height, width: right - left, height: 0.5, fill: "#3b4650" }),
      svg("text", { x: left - 4, y: height + 4, "text-anchor": "end" }, `${100 * chance}%`),
    );
  }
  const years = last / 365.25;
  const every = Math.max(1, Math.ceil(years / 8));
  for (let year = 0; year <= years; year += every) {
    const at = { x: x(365.25 * year), y: bottom + 13, "text-anchor": "middle" };
    drawing.append(svg("text", at, year === 0 ? "0" : `${year} y`));
  }
  const stairs = (chances) => chances.map((chance, i) => (i === 0
    ? `M${x(days[0]).toFixed(1)} ${y(chance).toFixed(1)}`
    : `H${x(days[i]).toFixed(1)}V${y(chance).toFixed(1)}`)).join("");
  const names = { 3: ["low", "middle", "high"] }[groups.length]
    ?? groups.map((_, i) => `group ${i + 1}`);
  const curves = groups.map(({ patients, survival }, i) => [
    `${names[i]} (${patients})`, survival, ["#6f9fc8", "#a3abb5", "#d9904a"][i % 3], 1.2, "3 2",
  ]);
  curves.push(["this patient", patient, "#7fd0b0", 2.4, "none"]);
  curves.forEach(([name, chances, stroke, width, dashes], i) => {
    const line = { fill: "none", stroke, "stroke-width": width, "stroke-dasharray": dashes };
    const place = 4 + (i * 316) / curves.length;
    drawing.append(
      svg("path", { ...line, d: stairs(chances) }),
      svg("path", { ...line, d: `M${place} 138h12` }),
      svg("text", { x: place + 15, y: 142, style: "font-size: 9px" }, name),
    );
  });
  return drawing;
}

/** A bar for each name and what it adds to the risk. */
function makeBars(bars) {
  const [line, middle, reach, letters] = [15, 222, 50, 27];
  const foot = line * bars.length;
  const most = Math.max(...bars.map(([, value]) => Math.abs(value))) || 1;
  const box = { viewBox: `0 0 320 ${foot + 18}`, role: "img", "aria-label": "what moved the risk" };
  const drawing = svg("svg", box);
  bars.forEach(([name, value], i) => {
    const [long, top] = [(reach * Math.abs(value)) / most, line * i];
    const [x, fill] = value < 0 ? [middle - long, "#6f9fc8"] : [middle, "#d9904a"];
    const whole = readable(name);
    const short = whole.length > letters ? `${whole.slice(0, letters - 1)}…` : whole;
    const words = svg("text", { x: 0, y: top + 12 }, short);
    words.append(svg("title", {}, whole));
    const figure = svg("text", { x: 320, y: top + 12, "text-anchor": "end" }, signed(value, 3));
    drawing.append(words, svg("rect", { x, y: top + 3, width: long, height: 9, fill }), figure);
  });
  drawing.append(
    svg("rect", { x: middle - 0.5, y: 0, width: 1, height: foot, fill: "#6b7580" }),
    svg("text", { x: middle - 4, y: foot + 13, "text-anchor": "end" }, "lowers"),
    svg("text", { x: middle + 4, y: foot + 13 }, "raises"),
  );
  return drawing;
}

function makeWords() {
  const { status, codes } = report.verdict;
  const words = codes.map((code) => code.replaceAll("-", " ")).join(", ");
  $("verdict").textContent = words ? `${status}: ${words}` : status;
  $("verdict").classList.add(status);
  $("synthetic").hidden = !data.synthetic;
  $("notice").textContent = report.notice;
  const notes = make("ul");
  notes.append(...report.notes.map((note) => make("li", note)));
  $("notes").append(report.notes.length ? notes : make("p", "none"));
  const seconds = sum(Object.values(report.seconds));
  const list = make("dl");
  for (const [name, value] of [
    ["bundle", report.bundle], ["version", report.version], ["device", report.device || "–"],
    ["time", report.time], ["took", `${seconds.toFixed(1)} s`],
    ["shown", `voxels of ${spacing.map((mm) => Number(mm.toFixed(2))).join(" × ")} mm`],
  ]) {
    list.append(make("dt", name), make("dd", value));
  }
  const settings = make("details");
  settings.append(make("summary", "settings"), make("pre", JSON.stringify(data.settings, null, 1)));
  $("made").append(list, settings);
}

async function begin() {
  makeWords();
  makeTools();
  makeTable();
  makeStage();
  makeRisk();
  [ct, pet] = await Promise.all([codes(data.ct), codes(data.pet)]);
  numbers = new Uint16Array(await inflated(data.numbers));
  document.querySelector("main").hidden = false;
  const boxes = document.querySelectorAll(".plane");
  planes = data.planes.map((words, i) => makePlane(boxes[i], words, i, false));
  planes.push(...[1, 2].map((i) => makePlane(boxes[2 + i], data.planes[i], i, true)));
  [active] = planes;
  planes.forEach(listen);
  document.addEventListener("keydown", onKey);
  const watch = new ResizeObserver(refresh);
  planes.forEach(({ canvas }) => watch.observe(canvas));
  chooseWindow(state.window);
}

begin().catch((error) => {
  const words = `The pictures cannot be shown (${error}). A browser of 2023 or later is needed.`;
  document.querySelector("main").replaceWith(make("p", words, { id: "failure" }));
});
