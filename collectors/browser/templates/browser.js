// Keyboard of all pages, and the cursor through film and plots of an episode. No other script is loaded.
"use strict";
const find = selector => document.querySelector(selector);
const rows = [...document.querySelectorAll(".list tbody tr")].filter(row => row.querySelector("a"));
let current = -1;

function choose(index) {
  if (!rows.length) return;
  rows[current]?.classList.remove("current");
  current = Math.max(0, Math.min(rows.length - 1, index));
  rows[current].classList.add("current");
  const link = rows[current].querySelector("a");
  link.focus({ preventScroll: true });
  rows[current].scrollIntoView({ block: "nearest" });
}

function follow(rel) {
  const link = find(`a[rel=${rel}]`);
  if (link) location.href = link.href;
}

const isTyping = target => target.matches("input, select, textarea");

document.addEventListener("keydown", event => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (isTyping(event.target)) {
    if (event.key === "Escape") { event.target.blur(); event.preventDefault(); }
    return;
  }
  const key = event.key;
  const isList = rows.length > 0;
  const episode = window.episode;
  if (key === "/") { const filter = find("[data-filter]"); if (!filter) return; filter.focus(); filter.select(); }
  else if (key === "Escape") { const up = find("[data-up]"); if (!up) return; location.href = up.dataset.up; }
  else if (key === "j" || (isList && key === "ArrowDown")) { isList ? choose(current + 1) : follow("next"); }
  else if (key === "k" || (isList && key === "ArrowUp")) { isList ? choose(current - 1) : follow("prev"); }
  else if (key === "n") follow("next");
  else if (key === "p") follow("prev");
  else if (episode && key === "ArrowRight") episode.move(event.shiftKey ? 10 : 1);
  else if (episode && key === "ArrowLeft") episode.move(event.shiftKey ? -10 : -1);
  else if (episode && key === "Home") episode.move(-Infinity);
  else if (episode && key === "End") episode.move(Infinity);
  else if (episode && key === " " && !event.target.matches("button, a, video")) episode.toggle();
  else if (episode && key === "f") episode.film();
  else return;
  event.preventDefault();
});
rows.forEach((row, index) => row.addEventListener("focusin", () => { if (index !== current) choose(index); }));

async function ask(address) {
  try {
    const answer = await fetch(address, { method: "POST" });
    const type = answer.headers.get("content-type") ?? "";
    return type.startsWith("application/json") ? await answer.json() : { error: `it failed (${answer.status})` };
  } catch (error) {
    return { error: "the server does not answer" };
  }
}

if (find("#values")) {
  const series = JSON.parse(find("#values").textContent);
  const last = series[0].length - 1;
  const svg = find("#plots svg"), cursor = find("#cursor"), plots = find("#plots"), outputs = document.querySelectorAll("#plots output");
  const video = find("#film video"), button = find("#make-film"), note = find("#film-note");
  let step = 0, pace = null;

  function show(next) {
    step = Math.max(0, Math.min(last, next));
    const x = last ? step / last * svg.viewBox.baseVal.width : 0;
    cursor.setAttribute("x1", x); cursor.setAttribute("x2", x);
    outputs.forEach((output, index) => { output.textContent = series[index][step] ?? "not a number"; });
    find("#step").textContent = `step ${step} of 0 to ${last}`;
    plots.setAttribute("aria-valuenow", step);
  }
  function seek() {
    if (pace && video.paused) video.currentTime = Math.min((Math.floor(step / pace.stride) + .5) / pace.frames_per_s, video.duration || Infinity);
  }
  function move(by) { video.pause(); show(step + by); seek(); }
  function toggle() { if (pace) { video.paused ? video.play() : video.pause(); } else film(); }
  const shownStep = () => Math.floor(video.currentTime * pace.frames_per_s) * pace.stride;
  function tick() {
    if (video.paused || !pace) return;
    show(shownStep());
    requestAnimationFrame(tick);
  }
  async function film(isQuiet) {
    if (pace || button.disabled) { if (pace) toggle(); return; }
    button.disabled = true; note.textContent = "drawing ...";
    const made = await ask(find("#film").dataset.film);
    button.disabled = false; note.textContent = made.error ?? made.note;
    if (made.error) return;
    pace = made; video.src = made.address; video.hidden = false; video.controls = true; button.hidden = true;
    if (!isQuiet && !matchMedia("(prefers-reduced-motion: reduce)").matches) video.play().catch(() => {});
  }
  video.addEventListener("play", tick);
  video.addEventListener("seeked", () => { if (pace && shownStep() !== Math.floor(step / pace.stride) * pace.stride) show(shownStep()); });
  const point = event => { const box = svg.getBoundingClientRect(); video.pause(); show(Math.round((event.clientX - box.left) / box.width * last)); seek(); };
  svg.addEventListener("pointerdown", event => { svg.setPointerCapture(event.pointerId); point(event); });
  svg.addEventListener("pointermove", event => { if (event.buttons) point(event); });
  button.addEventListener("click", () => film());
  window.episode = { move, toggle, film };
  show(0);
  if ("made" in find("#film").dataset) film(true);

  find("#replay")?.addEventListener("click", async event => {
    const verdict = find("#verdict");
    event.target.disabled = true; verdict.className = ""; verdict.textContent = "playing ...";
    const answer = await ask(event.target.dataset.replay);
    event.target.disabled = false;
    verdict.textContent = answer.error ?? answer.text;
    verdict.className = answer.equal ? "good" : "bad";
  });
  find("#copy")?.addEventListener("click", async event => {
    try { await navigator.clipboard.writeText(find("#command").textContent); event.target.textContent = "copied"; }
    catch { getSelection().selectAllChildren(find("#command")); event.target.textContent = "selected; copy it"; }
  });
}

// The films of agent and expert go together: what the first does, the second does, too.
const films = [...document.querySelectorAll("#films video")];
if (films.length) {
  const [first, second] = films;
  const step = by => { films.forEach(film => { film.pause(); film.currentTime = Math.max(0, film.currentTime + by / first.dataset.fps); }); };
  const together = () => { if (second && Math.abs(second.currentTime - first.currentTime) > .1) second.currentTime = Math.min(first.currentTime, second.duration || Infinity); };
  first.addEventListener("play", () => { if (!second) return; together(); if (first.currentTime < second.duration) second.play().catch(() => {}); });
  first.addEventListener("pause", () => { second?.pause(); });
  first.addEventListener("seeked", together);
  window.episode = { move: step, toggle: () => { first.paused ? first.play() : first.pause(); }, film: () => first.play() };
}
