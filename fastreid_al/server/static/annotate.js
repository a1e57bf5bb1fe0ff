// The page that asks: one task at a time, the next one loaded beforehand.

import { ActiveClock } from "./clock.js";
import { Keys } from "./keys.js";
import { Away, Locked, get, imageUrl, post, send, token } from "./net.js";
import { Outbox } from "./outbox.js";
import { keep, load } from "./store.js";
import { Zoom } from "./zoom.js";

const { noun, person } = document.body.dataset;
const LARGE = 768;
const SMALL = 192;
const PER_PAGE = 9;
/** Small images below a candidate of a sheet, at most: as many of them are visible as fit. */
const MOST_FEW = 8;
const HEARTBEAT = 20000;
/** Tells this page from the one that it was before it was loaded anew. */
const PAGE = token();
const find = (selector) => document.querySelector(selector);
const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

/** The task on the screen, and what was said of it so far. */
let current = null;
/** Whether the last task was a pair or a sheet. */
let lastKind = "pair";
/** Tasks that were loaded beforehand. */
let ahead = [];
/** Tasks whose answers have not arrived, by token: an answer that is taken back shows its task. */
const unsent = new Map();
/** Marks and comments of the last answers, by task: an answer that is taken back shows them. */
const marks = new Map();
const MOST_MARKS = 20;
let looking = null;
let failure = null;
let locked = false;

const clock = new ActiveClock();
const sides = new Map();
for (const element of document.querySelectorAll(".side")) {
  const zoom = new Zoom(element.querySelector(".frame"), element.querySelector(".zoom"));
  sides.set(element.dataset.side, { element, zoom, picture: element.querySelector(".frame img") });
}

const view = document.querySelector("#view-dialog");
const viewZoom = new Zoom(view.querySelector(".frame"), view.querySelector(".zoom"));
/** What the large view shows: numbers, the place among them, and names of the sides. */
let viewed = null;

const outbox = new Outbox(person, {
  sent(item, reply) {
    unsent.delete(item.body.token);
    if (item.path === "/api/answers") {
      say(describe(reply), reply.contradiction.length > 0);
      if (isChange(reply.effect)) renewProspects();
    }
    fill();
  },
  refused(item, error) {
    unsent.delete(item.body.token);
    if (item.path === "/api/answers") say(`The answer was refused: ${error.message}.`, true);
    fill();
  },
  changed(error) {
    failure = error;
    showConnection();
  },
});

// ---- what is on the screen

function showConnection() {
  const waiting = outbox.items.filter((item) => item.path === "/api/answers").length;
  const kept =
    waiting === 0 ? "" : waiting === 1 ? " 1 answer is kept in this browser." : ` ${waiting} answers are kept in this browser.`;
  const place = find("#away");
  if (failure instanceof Locked || locked) {
    place.textContent = `Your personal link is not valid any more: ask for a new one and open it.${kept}`;
  } else if (failure) {
    const later = waiting ? ` ${waiting === 1 ? "It is" : "They are"} sent when it is back.` : "";
    place.textContent = `Not connected: ${failure.message}.${kept}${later}`;
  }
  place.hidden = !(failure || locked);
}

function say(text, important = false) {
  const place = find("#said");
  place.replaceChildren(text);
  place.classList.toggle("important", important);
  if (important && text.includes("contradicts")) {
    const link = document.createElement("a");
    link.href = "/contradictions";
    link.textContent = "Look at it";
    place.append(" ", link);
  }
}

const count = (number, word) => `${number.toLocaleString("en")} ${word}${number === 1 ? "" : "s"}`;

/** What an answer changed. */
function describe(reply) {
  const parts = [];
  if (reply.status === "late") parts.push("Kept as a second opinion: the question was closed meanwhile.");
  const effect = reply.effect;
  if (effect) {
    const [a, b] = effect.joined;
    // With marks, several groups were joined: then their pairs alone are said.
    if (a * b > 1 && a * b === effect.pairs) parts.push(`Joined ${a} + ${count(b, "answered image")}: ${count(effect.pairs, "pair")} the same.`);
    else if (effect.pairs) parts.push(`${count(effect.pairs, "pair")} known to be the same.`);
    if (effect.lost) parts.push(`People disagree: ${count(effect.lost, "pair")} not known any more.`);
    if (effect.effect === "pending") parts.push("Recorded: it counts when another answer agrees.");
    if (effect.apart) parts.push(`${count(effect.apart, "pair")} known to be different.`);
    if (effect.cuts) parts.push(`${count(effect.cuts, "earlier answer")} set aside.`);
  }
  if (reply.contradiction.length) {
    const events = reply.contradiction.slice(0, 5).join(", ");
    parts.push(`This contradicts ${reply.contradiction.length === 1 ? "answer" : "answers"} ${events}.`);
  }
  if (!parts.length) parts.push("Recorded.");
  return parts.join(" ");
}

