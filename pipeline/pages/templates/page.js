"use strict";
(() => {
  const table = document.getElementById("tasks");
  const body = table.tBodies[0];
  const rows = [...body.rows];
  const heads = [...table.tHead.rows[0].cells];

  // Sorting: numbers by value, names as text; rows without a value stay at the end either way.
  const valueOf = (row, column) => {
    const raw = row.cells[column].dataset.value;
    return raw === undefined || raw === "" ? null : heads[column].dataset.kind === "text" ? raw : Number(raw);
  };
  const compare = (column, sign) => (a, b) => {
    const x = valueOf(a, column), y = valueOf(b, column);
    if (x === null || y === null) return (x === null) - (y === null);
    return sign * (typeof x === "string" ? x.localeCompare(y) : x - y);
  };
  heads.forEach((head, column) => {
    const button = head.querySelector("button");
    if (!button) return;
    button.addEventListener("click", () => {
      const first = head.dataset.kind === "text" ? "ascending" : "descending";
      const other = first === "ascending" ? "descending" : "ascending";
      const order = head.getAttribute("aria-sort") === first ? other : first;
      heads.forEach((each) => each.hasAttribute("aria-sort") && each.setAttribute("aria-sort", "none"));
      head.setAttribute("aria-sort", order);
      body.append(...[...body.rows].sort(compare(column, order === "ascending" ? 1 : -1)));
    });
  });

  // Filtering.
  const search = document.getElementById("search");
  const show = document.getElementById("show");
  const chips = [...document.querySelectorAll(".chips button")];
  const count = document.getElementById("count");
  const filter = () => {
    const words = search.value.trim().toLowerCase().split(/\s+/);
    const domains = chips.filter((chip) => chip.getAttribute("aria-pressed") === "true").map((chip) => chip.value);
    let visible = 0;
    for (const row of rows) {
      const isShown = words.every((word) => row.dataset.task.includes(word)) && domains.includes(row.dataset.domain)
        && (show.value === "all" || row.dataset.is.split(" ").includes(show.value));
      row.hidden = !isShown;
      visible += isShown;
    }
    count.textContent = visible + " of " + rows.length + " " + table.dataset.rows + " shown";
  };
  search.addEventListener("input", filter);
  show.addEventListener("change", filter);
  for (const chip of chips) {
    chip.addEventListener("click", () => {
      chip.setAttribute("aria-pressed", chip.getAttribute("aria-pressed") === "true" ? "false" : "true");
      filter();
    });
  }
  filter();
})();
