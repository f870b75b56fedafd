"use strict";
const all = (selector, root = document) => [...root.querySelectorAll(selector)];

// Theme: that of the system until a reader chooses the other.
const theme = document.querySelector("#theme");
const dark = matchMedia("(prefers-color-scheme: dark)");
function isDark() {
  const chosen = document.documentElement.dataset.theme;
  return chosen ? chosen === "dark" : dark.matches;
}
function nameTheme() {
  theme.textContent = isDark() ? "Light" : "Dark";
  theme.setAttribute("aria-label", `show the page ${isDark() ? "light" : "dark"}`);
}
theme.addEventListener("click", () => {
  document.documentElement.dataset.theme = isDark() ? "light" : "dark";
  nameTheme();
});
dark.addEventListener("change", nameTheme);
nameTheme();

// Clips: one frame number and one timer for all walls, so that all of the page is in step.
const RATE = 8; // frames a second at speed 1
const walls = all(".wall");
const player = { frame: 0, playing: false, speed: 1, last: 0 };
const frames = Math.max(1, ...walls.map((wall) => Number(wall.dataset.frames)));
const pictures = new Map(all(".sprite").map((image) => [image.id, image]));
const screens = all(".wall canvas").map((canvas) => {
  const { sprite, top, frames, columns } = canvas.dataset;
  return { canvas, context: canvas.getContext("2d"), image: pictures.get(sprite), top: +top, frames: +frames, columns: +columns };
});
const near = new Set();
const watcher = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    if (entry.isIntersecting) near.add(entry.target);
    else near.delete(entry.target);
  }
  draw();
}, { rootMargin: "200px" });

function draw() {
  for (const { canvas, context, image, top, frames, columns } of screens) {
    if (!near.has(canvas) || !image.complete || !image.naturalWidth) continue;
    const { width, height } = canvas;
    const shown = Math.min(player.frame, frames - 1);
    const x = (shown % columns) * width;
    context.drawImage(image, x, top + Math.floor(shown / columns) * height, width, height, 0, 0, width, height);
  }
  for (const wall of walls) {
    wall.querySelector(".seek").value = player.frame;
    wall.querySelector(".where").textContent = `${player.frame + 1} / ${frames}`;
  }
}
function show(frame) {
  player.frame = ((frame % frames) + frames) % frames;
  draw();
}
function play(playing) {
  player.playing = playing;
  player.last = performance.now();
  for (const button of all(".play")) {
    button.textContent = playing ? "Pause" : "Play";
    button.setAttribute("aria-pressed", String(playing));
  }
  if (playing) requestAnimationFrame(tick);
}
function tick(now) {
  if (!player.playing) return;
  const passed = Math.floor(((now - player.last) / 1000) * RATE * player.speed);
  if (passed > 0) {
    player.last += (passed * 1000) / (RATE * player.speed);
    show(player.frame + passed);
  }
  requestAnimationFrame(tick);
}
function step(by) {
  play(false);
  show(player.frame + by);
}
for (const wall of walls) {
  wall.querySelector(".play").addEventListener("click", () => play(!player.playing));
  for (const button of all(".step", wall)) button.addEventListener("click", () => step(Number(button.dataset.by)));
  wall.querySelector(".seek").max = frames - 1;
  wall.querySelector(".seek").addEventListener("input", (event) => {
    play(false);
    show(Number(event.target.value));
  });
  wall.querySelector(".speed").addEventListener("change", (event) => {
    player.speed = Number(event.target.value);
    player.last = performance.now();
    for (const select of all(".speed")) select.value = event.target.value;
  });
  wall.addEventListener("keydown", (event) => {
    const inBox = event.target.closest(".box") && event.target.scrollWidth <= event.target.clientWidth;
    const byArrow = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (byArrow && (inBox || event.target.matches(".play, .step"))) step(byArrow);
    else if (event.key === " " && event.target.closest(".box")) play(!player.playing);
    else return;
    event.preventDefault();
  });
  new ResizeObserver(() => size(wall)).observe(wall);
}
// Cells are whole multiples of a clip's size where they fit, so that its pixels stay squares.
function size(wall) {
  const canvas = wall.querySelector("canvas");
  const grid = wall.querySelector(".wall-grid");
  const columns = Number(getComputedStyle(grid).getPropertyValue("--columns"));
  const names = wall.querySelector(".line-name").getBoundingClientRect().width;
  const room = (wall.clientWidth - names) / columns - 7;
  const width = canvas.width;
  const most = Math.max(64, Math.min(room, 192));
  grid.style.setProperty("--side", `${width <= most ? width * Math.floor(most / width) : Math.max(most, Math.min(width, 96))}px`);
}
if (walls.length) {
  Promise.allSettled([...pictures.values()].map((image) => image.decode())).then(() => {
    for (const { canvas } of screens) watcher.observe(canvas);
    draw();
    if (!matchMedia("(prefers-reduced-motion: reduce)").matches) play(true);
  });
}