const isChange = (effect) => Boolean(effect && (effect.pairs || effect.apart || effect.cuts || effect.lost));

/** What an answer would change beyond the two images of the question, in a few words. */
function would(effect) {
  const [a, b] = effect?.joined ?? [0, 0];
  if (effect?.effect === "new" && (a ? a * b : effect.apart) < 2) return "";
  const events = effect?.against ?? [];
  switch (effect?.effect) {
    case "new":
      return a ? `joins ${a} + ${b} answered images` : `separates ${effect.apart} pairs`;
    case "pending":
      return "counts with another answer";
    case "known":
      return "is known already";
    case "contradiction":
      return `contradicts ${events.length === 1 ? "answer" : "answers"} ${events.slice(0, 2).join(", ")}`;
    default:
      return "";
  }
}

function showProspects() {
  const pair = current && !current.sheet ? current.items[0].prospects : null;
  for (const name of ["same", "different"]) find(`#would-${name}`).textContent = would(pair?.[name]);
  if (current?.sheet) for (const item of current.items) showProspect(item);
}

/** What the chosen answer about a candidate of a sheet would change. */
function showProspect(item) {
  const place = document.querySelector(`.candidate[data-question="${item.question}"] .would`);
  if (place) place.textContent = would(item.prospects?.[current.verdicts?.get(item.question)]);
}

/** The tasks that were loaded before an answer do not know what it changed. */
async function renewProspects() {
  for (const task of [current, ...ahead]) {
    for (const item of task?.items ?? []) {
      try {
        item.prospects = await get(`/api/prospects?question=${item.question}`);
      } catch {
        // The next request that matters says so.
      }
      if (task === current) showProspects();
    }
  }
}

function show(task) {
  if (task !== current && view.open) view.close();
  current = task;
  find("#waiting").hidden = task !== null;
  find("#pair").hidden = task === null || task.sheet;
  find("#sheet").hidden = task === null || !task.sheet;
  document.body.dataset.kind = task === null ? "none" : task.sheet ? "sheet" : "pair";
  // Between two questions the buttons of the last one stay, so that nothing jumps.
  if (task !== null) lastKind = document.body.dataset.kind;
  for (const button of document.querySelectorAll(".verdicts button, .more button[data-only]")) {
    const only = button.dataset.only;
    button.hidden = Boolean(only) && only !== lastKind;
    button.disabled = task === null;
  }
  showProspects();
  if (task === null) {
    find("#count").textContent = "";
    showNotes();
    return;
  }
  task.odd ??= new Set();
  task.other ??= new Set();
  task.seen ??= new Set();
  task.confirmed ??= false;
  task.pages ??= {};
  task.digits ??= "left";
  task.tags ??= [];
  task.comment ??= "";
  task.looked ??= new Set();
  task.loading = new Set();
  task.broken = new Set();
  if (task.sheet) {
    task.verdicts ??= new Map(task.items.map((item) => [item.question, "different"]));
    task.sheetPage ??= 0;
    showSide("sheet", task.left);
    showCandidates();
  } else {
    showSide("left", task.left);
    showSide("right", task.items[0]);
  }
  const { number, total } = task;
  const details = [];
  const pairs = task.sheet ? 1 : task.items[0].pairs;
  if (pairs > 1) details.push(`the answer is about ${count(pairs, "pair")} of images`);
  if (typeof task.similarity === "number") details.push(`similarity ${task.similarity.toFixed(3)}`);
  if (typeof task.probability === "number") details.push(`probability ${task.probability.toFixed(2)}`);
  if (task.reason) details.push(task.reason);
  // The total is of questions, of which a sheet has several.
  const which = task.sheet ? `Sheet with ${count(task.items.length, "question")}` : `Question ${number} of ${total}`;
  find("#count").textContent = [which, ...details].join(" · ");
  find("#title").textContent = task.sheet ? `Which are the same ${noun}?` : `Same ${noun}?`;
  showNotes();
  clock.restart();
}

/** Remember when a picture is on the screen: nobody answers without having seen it. */
function watch(picture, name) {
  const task = current;
  const done = (broken) => {
    task.loading.delete(name);
    if (broken) task.broken.add(name);
    picture.classList.toggle("broken", broken);
  };
  if (picture.complete) {
    done(picture.naturalWidth === 0);
    return;
  }
  task.loading.add(name);
  picture.onload = () => done(false);
  picture.onerror = () => done(true);
}

