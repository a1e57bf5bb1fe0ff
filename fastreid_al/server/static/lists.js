// The pages that list: own answers, contradictions, people.

import { get, imageUrl, post } from "./net.js";

const { page, role, person } = document.body.dataset;
const list = document.querySelector("#list");
const said = document.querySelector("#said");

function make(name, about = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(about)) {
    if (key in element) element[key] = value;
    else element.setAttribute(key, value);
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

const when = (seconds) => (seconds === null ? "" : new Date(1000 * seconds).toLocaleString());
const classOf = (verdict) => (["same", "different"].includes(verdict) ? `said-${verdict}` : "said-other");
const signOf = (verdict) => ({ same: "= same", different: "≠ different" })[verdict] ?? `? ${verdict}`;

function picture(number, images, text) {
  const image = images[number];
  const about = [text, image?.caption].filter(Boolean).join(", ");
  return make("img", { src: imageUrl(number, image, 192), alt: about, title: image?.caption ?? "" });
}

/** A link to the answers that decide about two images. */
const whyOf = (a, b) => make("a", { className: "why", href: `/why?a=${a}&b=${b}`, textContent: `Why? (images ${a} and ${b})` });

function button(words, action) {
  const element = make("button", { type: "button", textContent: words });
  element.addEventListener("click", async () => {
    element.disabled = true;
    try {
      said.textContent = await action();
      await show();
    } catch (error) {
      said.textContent = `Nothing was changed: ${error.message}.`;
      element.disabled = false;
    }
  });
  return element;
}

async function takeBack(event) {
  await post("/api/undo", { event });
  return `Answer ${event} was taken back, and its question is asked again.`;
}

async function mine() {
  const { decisions } = await get("/api/mine");
  list.replaceChildren(
    ...decisions.map((decision) => {
      const words = decision.verdicts.map(([, verdict]) => verdict);
      const first = words.length === 1 ? words[0] : null;
      const verdict = first
        ? make("span", { className: classOf(first), textContent: signOf(first) })
        : make("span", {}, `Sheet: ${words.filter((w) => w === "same").length} of ${words.length} same`);
      const details = [
        when(decision.at),
        `${decision.seconds.toFixed(1)} s`,
        decision.odd.length ? `${decision.odd.length} marked as not belonging` : "",
        decision.other_side.length ? `${decision.other_side.length} of them as that of the other side` : "",
        decision.tags.join(", "),
        decision.comment ?? "",
      ];
      return make(
        "article",
        { className: decision.undone ? "decision undone" : "decision" },
        make(
          "div",
          { className: "pictures" },
          picture(decision.left, decision.images, "first image"),
          ...decision.verdicts.slice(0, 9).map(([image]) => picture(image, decision.images, "second image")),
        ),
        make(
          "div",
          { className: "words" },
          make("p", {}, verdict, decision.undone ? " (taken back)" : ""),
          make("p", { className: "small", textContent: details.filter(Boolean).join(" · ") }),
          first ? whyOf(decision.left, decision.verdicts[0][0]) : null,
        ),
        decision.undone ? null : button("Take back", () => takeBack(decision.events[0])),
      );
    }),
  );
  return decisions.length ? "" : "You have not answered anything yet.";
}

/** An answer in a list of answers that belong together. */
function stepOf(step, ...more) {
  const details = [
    step.people.join(", "),
    when(step.at),
    step.epoch === null ? "" : `epoch ${step.epoch}`,
    step.run ?? "",
    `answer ${step.event}`,
    `images ${step.left} and ${step.right}`,
  ];
  return [
    make(
      "div",
      { className: "pictures" },
      picture(step.left, step.images, "first image"),
      picture(step.right, step.images, "second image"),
    ),
    make("p", {}, make("span", { className: classOf(step.verdict), textContent: signOf(step.verdict) }), ...more),
    make("p", { className: "small", textContent: details.filter(Boolean).join(" · ") }),
  ];
}

const why = (verdict, count) => {
  if (verdict === null) return "No answers say whether these images are the same or different.";
  const answers = count === 1 ? "One answer says" : `${count} answers together say`;
  return `${answers} that these images are ${verdict === "same" ? "the same" : "different"}.`;
};

async function proof() {
  const asked = new URLSearchParams(location.search);
  const form = document.querySelector("#ask");
  for (const name of ["a", "b"]) form.elements[name].value = asked.get(name)?.trim() ?? "";
  const [a, b] = ["a", "b"].map((name) => form.elements[name].value);
  if (!a || !b) return "Name two images.";
  const named = (name, value) => [/^\d+$/.test(value) ? name : `path_${name}`, value];
  const found = await get(`/api/proof?${new URLSearchParams([named("a", a), named("b", b)])}`);
  list.replaceChildren(
    make(
      "article",
      { className: "conflict" },
      make("h2", { textContent: `Images ${found.pair.join(" and ")}` }),
      make(
        "div",
        { className: "pictures" },
        picture(found.pair[0], found.images, "first image"),
        picture(found.pair[1], found.images, "second image"),
      ),
      make(
        "ol",
        { className: "steps" },
        ...found.events.map((step) => make("li", { className: "step" }, ...stepOf(step))),
      ),
    ),
  );
  return why(found.verdict, found.events.length);
}

async function contradictions() {
  const found = (await get("/api/contradictions")).contradictions;
  list.replaceChildren(
    ...found.map((conflict, place) => {
      const steps = [...conflict.against, conflict.answer].map((step) => {
        const suspect = conflict.suspects.find((other) => other.event === step.event);
        const may = role === "admin" || step.people.includes(person);
        const aside = conflict.set_aside.includes(step.event);
        return make(
          "li",
          { className: suspect ? "step suspect" : "step" },
          ...stepOf(step, step === conflict.answer ? " (the newest)" : "", aside ? " (set aside)" : ""),
          suspect
            ? make("p", {}, make("b", {}, "Suspect"), `: ${Math.round(100 * suspect.probability)} % likely to be wrong`)
            : null,
          may ? button("Take back and ask again", () => takeBack(step.event)) : null,
        );
      });
      return make(
        "article",
        { className: "conflict" },
        make("h2", { textContent: `Contradiction ${place + 1}` }),
        make("p", {
          className: "small",
          textContent: "Answers of “same” connect two images that another answer calls different: at least one of these is wrong.",
        }),
        whyOf(conflict.answer.left, conflict.answer.right),
        make("ul", { className: "steps" }, ...steps),
      );
    }),
  );
  if (!found.length) return "No answers contradict each other.";
  return `${found.length} ${found.length === 1 ? "contradiction" : "contradictions"}.`;
}

const share = (value) => (value === null ? "" : `${(100 * value).toFixed(1)} %`);

async function people() {
  const found = (await get("/api/people")).people;
  const columns = {
    Name: (p) => p.name + (p.disabled ? " (disabled)" : ""),
    Role: (p) => p.role,
    Decisions: (p) => p.gestures.toLocaleString("en"),
    "Active minutes": (p) => (p.seconds / 60).toFixed(0),
    "An hour": (p) => (p.rate === null ? "" : p.rate.toFixed(0)),
    "Known answers right": (p) => (p.gold_asked ? `${p.gold_right} of ${p.gold_asked}` : ""),
    "Agreement with others": (p) => share(p.agreement),
    "Estimated error": (p) => share(p.estimated_error),
    "More than 10 % wrong": (p) => share(p.often_wrong) + (p.errs_often ? " (look at this)" : ""),
    "Last seen": (p) => when(p.seen_at),
  };
  const row = (figures) =>
    make(
      "tr",
      {},
      ...Object.entries(columns).map(([name, value]) =>
        name === "Name"
          ? make("th", { scope: "row", textContent: value(figures) })
          : make("td", { textContent: value(figures) }),
      ),
    );
  const names = Object.keys(columns).map((name) => make("th", { scope: "col", textContent: name }));
  const table = make(
    "table",
    {},
    make("caption", { textContent: role === "admin" ? "All people" : "Your figures" }),
    make("thead", {}, make("tr", {}, ...names)),
    make("tbody", {}, ...found.map(row)),
  );
  list.replaceChildren(make("div", { className: "scroll", tabIndex: 0, role: "region", "aria-label": "Figures" }, table));
  return found.length ? "" : "Nobody has answered yet.";
}

async function show() {
  const text = await { mine, contradictions, people, why: proof }[page]();
  if (text || said.textContent === "Loading…") said.textContent = text;
}

show().catch((error) => {
  said.textContent = `This cannot be shown: ${error.message}.`;
});
