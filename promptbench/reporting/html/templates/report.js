// Sorting: a heading is a button; numbers sort as numbers ("83.10 ± 0.40", "83.10 [82.1, 84.0]", "1,234"), "-" is always last.
"use strict";
const number = /^[+-]?\d[\d,]*(\.\d+)?(\s*(±\s*[\d.]+|\[[-\d., ]+\]))?$/;

function values(rows, column) {
  const texts = rows.map((row) => row.cells[column].textContent.trim());
  const said = texts.filter((text) => text !== "-" && text !== "");
  const numeric = said.length > 0 && said.every((text) => number.test(text));
  return {
    numeric,
    keys: texts.map((text) => {
      if (text === "-" || text === "") return null;
      return numeric ? parseFloat(text.replaceAll(",", "")) : text;
    }),
  };
}

function sort(table, heading, column) {
  const bodies = [...table.tBodies].map((body) => [...body.rows].filter((row) => row.className !== "group"));
  const { numeric } = values(bodies.flat(), column);
  const before = heading.getAttribute("aria-sort");
  // Numbers start with the highest, words with A.
  const first = numeric ? "descending" : "ascending";
  const other = numeric ? "ascending" : "descending";
  const order = before === first ? other : first;
  const sign = order === "ascending" ? 1 : -1;
  for (const rows of bodies) {
    const { keys } = values(rows, column);
    const ranked = rows.map((row, i) => ({ row, key: keys[i] }));
    ranked.sort((a, b) => {
      if (a.key === null || b.key === null) return (a.key === null) - (b.key === null);
      const difference = typeof a.key === "number" && typeof b.key === "number"
        ? a.key - b.key
        : String(a.key).localeCompare(String(b.key), "en", { numeric: true });
      return sign * difference;
    });
    for (const { row } of ranked) row.parentNode.append(row);
  }
  for (const one of table.tHead.rows[0].cells) one.setAttribute("aria-sort", "none");
  heading.setAttribute("aria-sort", order);
}

for (const table of document.querySelectorAll("table.sortable")) {
  [...table.tHead.rows[0].cells].forEach((heading, column) => {
    if ([...table.tBodies].some((body) => [...body.rows].some((row) => row.cells[column]?.querySelector("svg")))) {
      return; // images have no order
    }
    const button = document.createElement("button");
    button.type = "button";
    button.append(...heading.childNodes);
    heading.append(button);
    heading.setAttribute("aria-sort", "none");
    button.addEventListener("click", () => sort(table, heading, column));
  });
}