function setPicture(picture, number, height, text) {
  picture.onload = null;
  picture.onerror = null;
  picture.classList.remove("broken");
  const url = imageUrl(number, current.images[number], height);
  if (picture.getAttribute("src") !== url) picture.src = url;
  picture.alt = text;
}

const caption = (number) => current.images[number]?.caption ?? "";

function showSide(name, side) {
  const { element, zoom, picture } = sides.get(name);
  zoom.reset();
  const letter = { left: "A", right: "B", sheet: "the image to compare with" }[name];
  setPicture(picture, side.image, LARGE, `Large image of ${letter}. ${caption(side.image)}`.trim());
  watch(picture, name);
  element.querySelector(".caption").textContent = caption(side.image);
  element.querySelector(".members-count").textContent = side.members.length
    ? `${count(side.members.length, "more image")} of the same group`
    : "No other images of this group";
  showMembers(name);
}

const sideOf = (name) => (name === "right" ? current.items[0] : current.left);

function showMembers(name) {
  const { element } = sides.get(name);
  const { members } = sideOf(name);
  const pages = Math.max(1, Math.ceil(members.length / PER_PAGE));
  const page = Math.min(current.pages[name] ?? 0, pages - 1);
  current.pages[name] = page;
  const visible = members.slice(page * PER_PAGE, (page + 1) * PER_PAGE);
  const digits = !current.sheet && current.digits === name;
  const list = element.querySelector(".thumbs");
  list.classList.toggle("active", digits);
  list.replaceChildren(
    ...visible.map((number, place) => {
      current.seen.add(number);
      const whole = page * PER_PAGE + place;
      const item = document.createElement("li");
      const button = document.createElement("button");
      button.type = "button";
      button.className = "thumb";
      button.dataset.image = number;
      const picture = document.createElement("img");
      picture.decoding = "async";
      const mark = document.createElement("span");
      mark.className = "mark";
      const key = document.createElement("span");
      key.className = "key";
      key.setAttribute("aria-hidden", "true");
      key.textContent = place + 1;
      button.append(picture, mark, key);
      const under = document.createElement("span");
      under.className = "thumb-caption";
      under.textContent = caption(number);
      item.append(button, under);
      setPicture(picture, number, SMALL, "");
      picture.onerror = () => picture.classList.add("broken");
      button.addEventListener("click", (event) => {
        // A finger hits small images that it did not mean: it opens them, and marks them there.
        if (event.pointerType === "touch") openView(name, members, whole);
        else judge(name, number, "odd");
      });
      // Its two clicks mark the image, and take the mark back.
      button.addEventListener("dblclick", () => openView(name, members, whole));
      return item;
    }),
  );
  const pager = element.querySelector(".pager");
  pager.hidden = pages === 1;
  pager.querySelector(".page").textContent = `${page + 1} of ${pages}`;
  for (const other of element.querySelectorAll(".enlarge, .mark-all")) other.hidden = !members.length;
  const choose = element.querySelector(".digits");
  if (choose) {
    choose.hidden = !members.length || !keys.on;
    choose.setAttribute("aria-pressed", String(digits));
  }
  showMarks(name);
}

function showMarks(name) {
  const { element } = sides.get(name);
  const letter = { left: "A", right: "B", sheet: "the large one" }[name];
  for (const button of element.querySelectorAll(".thumb")) {
    const number = Number(button.dataset.image);
    const other = current.other.has(number);
    const odd = current.odd.has(number) || other;
    button.setAttribute("aria-pressed", String(odd));
    const about = [`Image of the group of ${letter}`, caption(number)].filter(Boolean).join(", ");
    button.setAttribute("aria-label", `${about}: ${other ? `shows ${LETTERS[OPPOSITE[name]]}` : "does not belong"}`);
    button.classList.toggle("odd", odd);
    button.classList.toggle("other", other);
    button.classList.toggle("confirmed", current.confirmed && !odd);
    button.querySelector(".mark").textContent = other ? `= ${LETTERS[OPPOSITE[name]]}` : odd ? "✕" : current.confirmed ? "✓" : "";
  }
  const seen = seenOf(name);
  const all = seen.length > 0 && seen.every((number) => current.odd.has(number));
  element.querySelector(".mark-all").setAttribute("aria-pressed", String(all));
  const confirm = find('[data-action="confirm"]');
  confirm.setAttribute("aria-pressed", String(current.confirmed));
}

