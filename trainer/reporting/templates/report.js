"use strict";
(() => {
  const table = document.getElementById("tasks");
  const body = table.tBodies[0];
  const rows = [...body.rows];
  const heads = [...table.tHead.rows[0].cells];
  const still = matchMedia("(prefers-reduced-motion: reduce)").matches;

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
    count.textContent = visible + " of " + rows.length + " tasks shown";
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

  // The video of a task. It lies in the page as text and becomes a file of the browser only while it is shown.
  const dialog = document.getElementById("player");
  if (dialog) {
    const video = dialog.querySelector("video");
    let task = null, opener = null, url = null;
    const playable = () => [...body.rows].filter((row) => !row.hidden && row.querySelector(".play")).map((row) => row.dataset.task);
    const release = () => {
      video.pause();
      video.removeAttribute("src");
      if (url) URL.revokeObjectURL(url);
      url = null;
    };
    const load = (name) => {
      release();
      task = name;
      const bytes = Uint8Array.from(atob(document.getElementById("video-" + name).textContent.trim()), (c) => c.charCodeAt(0));
      url = URL.createObjectURL(new Blob([bytes], { type: "video/mp4" }));
      video.src = url;
      dialog.querySelector("h2").textContent = name;
      dialog.querySelector(".facts").replaceChildren(document.getElementById("facts-" + name).content.cloneNode(true));
      if (!still) video.play().catch(() => {});
    };
    const step = (by) => {
      const names = playable();
      if (names.length) load(names[(names.indexOf(task) + by + names.length) % names.length]);
    };
    body.addEventListener("click", (event) => {
      const button = event.target.closest(".play");
      if (!button) return;
      opener = button;
      dialog.showModal();
      load(button.closest("tr").dataset.task);
    });
    dialog.querySelector(".previous").addEventListener("click", () => step(-1));
    dialog.querySelector(".next").addEventListener("click", () => step(1));
    dialog.querySelector(".close").addEventListener("click", () => dialog.close());
    dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
    dialog.addEventListener("close", () => { release(); if (opener) opener.focus(); });
  }

  // The videos of the domains play while they are in sight.
  if (!still && "IntersectionObserver" in window) {
    const watcher = new IntersectionObserver((entries) => {
      for (const { target, isIntersecting } of entries) isIntersecting ? target.play().catch(() => {}) : target.pause();
    }, { threshold: 0.3 });
    document.querySelectorAll("figure video").forEach((each) => watcher.observe(each));
  }
})();
