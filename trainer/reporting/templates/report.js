"use strict";
(() => {
  const body = document.getElementById("tasks").tBodies[0];
  const still = matchMedia("(prefers-reduced-motion: reduce)").matches;

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
    document.addEventListener("click", (event) => {
      const button = event.target.closest(".play");
      if (!button) return;
      opener = button;
      dialog.showModal();
      load(button.value);
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