function showNotes() {
  const parts = [];
  if (current?.odd.size) parts.push(`${count(current.odd.size, "image")} marked as not belonging`);
  if (current?.other.size) parts.push(`${count(current.other.size, "image")} marked as that of the other side`);
  if (current?.confirmed) parts.push("all others that you saw belong");
  if (current?.tags.length) parts.push(current.tags.join(", "));
  if (current?.comment) parts.push(`comment: ${current.comment}`);
  find("#noted").textContent = parts.join(" · ");
}

const LETTERS = { left: "A", right: "B" };
const OPPOSITE = { left: "right", right: "left" };

/** The small images of a side that were on the screen. */
const seenOf = (name) => sideOf(name).members.filter((number) => current.seen.has(number));

/** Mark a small image as not belonging ("odd") or as that of the other side ("other"), or take the mark back. */
function judge(name, number, how) {
  const marked = current[how].has(number);
  current.odd.delete(number);
  current.other.delete(number);
  if (!marked) current[how].add(number);
  if (sides.has(name)) showMarks(name);
  showNotes();
}

function markAll(name) {
  const numbers = seenOf(name);
  const marked = numbers.every((number) => current.odd.has(number));
  for (const number of numbers) {
    current.other.delete(number);
    if (marked) current.odd.delete(number);
    else current.odd.add(number);
  }
  showMarks(name);
  showNotes();
}

// ---- the large view of small images

/**
 * Show small images large, one after the other.
 * @param {string} name Their side: "left", "right", "sheet", or "candidate N".
 * @param {number[]} numbers The images.
 * @param {number} place The first one to show.
 */
function openView(name, numbers, place = 0) {
  if (!current || !numbers.length) return;
  viewed = { name, numbers, place };
  showViewed();
  if (!view.open) view.showModal();
  viewZoom.reset();
}

function showViewed() {
  const { name, numbers, place } = viewed;
  const number = numbers[place];
  current.seen.add(number);
  const whose = LETTERS[name] ?? (name === "sheet" ? "the large image" : name);
  find("#view-title").textContent = `Image ${place + 1} of ${numbers.length} of the group of ${whose}`;
  setPicture(view.querySelector(".frame img"), number, LARGE, `Image ${place + 1} of the group of ${whose}`);
  view.querySelector("img").onerror = (event) => event.target.classList.add("broken");
  view.querySelector(".caption").textContent = caption(number);
  view.querySelector('[data-step="-1"]').disabled = place === 0;
  view.querySelector('[data-step="1"]').disabled = place === numbers.length - 1;
  const words = { odd: `Not ${LETTERS[name] ?? `this ${noun}`}`, other: `Shows ${LETTERS[OPPOSITE[name]]}` };
  for (const button of view.querySelectorAll("[data-mark]")) {
    const how = button.dataset.mark;
    button.hidden = how === "other" && !OPPOSITE[name];
    button.setAttribute("aria-pressed", String(current[how].has(number)));
    button.querySelector("span").textContent = words[how];
  }
  viewZoom.reset();
  // The neighbours are there when they are asked for.
  viewed.near = [numbers[place - 1], numbers[place + 1]].filter((other) => other !== undefined).map((other) => {
    const picture = new Image();
    picture.src = imageUrl(other, current.images[other], LARGE);
    return picture;
  });
}

function step(by) {
  if (!view.open) return;
  const place = viewed.place + by;
  if (place < 0 || place >= viewed.numbers.length) return;
  viewed.place = place;
  showViewed();
}

function markViewed(how) {
  if (!view.open || (how === "other" && !OPPOSITE[viewed.name])) return;
  judge(viewed.name, viewed.numbers[viewed.place], how);
  showViewed();
}

for (const button of view.querySelectorAll("[data-step]")) {
  button.addEventListener("click", () => step(Number(button.dataset.step)));
}
view.addEventListener("close", () => {
  const closed = viewed;
  viewed = null;
  if (!closed || !current || !sides.has(closed.name)) return;
  // The page of the image that was shown last.
  current.pages[closed.name] = Math.floor(closed.place / PER_PAGE);
  showMembers(closed.name);
});

// ---- sheets

/** Notes which candidates were on the screen, at least half of each. */
const sight = new IntersectionObserver(
  (entries) => {
    for (const { target, isIntersecting } of entries) {
      const question = Number(target.closest(".candidate")?.dataset.question);
      if (isIntersecting && current?.verdicts?.has(question)) current.looked.add(question);
    }
  },
  { threshold: 0.5 },
);

const sheetPages = () => Math.max(1, Math.ceil(current.items.length / PER_PAGE));

