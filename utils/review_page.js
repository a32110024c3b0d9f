"use strict";
// Text of the manifest (names, errors) reaches the page through textContent alone.

const DOUBT = 0.5; // boxes of a lower score are drawn as doubtful
const DRAG = 4; // screen pixels from which a press is a drag, not a click
const ZEROS = " 0 0 0 0 0 0"; // WIDER FACE's six attributes of a face

const KINDS = { // in the order of the page
  failed: "No copy",
  faceless: "No face found",
  flagged: "Flagged",
  faces: "Faces",
  corrected: "Corrected before",
};
const FLAGS = {
  empty_box: "a box of size zero was passed over",
  tiny_box: "a box too small to blur was filled with its mean colour",
  flat_box: "a box holds one colour only",
  searched_reduced: "a very large photo: small faces may have been missed",
};

const byId = (id) => document.getElementById(id);
const page = JSON.parse(byId("page").textContent);
const photos = [...document.querySelectorAll("script.photo")].map(readPhoto);
let opened = null; // the photo in the viewer
let savedText = "";

function readPhoto(element, index) {
  const photo = JSON.parse(element.textContent);
  element.remove(); // its text is a picture: once in the memory is enough
  photo.index = index;
  photo.original = photo.boxes.map(([x, y, w, h], at) => (
    { x, y, w, h, score: photo.scores?.[at] ?? null, added: false, removed: false }));
  photo.boxes = photo.original.map((box) => ({ ...box }));
  return photo;
}

function make(tag, className = "", text = "") {
  const element = document.createElement(tag);
  if (className) element.className = className;
  element.textContent = text;
  return element;
}

const counted = (number, noun, plural = `${noun}s`) =>
  `${number.toLocaleString("en")} ${number === 1 ? noun : plural}`;
const editable = (photo) => photo.image !== null && photo.label !== null;
const isChanged = (photo) => photo.boxes.some((box) => box.added || box.removed);
const kept = (photo) => photo.boxes.filter((box) => !box.removed);
const removedOf = (photo) => photo.boxes.filter((box) => box.removed);
const say = (text) => { byId("news").textContent = text; };

// ---- Corrections -----------------------------------------------------------------------------

function toggle(photo, box) {
  if (box.added) {
    photo.boxes.splice(photo.boxes.indexOf(box), 1);
    say("The added box is gone.");
  } else {
    box.removed = !box.removed;
    say(box.removed ? "Box removed: what is under it will be visible." : "Box is back: hidden.");
  }
  refresh(photo);
}

/** Add a box from corner to corner, in pixels of the photo: whole ones, within it. */
function addBox(photo, x1, y1, x2, y2) {
  const x = Math.max(0, Math.floor(x1)), y = Math.max(0, Math.floor(y1));
  const w = Math.min(photo.width, Math.ceil(x2)) - x;
  const h = Math.min(photo.height, Math.ceil(y2)) - y;
  if (w < 2 || h < 2) return null;
  const box = { x, y, w, h, score: null, added: true, removed: false };
  photo.boxes.push(box);
  say("Box added.");
  refresh(photo);
  return box;
}

function revert(photo) {
  photo.boxes = photo.original.map((box) => ({ ...box }));
  refresh(photo);
}

function labelText() {
  const lines = [];
  for (const photo of photos.filter(isChanged)) {
    const rows = kept(photo).map(({ x, y, w, h }) => `${x} ${y} ${w} ${h}${ZEROS}`);
    lines.push(photo.label, rows.length, ...(rows.length ? rows : [`0 0 0 0${ZEROS}`]));
  }
  return lines.map((line) => `${line}\n`).join("");
}

function save() {
  const link = make("a");
  savedText = labelText();
  link.href = URL.createObjectURL(new Blob([savedText], { type: "text/plain" }));
  link.download = page.download;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
  const count = photos.filter(isChanged).length;
  byId("saved-text").textContent =
    `${page.download}, in your browser's folder for downloads, lists ${counted(count, "photo")}.`;
  byId("saved-option").textContent = `--corrections ${page.download}`;
  byId("saved").showModal();
}

// ---- Drawing ---------------------------------------------------------------------------------

function stateOf(box) {
  if (box.removed) return "gone";
  if (box.added) return "new";
  return box.score !== null && box.score < DOUBT ? "doubt" : "";
}

function tagOf(box, isCard) {
  if (box.removed) return isCard ? "will be visible" : "removed: will be visible";
  if (box.added) return "added";
  return box.score === null ? "" : box.score.toFixed(2);
}