// Switches: of all that a switch is for, what all its choices together name is shown.
for (const choice of all(".switched")) {
  const update = () => {
    const chosen = all("input:checked", choice).map((input) => input.value);
    for (const part of all("[data-when]", choice)) {
      part.hidden = !part.dataset.when.split(" ").every((name) => chosen.includes(name));
    }
  };
  choice.addEventListener("change", update);
  update();
}

// Tables: sorted by a column, what is missing last whichever way.
function sort(table, column, ascending) {
  const body = table.tBodies[0];
  const keyed = [...body.rows].map((row) => {
    const value = row.cells[column].dataset.v;
    return { row, value, number: value === undefined || value === "" ? NaN : Number(value) };
  });
  const numeric = keyed.every(({ value, number }) => value === undefined || !Number.isNaN(number));
  keyed.sort((a, b) => {
    if (a.value === undefined || b.value === undefined) return (a.value === undefined) - (b.value === undefined);
    const order = numeric ? a.number - b.number : a.value.localeCompare(b.value, "en", { numeric: true });
    return ascending ? order : -order;
  });
  body.append(...keyed.map(({ row }) => row));
}
for (const table of all("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    head.querySelector("button").addEventListener("click", () => {
      const ascending = head.getAttribute("aria-sort") !== "ascending";
      for (const other of heads) other.setAttribute("aria-sort", "none");
      head.setAttribute("aria-sort", ascending ? "ascending" : "descending");
      sort(table, column, ascending);
    });
  });
}

// One row among the others: while it is under the pointer or has the focus, or for as long as its button is pressed.
let pinned = null;
const parts = all("main [data-row]");
function single(row) {
  for (const part of parts) part.classList.toggle("dim", row !== null && part.dataset.row !== row);
}
const rowOf = (target) => (target instanceof Element ? target.closest(".point, .series, .legend [data-pin]") : null);
for (const [type, leaves] of [["pointerover", false], ["focusin", false], ["pointerout", true], ["focusout", true]]) {
  document.addEventListener(type, (event) => {
    const found = rowOf(event.target);
    if (found) single(leaves ? pinned : (found.dataset.row ?? found.dataset.pin));
  });
}
for (const button of all(".legend [data-pin]")) {
  button.addEventListener("click", () => {
    pinned = pinned === button.dataset.pin ? null : button.dataset.pin;
    for (const other of all(".legend [data-pin]")) other.setAttribute("aria-pressed", String(other.dataset.pin === pinned));
    single(pinned);
  });
}

// Words about a point.
const tip = document.querySelector("#tip");
function say(target, place) {
  const found = target instanceof Element ? target.closest("[data-tip]") : null;
  tip.hidden = !found;
  if (!found) return;
  tip.textContent = found.dataset.tip;
  const around = found.getBoundingClientRect();
  const x = place ? place.clientX : around.right;
  const y = place ? place.clientY : around.bottom;
  const { width, height } = tip.getBoundingClientRect();
  tip.style.left = `${Math.max(8, Math.min(x + 14, innerWidth - width - 8))}px`;
  tip.style.top = `${y + 14 + height > innerHeight ? Math.max(8, y - height - 10) : y + 14}px`;
}
document.addEventListener("pointerover", (event) => say(event.target, event));
document.addEventListener("focusin", (event) => say(event.target, null));
document.addEventListener("focusout", () => say(null, null));
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") say(null, null);
});
document.addEventListener("scroll", () => say(document.activeElement, null), { passive: true });