function showCandidates() {
  const page = current.sheetPage;
  const visible = current.items.slice(page * PER_PAGE, (page + 1) * PER_PAGE);
  sight.disconnect();
  find("#candidates").replaceChildren(
    ...visible.map((item, place) => {
      current.seen.add(item.image);
      const box = document.createElement("li");
      box.className = "candidate";
      box.dataset.question = item.question;
      const button = document.createElement("button");
      button.type = "button";
      button.className = "choice";
      const picture = document.createElement("img");
      picture.decoding = "sync";
      const mark = document.createElement("span");
      mark.className = "mark";
      const key = document.createElement("span");
      key.className = "key";
      key.setAttribute("aria-hidden", "true");
      key.textContent = place + 1;
      button.append(picture, key, mark);
      button.addEventListener("click", () => choose(item, "same"));
      const unsure = document.createElement("button");
      unsure.type = "button";
      unsure.className = "unsure";
      unsure.textContent = "Unsure";
      unsure.addEventListener("click", () => choose(item, "unsure"));
      const under = document.createElement("p");
      under.className = "caption";
      under.textContent = [caption(item.image), item.members.length ? count(1 + item.members.length, "image") : ""]
        .filter(Boolean)
        .join(" · ");
      const prospect = document.createElement("span");
      prospect.className = "would";
      const few = document.createElement(item.members.length ? "button" : "div");
      few.className = "few";
      if (item.members.length) {
        const name = `candidate ${page * PER_PAGE + place + 1}`;
        few.type = "button";
        few.setAttribute("aria-label", `Enlarge the images of the group of ${name}`);
        few.addEventListener("click", () => openView(name, item.members));
      }
      for (const number of item.members.slice(0, MOST_FEW)) {
        const small = document.createElement("img");
        setPicture(small, number, SMALL, "");
        few.append(small);
      }
      const words = document.createElement("div");
      words.append(under, prospect);
      const line = document.createElement("div");
      line.className = "line";
      line.append(words, unsure);
      box.append(button, few, line);
      sight.observe(button);
      setPicture(picture, item.image, LARGE / 2, "");
      watch(picture, `candidate ${item.question}`);
      return box;
    }),
  );
  const pager = find("#sheet-pager");
  pager.hidden = sheetPages() === 1;
  pager.querySelector(".page").textContent = `${page + 1} of ${sheetPages()}`;
  showChoices();
}

const CHOICES = { same: ["same", "✓ same"], unsure: ["unsure", "? unsure"], different: ["different", "different"] };

function showChoices() {
  for (const box of document.querySelectorAll(".candidate")) {
    const question = Number(box.dataset.question);
    const place = current.items.findIndex((item) => item.question === question);
    const verdict = current.verdicts.get(question);
    for (const name of Object.keys(CHOICES)) box.classList.toggle(name, name === verdict);
    box.querySelector(".mark").textContent = CHOICES[verdict][1];
    const choice = box.querySelector(".choice");
    choice.setAttribute("aria-pressed", String(verdict === "same"));
    const about = [`Candidate ${place + 1}`, caption(current.items[place].image)].filter(Boolean);
    choice.setAttribute("aria-label", `${about.join(", ")}: same`);
    const unsure = box.querySelector(".unsure");
    unsure.setAttribute("aria-pressed", String(verdict === "unsure"));
    unsure.setAttribute("aria-label", `${about.join(", ")}: unsure`);
    showProspect(current.items[place]);
  }
  const all = [...current.verdicts.values()];
  const same = all.filter((verdict) => verdict === "same").length;
  const unsure = all.filter((verdict) => verdict === "unsure").length;
  const words = [`${same} same`, `${all.length - same - unsure} different`];
  if (unsure) words.push(`${unsure} unsure`);
  const more = current.sheetPage < sheetPages() - 1;
  find("#submit").firstChild.textContent = more ? "Next page " : `Submit: ${words.join(", ")} `;
}

function choose(item, verdict) {
  const now = current.verdicts.get(item.question);
  current.verdicts.set(item.question, now === verdict ? "different" : verdict);
  showChoices();
}

function turnSheet(by) {
  current.sheetPage = Math.min(Math.max(current.sheetPage + by, 0), sheetPages() - 1);
  showCandidates();
}

// ---- answers

function isReady() {
  if (!current) return false;
  if (current.loading.size === 0) return true;
  say("Wait until the images are here.");
  return false;
}

function answer(verdicts) {
  const task = current;
  const body = {
    task: task.id,
    token: token(),
    verdicts,
    odd: [...task.odd],
    other_side: [...task.other],
    all_confirmed: task.confirmed,
    comment: task.comment,
    tags: task.tags,
    shown: [...task.seen].slice(0, 1000),
    ...clock.seconds(),
  };
  unsent.set(body.token, task);
  const { odd, other, confirmed, comment, tags, verdicts: choices } = task;
  marks.delete(task.id);
  marks.set(task.id, { odd, other, confirmed, comment, tags, ...(task.sheet && { verdicts: choices }) });
  if (marks.size > MOST_MARKS) marks.delete(marks.keys().next().value);
  say("");
  advance();
  outbox.add("/api/answers", body);
}