function drawBoxes(photo, layer, isCard) {
  layer.replaceChildren(...photo.boxes.map((box, at) => {
    const element = make(isCard ? "div" : "button", `box ${stateOf(box)}`);
    const x1 = Math.max(0, box.x), y1 = Math.max(0, box.y);
    const x2 = Math.min(photo.width, box.x + box.w), y2 = Math.min(photo.height, box.y + box.h);
    element.style.left = `${(100 * x1) / photo.width}%`;
    element.style.top = `${(100 * y1) / photo.height}%`;
    element.style.width = `${(100 * (x2 - x1)) / photo.width}%`;
    element.style.height = `${(100 * (y2 - y1)) / photo.height}%`;
    if (y1 < 0.09 * photo.height) element.classList.add("low");
    if (x1 > 0.7 * photo.width) element.classList.add("right");
    if (x2 - x1 < 0.04 * photo.width) element.classList.add("small");
    const tag = tagOf(box, isCard);
    if (tag) element.append(make("span", "", tag));
    if (!isCard) {
      element.type = "button";
      element.disabled = !editable(photo);
      const what = box.removed ? "removed, will be visible" : box.added ? "added" :
        box.score === null ? "hidden" : `hidden, score ${box.score.toFixed(2)}`;
      const act = box.removed ? "Bring it back" : "Remove it";
      element.setAttribute("aria-label", `Box ${at + 1} of ${photo.boxes.length}: ${what}. ${act}`);
      element.addEventListener("click", () => toggle(photo, box));
      element.addEventListener("keydown", (event) => boxKey(event, photo, box));
    }
    return element;
  }));
}

function notesOf(photo) {
  if (photo.image === null) return photo.error;
  const notes = [];
  if (photo.kind === "corrected") notes.push("boxes as corrected before");
  const scores = photo.original.map((box) => box.score).filter((score) => score !== null);
  notes.push(photo.original.length ? counted(photo.original.length, "box", "boxes") : "no face");
  if (scores.length) notes.push(`lowest score ${Math.min(...scores).toFixed(2)}`);
  notes.push(...photo.flags.map((flag) => FLAGS[flag] ?? flag));
  return notes.join(" · ");
}

function changesOf(list) {
  const added = list.flatMap((photo) => photo.boxes.filter((box) => box.added)).length;
  const removed = list.flatMap(removedOf).length;
  const parts = [];
  if (added) parts.push(`${counted(added, "box", "boxes")} added`);
  if (removed) parts.push(`${counted(removed, "box", "boxes")} removed (will be visible)`);
  return { text: parts.join(", "), removed };
}

/** The picture of a photo with its boxes, and around it the room where a drag may start. */
function makeView(photo, isCard) {
  const well = make("div", "well");
  const frame = make("div", editable(photo) ? "frame" : "frame fixed");
  const ratio = photo.width / photo.height;
  frame.style.aspectRatio = `${photo.width} / ${photo.height}`;
  frame.style.width = `min(100%, calc(var(--tall) * ${ratio}))`;
  const image = make("img");
  image.alt = `Anonymised copy of ${photo.path}`;
  image.decoding = "async";
  image.draggable = false;
  const layer = make("div");
  frame.append(image, layer);
  well.append(frame);
  listen(photo, well, frame, layer, isCard);
  const load = () => { image.src = photo.image; drawBoxes(photo, layer, isCard); };
  return { well, layer, load, draw: () => drawBoxes(photo, layer, isCard) };
}

