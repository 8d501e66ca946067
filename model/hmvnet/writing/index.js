"use strict";
// A cohort's table. Every text from the data reaches the page as textContent.

const data = JSON.parse(document.getElementById("data").textContent);
const $ = (words) => document.querySelector(words);
const state = { column: data.columns[0].key, downwards: false };
const VERDICTS = { none: 0, review: 1, ok: 2 }; // the worst first

function make(name, text = "", attributes = {}) {
  const element = document.createElement(name);
  element.textContent = text;
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  return element;
}

// --- cells ---------------------------------------------------------------------------------------

function verdictCell(row) {
  const cell = make("td", "", { class: "text" });
  const known = Object.hasOwn(VERDICTS, row.verdict) ? row.verdict : "review";
  cell.append(make("span", row.verdict === "none" ? "no result" : row.verdict, { class: `badge ${known}` }));
  if (row.said) cell.append(make("small", row.said));
  return cell;
}

function pictureCell(row) {
  const cell = make("td", "", { class: "picture" });
  if (!row.thumbnail) {
    cell.textContent = "–";
    return cell;
  }
  const image = make("img", "", { src: `data:image/png;base64,${row.thumbnail}`, alt: `PET projection of ${row.patient}` });
  const [first] = row.links;
  const place = first ? make("a", "", { href: first[1] }) : cell;
  place.append(image);
  if (first) cell.append(place);
  return cell;
}

function linksCell(row) {
  const cell = make("td", "", { class: "text" });
  cell.append(...row.links.map(([name, address]) => make("a", name, { href: address })));
  return cell;
}

function valueCell(row, { key, kind, digits }) {
  if (key === "verdict") return verdictCell(row);
  const value = row[key];
  if (kind === "text") return make("td", value, { class: "text" });
  return make("td", value === null ? "–" : value.toFixed(digits));
}

function makeRow(row) {
  const line = make("tr");
  line.append(pictureCell(row), ...data.columns.map((column) => valueCell(row, column)), linksCell(row));
  line.dataset.patient = row.patient;
  return { row, line, text: `${row.patient} ${row.verdict} ${row.said}`.toLowerCase() };
}

// --- order ---------------------------------------------------------------------------------------

const inOrder = new Intl.Collator("en", { numeric: true });

/** What is not there comes last, whichever way. */
function compare(one, other) {
  const { column, downwards } = state;
  const [a, b] = [one.row[column], other.row[column]];
  if (a === null || b === null) return (a === null) - (b === null);
  let found = typeof a === "number" ? a - b : inOrder.compare(a, b);
  if (column === "verdict") found = (VERDICTS[a] ?? 1) - (VERDICTS[b] ?? 1);
  return (downwards ? -found : found) || inOrder.compare(one.row.patient, other.row.patient);
}

function show() {
  for (const head of document.querySelectorAll("th[data-key]")) {
    const way = state.downwards ? "descending" : "ascending";
    head.setAttribute("aria-sort", head.dataset.key === state.column ? way : "none");
  }
  const wanted = $("#filter").value.trim().toLowerCase();
  const shown = lines.filter(({ text }) => text.includes(wanted)).sort(compare);
  $("tbody").replaceChildren(...shown.map(({ line }) => line));
}

/** Numbers begin with the largest, texts with the first; a second click turns them over. */
function sortBy({ key, kind }) {
  state.downwards = state.column === key ? !state.downwards : kind !== "text";
  state.column = key;
  show();
}

function makeHead() {
  const line = make("tr");
  const cells = data.columns.map((column) => {
    const cell = make("th", "", { class: column.kind, "data-key": column.key, scope: "col" });
    const button = make("button", column.name, { type: "button" });
    button.addEventListener("click", () => sortBy(column));
    if (column.unit) button.append(make("small", column.unit));
    cell.append(button);
    return cell;
  });
  const bare = (name) => {
    const cell = make("th", "", { class: "text", scope: "col" });
    cell.append(make("span", name));
    return cell;
  };
  line.append(bare("PET"), ...cells, bare("files"));
  $("thead").append(line);
}

const lines = data.rows.map(makeRow);
$("#counts").textContent = data.counts;
$("#filter").addEventListener("input", show);
makeHead();
show();
document.documentElement.dataset.ready = "true";