function verdict(name) {
  if (!current || current.sheet || !isReady()) return;
  if (name === "same" && current.other.size) {
    say("You marked an image as that of the other side: answer Different, or take the mark back.", true);
    return;
  }
  answer({ [current.items[0].question]: name });
}

function submit() {
  if (!current?.sheet || !isReady()) return;
  // On a small screen they may be below: nobody says "different" of what they did not see.
  const here = [...document.querySelectorAll(".candidate")];
  const unseen = here.filter((box) => !current.looked.has(Number(box.dataset.question)));
  if (unseen.length) {
    unseen[0].scrollIntoView({ block: "end" });
    say(`Look at the other ${count(unseen.length, "candidate")} first: then submit.`, true);
    return;
  }
  if (current.sheetPage < sheetPages() - 1) turnSheet(1);
  else answer(Object.fromEntries(current.verdicts));
}

function skip() {
  if (!current) return;
  const task = current;
  say("Skipped: it comes back after the other open questions.");
  advance();
  outbox.add("/api/skip", { task: task.id });
}

function advance() {
  stopLooking();
  show(ahead.shift() ?? null);
  find("#main").scrollTop = 0;
}

async function undo() {
  const taken = outbox.takeBack((name) => unsent.has(name));
  if (taken) {
    const task = unsent.get(taken.body.token);
    unsent.delete(taken.body.token);
    bringBack(task);
    say("Your last answer was taken back before it was sent.");
    return;
  }
  stopLooking();
  if (outbox.items.length && failure) {
    say("The last answer is on its way: it can be taken back when the server answers again.");
    return;
  }
  await outbox.idle;
  try {
    const reply = await post("/api/undo", { page: PAGE });
    if (reply.task) {
      bringBack(Object.assign(reply.task, marks.get(reply.task.id)));
      say("Your last answer was taken back.");
    } else {
      say(reply.undone ? "Your last answer was taken back." : "There is nothing to take back.");
    }
  } catch (error) {
    say(`Nothing was taken back: ${error.message}.`);
  }
  fill();
}

function bringBack(task) {
  stopLooking();
  ahead = ahead.filter((other) => other.id !== task.id);
  if (current && current.id !== task.id) ahead.unshift(current);
  show(task);
  fill();
}

// ---- loading

function stopLooking() {
  looking?.abort();
  looking = null;
}

/** Load images before they are shown. They are kept with their task, so that they stay decoded. */
function preload(task) {
  const numbers = [task.left.image, ...task.items.slice(0, PER_PAGE).map((item) => item.image)];
  const load = (number, height) => {
    const picture = new Image();
    picture.src = imageUrl(number, task.images[number], height);
    picture.decode().catch(() => {});
    return picture;
  };
  const groups = task.sheet ? [task.left] : [task.left, task.items[0]];
  task.preloaded = [
    ...numbers.map((number, place) => load(number, task.sheet && place ? LARGE / 2 : LARGE)),
    ...groups.flatMap((side) => side.members.slice(0, PER_PAGE)).map((number) => load(number, SMALL)),
  ];
}

/** Ask for tasks until one is on the screen and one is loaded beforehand. */
async function fill() {
  if (looking || document.hidden) return;
  const own = new AbortController();
  looking = own;
  try {
    while (!own.signal.aborted && (current === null || ahead.length === 0)) {
      // The server counts a task as held until its answer has arrived.
      if (!failure) await outbox.idle;
      const held = (current ? 1 : 0) + ahead.length + outbox.items.length;
      let task = null;
      try {
        ({ task } = await get(`/api/next?ahead=${held}&idle=${clock.unused()}&page=${PAGE}`, own.signal));
        if (own.signal.aborted) return;
        locked = false;
        if (!outbox.items.length) failure = null;
      } catch (error) {
        if (own.signal.aborted) return;
        failure = error;
        locked = error instanceof Locked;
        showConnection();
        await pause(error instanceof Away ? 1500 : 5000);
        continue;
      }
      showConnection();
      const known = [current, ...ahead, ...unsent.values()].some((other) => other?.id === task?.id);
      if (task === null) {
        find("#waiting").textContent = "No question is open. New ones appear here by themselves.";
      } else if (known) {
        await pause(300);
      } else {
        preload(task);
        if (current === null) show(task);
        else ahead.push(task);
      }
    }
  } finally {
    if (looking === own) looking = null;
  }
}