/** Mouse and touch: a click on a box toggles it, a click beside opens, a drag adds a box. */
function listen(photo, well, frame, layer, isCard) {
  let start = null;
  const at = (event) => {
    const place = frame.getBoundingClientRect();
    return {
      left: event.clientX, top: event.clientY,
      x: ((event.clientX - place.left) / place.width) * photo.width,
      y: ((event.clientY - place.top) / place.height) * photo.height,
      slack: (3 / place.width) * photo.width, // so that a box of few pixels can be hit
    };
  };
  const boxAt = ({ x, y, slack }) => photo.boxes
    .filter((box) => x >= box.x - slack && x <= box.x + box.w + slack &&
      y >= box.y - slack && y <= box.y + box.h + slack)
    .sort((a, b) => a.w * a.h - b.w * b.h)[0]; // the smallest, where several lie there
  const canDraw = (event) => editable(photo) && !(isCard && event.pointerType === "touch");
  const isDrag = (point) =>
    Math.min(Math.abs(point.left - start.left), Math.abs(point.top - start.top)) >= DRAG;

  well.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    start = at(event);
    if (canDraw(event)) well.setPointerCapture(event.pointerId);
  });
  well.addEventListener("pointermove", (event) => {
    const point = at(event);
    frame.querySelector(".band")?.remove();
    if (!canDraw(event)) return;
    const over = start ? undefined : boxAt(point);
    frame.classList.toggle("over-box", over !== undefined);
    [...layer.children].forEach((element, index) =>
      element.classList.toggle("over", photo.boxes[index] === over));
    if (!start || !isDrag(point)) return;
    const band = make("div", "band");
    const place = frame.getBoundingClientRect();
    band.style.left = `${Math.min(start.left, point.left) - place.left}px`;
    band.style.top = `${Math.min(start.top, point.top) - place.top}px`;
    band.style.width = `${Math.abs(start.left - point.left)}px`;
    band.style.height = `${Math.abs(start.top - point.top)}px`;
    frame.append(band);
  });
  well.addEventListener("pointerup", (event) => {
    if (!start) return;
    const point = at(event), from = start;
    const dragged = isDrag(point), touched = canDraw(event) ? boxAt(from) : undefined;
    frame.querySelector(".band")?.remove();
    start = null;
    if (dragged) {
      if (!canDraw(event)) return;
      addBox(photo, Math.min(from.x, point.x), Math.min(from.y, point.y),
        Math.max(from.x, point.x), Math.max(from.y, point.y));
    } else if (Math.hypot(point.left - from.left, point.top - from.top) >= DRAG) {
      return; // a line: neither a click nor a box
    } else if (touched) {
      toggle(photo, touched);
    } else if (isCard) {
      open(photo);
    }
  });
  const cancel = () => { start = null; frame.querySelector(".band")?.remove(); };
  well.addEventListener("pointercancel", cancel);
  well.addEventListener("pointerleave", () =>
    [...layer.children].forEach((element) => element.classList.remove("over")));
}

// ---- Cards -----------------------------------------------------------------------------------

// Pictures and boxes of a card are made when it comes near the window, for there may be thousands.
const watcher = new IntersectionObserver((entries) => {
  for (const entry of entries.filter(({ isIntersecting }) => isIntersecting)) {
    watcher.unobserve(entry.target);
    photos[Number(entry.target.dataset.index)].view.load();
  }
}, { rootMargin: "600px" });

function makeCard(photo) {
  const card = make("li", "card");
  card.dataset.index = photo.index;
  if (photo.image === null) {
    card.append(make("div", "well none", "No copy was written, so there is nothing to show."));
  } else {
    photo.view = makeView(photo, true);
    card.append(photo.view.well);
    watcher.observe(card);
  }
  const text = make("div", "text");
  const name = make("button", "name", photo.path);
  name.type = "button";
  name.title = photo.path;
  name.addEventListener("click", () => open(photo));
  const notes = make("p", "note", notesOf(photo));
  if (photo.flags.length || photo.image === null) notes.classList.add("warn");
  photo.status = make("p", "note", photo.image === null ? "" : photo.fault);
  text.append(name, notes, photo.status);
  card.append(text);
  photo.card = card;
  return card;
}

function refresh(photo) {
  photo.view.draw();
  photo.card.classList.toggle("changed", isChanged(photo));
  const { text, removed } = changesOf([photo]);
  photo.status.textContent = text;
  photo.status.classList.toggle("danger", removed > 0);
  if (opened === photo) drawViewer();
  drawBar();
}

function drawBar() {
  const changed = photos.filter(isChanged);
  const { text, removed } = changesOf(changed);
  const bar = byId("changes");
  bar.textContent = changed.length ? `${counted(changed.length, "photo")} corrected: ${text}.` :
    "No corrections yet.";
  if (removed) {
    const what = removed === 1 ? "What is under the removed box" : "What is under removed boxes";
    bar.append(" ", make("span", "danger", `${what} will be visible in the copy.`));
  }
  byId("save").disabled = byId("revert-all").disabled = changed.length === 0;
}

// ---- Larger view -----------------------------------------------------------------------------

const shown = () => photos.filter((photo) => !photo.card.hidden);

function open(photo) {
  opened = photo;
  if (photo.image === null) {
    byId("stage").replaceChildren(make("p", "empty", "No copy was written: nothing to show."));
  } else {
    photo.large = makeView(photo, false);
    byId("stage").replaceChildren(photo.large.well);
    photo.large.load();
  }
  drawViewer();
  if (!byId("viewer").open) byId("viewer").showModal();
  // A button that was just disabled would swallow the keys.
  if (document.activeElement.disabled !== false) byId("viewer").focus();
}

