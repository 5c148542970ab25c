// Sorts the tables of a report: each heading of a column becomes a button.

const number = (text) => {
  const found = Number.parseFloat(text);
  return Number.isNaN(found) ? Infinity : found;
};

function sortable(table) {
  const heads = [...table.tHead.rows[0].cells];
  const body = table.tBodies[0];
  const sort = (column, down) => {
    const numeric = heads[column].classList.contains("number");
    const key = (row) => row.cells[column]?.textContent.trim() ?? "";
    const order = (a, b) => (numeric ? number(key(a)) - number(key(b)) || 0 : key(a).localeCompare(key(b)));
    body.append(...[...body.rows].sort((a, b) => (down ? order(b, a) : order(a, b))));
    heads.forEach((head, index) => head.setAttribute("aria-sort", index === column ? (down ? "descending" : "ascending") : "none"));
  };
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    button.addEventListener("click", () => sort(column, head.getAttribute("aria-sort") === "ascending"));
    head.append(button);
    head.setAttribute("aria-sort", "none");
  });
  table.classList.add("sortable");
}

export function sortTables(root) {
  root.querySelectorAll("table").forEach((table) => table.tHead?.rows.length && table.tBodies[0]?.rows.length > 1 && sortable(table));
}