async function heartbeat() {
  const tasks = [current, ...ahead].filter(Boolean).map((task) => task.id);
  if (document.hidden || !tasks.length) return;
  try {
    const { lost } = await post("/api/heartbeat", { tasks, idle: clock.unused() });
    // Somebody else has them, or they were answered or withdrawn.
    ahead = ahead.filter((task) => !lost.includes(task.id));
    if (current && lost.includes(current.id)) {
      say("This question is not open any more: here is the next one.");
      advance();
    }
    fill();
  } catch {
    // The next request that matters says so.
  }
}

// ---- progress

let stream = null;

function follow() {
  stream?.close();
  stream = null;
  // A browser opens six connections to a server: hidden pages must not hold them.
  if (document.hidden) return;
  stream = new EventSource("/api/progress");
  stream.onmessage = (event) => showProgress(JSON.parse(event.data));
  const own = stream;
  stream.onerror = () => {
    // The browser connects again by itself, except after an answer that is an error.
    if (own.readyState === EventSource.CLOSED) setTimeout(() => own === stream && follow(), 5000);
  };
}

function duration(seconds) {
  const minutes = Math.round(seconds / 60);
  if (minutes < 1) return "less than a minute";
  if (minutes < 90) return count(minutes, "minute");
  return `${(minutes / 60).toFixed(1)} hours`;
}

function showProgress(found) {
  const total = Math.max(found.total ?? 0, found.answered);
  const bar = find("#bar");
  bar.max = Math.max(total, 1);
  bar.value = Math.min(found.answered, bar.max);
  const parts = [`${found.answered.toLocaleString("en")} of ${total.toLocaleString("en")} answered`];
  if (found.rate) parts.push(`you: ${Math.round(found.rate).toLocaleString("en")} an hour`);
  if (found.eta_seconds !== null) parts.push(`${duration(found.eta_seconds)} left`);
  if (found.review) parts.push(`${found.review} to review`);
  const outlook = found.outlook;
  if (outlook && typeof outlook.changed === "number") {
    const next = outlook.questions ?? 50;
    parts.push(`next ${next}: about ${count(Math.round(outlook.changed), "pair")}`);
  }
  find("#figures").textContent = parts.join(" · ");
  const stop = find("#stop");
  stop.hidden = !found.worth_stopping;
  stop.textContent = "The next questions are expected to change little: this is a good place to stop.";
}

// ---- dialogs and keys

function openComment() {
  if (!current) return;
  const dialog = find("#comment-dialog");
  const task = current;
  find("#comment-text").value = task.comment;
  for (const box of dialog.querySelectorAll("[name=tag]")) box.checked = task.tags.includes(box.value);
  // At each change: the event `close` comes later than a key that is pressed at once.
  dialog.oninput = () => {
    task.comment = find("#comment-text").value.trim();
    task.tags = [...dialog.querySelectorAll("[name=tag]:checked")].map((box) => box.value);
    showNotes();
  };
  dialog.showModal();
}

function openErase() {
  if (!current) return;
  const dialog = find("#erase-dialog");
  const numbers = [current.left.image, ...current.left.members, ...current.items.flatMap((i) => [i.image, ...i.members])];
  const visible = numbers.filter((number) => current.seen.has(number) || numbers[0] === number || current.items.some((i) => i.image === number));
  find("#erase-images").replaceChildren(
    ...[...new Set(visible)].map((number) => {
      const item = document.createElement("li");
      const label = document.createElement("label");
      const box = document.createElement("input");
      box.type = "radio";
      box.name = "erase";
      box.value = number;
      const picture = document.createElement("img");
      setPicture(picture, number, SMALL, `Image ${number}`);
      label.append(box, picture);
      item.append(label);
      return item;
    }),
  );
  // Escape leaves the value that a button set before.
  dialog.returnValue = "";
  dialog.showModal();
  dialog.onclose = async () => {
    const chosen = dialog.querySelector("[name=erase]:checked");
    if (dialog.returnValue !== "erase" || !chosen) return;
    try {
      await post("/api/erase", { image: Number(chosen.value), reason: find("#erase-reason").value });
      say("The image was erased.");
      stopLooking();
      ahead = [];
      show(null);
      fill();
    } catch (error) {
      say(`Nothing was erased: ${error.message}.`, true);
    }
  };
}

let pixels = load("fastreid_al.pixels", false);

function setPixels(on) {
  pixels = on;
  keep("fastreid_al.pixels", on);
  document.body.classList.toggle("pixels", on);
  find('[data-action="pixels"]').setAttribute("aria-pressed", String(on));
}