function drawViewer() {
  const list = shown(), place = list.indexOf(opened);
  if (opened.image !== null) {
    const buttons = () => [...opened.large.layer.children];
    const focus = buttons().indexOf(document.activeElement);
    opened.large.draw();
    buttons()[Math.min(focus, buttons().length - 1)]?.focus();
  }
  const { text, removed } = changesOf([opened]);
  byId("viewer-name").textContent = byId("viewer-name").title = opened.path;
  byId("viewer-place").textContent = `${place + 1} of ${list.length}`;
  const notes = byId("viewer-notes");
  notes.replaceChildren(notesOf(opened));
  if (opened.folder) notes.append(` · the copy lies in ${opened.folder}`);
  if (opened.image !== null && opened.label === null) notes.append(` · ${opened.fault}`);
  if (text) notes.append(" · ", make("b", removed ? "danger" : "", text));
  byId("previous").disabled = place <= 0;
  byId("next").disabled = place >= list.length - 1;
  byId("add").disabled = !editable(opened);
  byId("revert").disabled = !isChanged(opened);
}

function step(by) {
  const list = shown(), next = list[list.indexOf(opened) + by];
  if (next) open(next);
}

/** Add a box in the middle, to be moved by the keyboard or drawn over by the mouse. */
function addMiddle() {
  if (!editable(opened)) return;
  const { width, height } = opened, side = Math.max(2, Math.min(width, height) / 5);
  const x = (width - side) / 2, y = (height - side) / 2;
  if (addBox(opened, x, y, x + side, y + side)) opened.large.layer.lastElementChild.focus();
}

function boxKey(event, photo, box) {
  if (event.key === "Delete" || event.key === "Backspace") {
    if (!box.removed) toggle(photo, box);
    event.preventDefault();
    return;
  }
  const [dx, dy] = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1],
    ArrowDown: [0, 1] }[event.key] ?? [0, 0];
  if (!box.added || !(dx || dy)) return;
  event.preventDefault();
  event.stopPropagation();
  const far = Math.max(1, Math.round(Math.max(photo.width, photo.height) / 100));
  const within = (value, low, high) => Math.min(Math.max(value, low), high);
  if (event.shiftKey) {
    box.w = within(box.w + dx * far, 2, photo.width - box.x);
    box.h = within(box.h + dy * far, 2, photo.height - box.y);
  } else {
    box.x = within(box.x + dx * far, 0, photo.width - box.w);
    box.y = within(box.y + dy * far, 0, photo.height - box.h);
  }
  refresh(photo);
}

// ---- The page --------------------------------------------------------------------------------

function makeFilters() {
  const kinds = Object.keys(KINDS).filter((kind) => photos.some((photo) => photo.kind === kind));
  const tests = [["All", () => true], ...kinds.map((kind) => [KINDS[kind], (p) => p.kind === kind])];
  for (const [name, test] of tests) {
    const label = make("label"), input = make("input");
    input.type = "radio";
    input.name = "filter";
    input.checked = name === "All";
    input.addEventListener("change", () => {
      photos.forEach((photo) => { photo.card.hidden = !test(photo); });
      scrollTo(0, 0);
    });
    const count = make("span", "count", photos.filter(test).length.toLocaleString("en"));
    label.append(input, name, count);
    byId("filters").append(label);
  }
}

function start() {
  byId("extent").textContent = page.extent;
  byId("pages").hidden = page.pages.length < 2;
  for (const [number, file] of page.pages.entries()) {
    const isHere = number + 1 === page.number;
    const link = make(isHere ? "b" : "a", "", `Page ${number + 1}`);
    if (!isHere) link.href = file;
    byId("pages").append(link);
  }
  byId("cards").append(...photos.map(makeCard));
  byId("nothing").hidden = photos.length > 0;
  makeFilters();
  drawBar();

  byId("save").addEventListener("click", save);
  byId("revert-all").addEventListener("click", () => photos.filter(isChanged).forEach(revert));
  byId("revert").addEventListener("click", () => revert(opened));
  byId("add").addEventListener("click", addMiddle);
  byId("previous").addEventListener("click", () => step(-1));
  byId("next").addEventListener("click", () => step(1));
  byId("close").addEventListener("click", () => byId("viewer").close());
  byId("viewer").addEventListener("close", () => {
    const { card } = opened;
    opened = null;
    byId("stage").replaceChildren();
    card.scrollIntoView({ block: "nearest" });
    card.querySelector(".name").focus({ preventScroll: true });
  });
  byId("viewer").addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "ArrowLeft") step(-1);
    else if (event.key === "ArrowRight") step(1);
    else if (event.key.toLowerCase() === "a") addMiddle();
  });
  addEventListener("beforeunload", (event) => {
    if (labelText() !== savedText) event.preventDefault();
  });
}

start();
