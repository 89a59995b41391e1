"use strict";
// Sorting and filtering of the tables; without it the page is complete all the same.
const order = new Intl.Collator(undefined, { numeric: true });

function value(row, column) {
  const text = row.cells[column].textContent.trim().replace("\u2212", "-");
  const number = text === "" || text === "\u2013" ? NaN : Number(text);
  return { text, number };
}

function compare(a, b) {
  if (!isNaN(a.number) && !isNaN(b.number)) return a.number - b.number;
  return order.compare(a.text, b.text);
}

function sort(table, header, column) {
  const isRising = header.getAttribute("aria-sort") !== "ascending";
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", isRising ? "ascending" : "descending");
  const body = table.tBodies[0];
  const rows = Array.from(body.rows, row => ({ row, at: value(row, column) }));
  rows.sort((a, b) => {
    const unknown = (a.at.text === "\u2013") - (b.at.text === "\u2013"); // those are last, always
    return unknown || (isRising ? 1 : -1) * compare(a.at, b.at);
  });
  body.append(...rows.map(one => one.row));
}

for (const table of document.querySelectorAll("table.sortable")) {
  Array.from(table.tHead.rows[0].cells).forEach((header, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...header.childNodes);
    header.append(button);
    button.addEventListener("click", () => sort(table, header, column));
  });
}

for (const tools of document.querySelectorAll(".tools")) {
  const table = document.getElementById(tools.dataset.for);
  const label = tools.querySelector(".filter"), count = tools.querySelector(".count");
  const input = label.querySelector("input");
  const rows = Array.from(table.tBodies[0].rows);
  const texts = rows.map(row =>
    Array.from(row.querySelectorAll("th, .text"), cell => cell.textContent).join(" ").toLowerCase());
  function filter() {
    const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
    let seen = 0;
    rows.forEach((row, number) => {
      row.hidden = !words.every(word => texts[number].includes(word));
      seen += !row.hidden;
    });
    count.textContent = `${seen} of ${rows.length} volumes`;
  }
  input.addEventListener("input", filter);
  label.hidden = count.hidden = false;
  filter();
}