function chooseSide(name) {
  if (view.open) {
    step(name === "left" ? -1 : 1);
    return;
  }
  if (!current || current.sheet) return;
  current.digits = name;
  showMembers("left");
  showMembers("right");
}

function onDigit(digit, how) {
  if (!current) return;
  if (current.sheet) {
    const item = current.items[current.sheetPage * PER_PAGE + digit - 1];
    if (item) choose(item, how === "odd" ? "same" : "unsure");
    return;
  }
  const name = current.digits;
  const number = sideOf(name).members[current.pages[name] * PER_PAGE + digit - 1];
  if (number !== undefined) judge(name, number, how);
}

const ACTIONS = {
  same: () => verdict("same"),
  different: () => verdict("different"),
  unsure: () => verdict("unsure"),
  not_comparable: () => verdict("not comparable"),
  submit,
  skip,
  undo,
  comment: openComment,
  confirm() {
    if (!current || current.sheet) return;
    current.confirmed = !current.confirmed;
    // On a small screen they may be below: nobody confirms what they did not see.
    if (current.confirmed) find("#pair .thumbs").scrollIntoView({ block: "end" });
    showMarks("left");
    showMarks("right");
    showNotes();
  },
  pixels: () => setPixels(!pixels),
  left: () => chooseSide("left"),
  right: () => chooseSide("right"),
  help() {
    keys.fillHelp(find("#help-keys"));
    find("#help-dialog").showModal();
  },
  enlarge() {
    if (!current) return;
    const name = current.sheet ? "sheet" : current.digits;
    openView(name, sideOf(name).members, (current.pages[name] ?? 0) * PER_PAGE);
  },
  mark_all() {
    if (current && sideOf(current.digits).members.length) markAll(current.sheet ? "sheet" : current.digits);
  },
  odd: () => markViewed("odd"),
  other: () => markViewed("other"),
  digit: (digit) => onDigit(digit, "odd"),
  unsure_digit: (digit) => onDigit(digit, "other"),
};

const keys = new Keys((action, digit) => ACTIONS[action](digit));

for (const button of document.querySelectorAll("[data-action]")) {
  button.addEventListener("click", () => ACTIONS[button.dataset.action]());
}
// After a click, Space and Enter are keys of actions again, not of the button. A click by the
// keyboard has the detail 0. It is caught early: a dialog gives the focus back to where it was.
document.addEventListener(
  "click",
  (event) => {
    if (event.detail > 0 && !event.target.closest("dialog")) event.target.closest("button")?.blur();
  },
  true,
);
for (const [name, { element }] of sides) {
  element.querySelector(".digits")?.addEventListener("click", () => chooseSide(name));
  element.querySelector(".enlarge").addEventListener("click", () => {
    openView(name, sideOf(name).members, (current.pages[name] ?? 0) * PER_PAGE);
  });
  element.querySelector(".mark-all").addEventListener("click", () => markAll(name));
  for (const button of element.querySelectorAll("[data-page]")) {
    button.addEventListener("click", () => {
      const pages = Math.ceil(sideOf(name).members.length / PER_PAGE);
      const page = (current.pages[name] ?? 0) + Number(button.dataset.page);
      current.pages[name] = Math.min(Math.max(page, 0), pages - 1);
      showMembers(name);
    });
  }
}
for (const button of document.querySelectorAll("[data-sheet-page]")) {
  button.addEventListener("click", () => turnSheet(Number(button.dataset.sheetPage)));
}
find("#menu").addEventListener("click", () => {
  const open = document.querySelector("header").classList.toggle("open");
  find("#menu").setAttribute("aria-expanded", String(open));
});
find("#open-keys").addEventListener("click", () => keys.openDialog(find("#keys-dialog")));
find("#open-erase")?.addEventListener("click", openErase);
find("#keys-dialog").addEventListener("close", () => current && !current.sheet && chooseSide(current.digits));

document.addEventListener("visibilitychange", () => {
  follow();
  if (document.hidden) return;
  heartbeat();
  fill();
});
addEventListener("online", () => outbox.hurry());
addEventListener("pagehide", () => {
  stopLooking();
  stream?.close();
  const tasks = [current, ...ahead].filter(Boolean).map((task) => task.id);
  if (tasks.length) send("/api/release", { tasks, page: PAGE });
});
addEventListener("pageshow", (event) => {
  // The page comes from the browser's memory, and its tasks were given back.
  if (event.persisted) location.reload();
});
setInterval(heartbeat, HEARTBEAT);

setPixels(pixels);
show(null);
showConnection();
follow();
fill();
