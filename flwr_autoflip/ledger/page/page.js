for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
    const falling = head.getAttribute("aria-sort") === "descending";
    const sign = falling ? 1 : -1;
    const key = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent;
    const rows = [...table.tBodies[0].rows];
    const numbers = rows.every((row) => "value" in row.cells[column].dataset);
    // What is not known comes last, whichever way the others go. Node ids have more
    // digits than a number here can hold, so they are compared as text.
    rows.sort((a, b) => (key(a) === "") - (key(b) === "") || sign * (numbers
      ? key(a) - key(b) : key(a).localeCompare(key(b), "en", {numeric: true})));
    heads.forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", falling ? "ascending" : "descending");
    table.tBodies[0].append(...rows);
  }));
}
