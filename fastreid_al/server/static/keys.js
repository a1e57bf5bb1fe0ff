// Which key does what. Keys can be changed or switched off (WCAG 2.1.4), and are kept in the
// browser.

import { keep, load } from "./store.js";

export const ACTIONS = {
  same: ["s", "Same"],
  different: ["d", "Different"],
  unsure: ["u", "Unsure"],
  not_comparable: ["x", "Not comparable"],
  submit: ["Enter", "Submit a sheet"],
  confirm: ["Shift+Enter", "All of these too"],
  skip: ["Space", "Skip"],
  undo: ["z", "Undo"],
  comment: ["c", "Comment"],
  pixels: ["p", "Pixels or smooth"],
  left: ["ArrowLeft", "Keys 1–9 mark images of A"],
  right: ["ArrowRight", "Keys 1–9 mark images of B"],
  help: ["?", "Help"],
  enlarge: ["e", "Enlarge the small images"],
  mark_all: ["a", "Mark all small images of a side"],
  odd: ["m", "Enlarged: does not belong"],
  other: ["o", "Enlarged: shows the other side"],
};
/** Actions of the large view of small images. */
const IN_VIEW = ["odd", "other", "left", "right"];
const NAMES = { ArrowLeft: "←", ArrowRight: "→", Space: "Space" };
const STORED = "fastreid_al.keys";

export const shown = (key) => NAMES[key] ?? (key.length === 1 ? key.toUpperCase() : key);

/** The name of a key: of letters what they write, also where the layout writes other letters. */
export function nameOf(event) {
  let key = event.key === " " ? "Space" : event.key;
  if (key.length === 1 && key.charCodeAt(0) > 127 && /^Key[A-Z]$/.test(event.code)) {
    key = event.code.slice(3);
  }
  if (key.length === 1) return key.toLowerCase();
  return event.shiftKey && key !== "Shift" ? `Shift+${key}` : key;
}

export class Keys {
  /** @param {(action: string, digit?: number) => void} run What is done on a key. */
  constructor(run) {
    this.run = run;
    const stored = load(STORED, {});
    this.on = stored.on !== false;
    this.keys = {};
    for (const [action, [key]] of Object.entries(ACTIONS)) {
      this.keys[action] = typeof stored.keys?.[action] === "string" ? stored.keys[action] : key;
    }
    addEventListener("keydown", (event) => this.onKey(event));
    // A tablet with a keyboard learns of the keys when one is pressed.
    addEventListener("keydown", () => document.body.classList.add("keyboard"), { once: true });
    this.label();
  }

  onKey(event) {
    if (!this.on || event.ctrlKey || event.altKey || event.metaKey || event.isComposing) return;
    const open = document.querySelector("dialog[open]");
    if (open && open.id !== "view-dialog") return;
    const target = event.target instanceof Element ? event.target : document.body;
    if (target.closest("input, textarea, select, [contenteditable]")) return;
    const name = nameOf(event);
    // A button that has the focus keeps the keys that press it.
    if (["Space", "Enter"].includes(name) && target.closest("button, a, summary")) return;
    const digit = /^(?:Digit|Numpad)([1-9])$/.exec(event.code)?.[1];
    const action = Object.keys(this.keys).find((a) => this.keys[a] === name);
    if (!action && !digit) return;
    // In the large view, its keys alone do something.
    if (open && !IN_VIEW.includes(action)) return;
    event.preventDefault();
    // A key that is held down is one answer.
    if (event.repeat) return;
    if (action) this.run(action);
    else this.run(event.shiftKey ? "unsure_digit" : "digit", Number(digit));
  }

  save() {
    keep(STORED, { on: this.on, keys: this.keys });
    this.label();
  }

  /** Write the keys onto the buttons. */
  label() {
    for (const button of document.querySelectorAll("[data-action]")) {
      const key = this.keys[button.dataset.action];
      const place = button.querySelector("kbd");
      if (place) {
        place.textContent = shown(key);
        place.hidden = !this.on;
      }
      // A screen reader says the keys as keys, not as part of the name.
      place?.setAttribute("aria-hidden", "true");
      if (this.on) {
        button.setAttribute("aria-keyshortcuts", key.length === 1 ? key.toUpperCase() : key);
      } else {
        button.removeAttribute("aria-keyshortcuts");
      }
    }
  }

  fillHelp(body) {
    const rows = Object.entries(ACTIONS).map(([action, [, words]]) => [shown(this.keys[action]), words]);
    rows.push(["1–9", "Mark a small image; in a sheet: the same"]);
    rows.push(["Shift+1–9", "A small image shows the other side; in a sheet: unsure"]);
    body.replaceChildren(
      ...rows.map(([key, words]) => {
        const row = document.createElement("tr");
        const name = document.createElement("th");
        name.scope = "row";
        const kbd = document.createElement("kbd");
        kbd.textContent = key;
        name.append(kbd);
        const meaning = document.createElement("td");
        meaning.textContent = words;
        row.append(name, meaning);
        return row;
      }),
    );
  }

  /** Let the keys be changed in a dialog. */
  openDialog(dialog) {
    const on = dialog.querySelector("#keys-on");
    on.checked = this.on;
    on.onchange = () => {
      this.on = on.checked;
      this.save();
    };
    dialog.querySelector("#keys-reset").onclick = () => {
      for (const [action, [key]] of Object.entries(ACTIONS)) this.keys[action] = key;
      this.save();
      this.fillTable(dialog);
    };
    this.fillTable(dialog);
    dialog.showModal();
  }

  fillTable(dialog) {
    const said = dialog.querySelector("#keys-said");
    said.textContent = "";
    const rows = Object.entries(ACTIONS).map(([action, [, words]]) => {
      const row = document.createElement("tr");
      const name = document.createElement("th");
      name.scope = "row";
      name.textContent = words;
      const cell = document.createElement("td");
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = shown(this.keys[action]);
      button.setAttribute("aria-label", `Change the key of ${words}, now ${shown(this.keys[action])}`);
      button.addEventListener("click", () => {
        said.textContent = `Press the new key for: ${words}. Escape keeps the old one.`;
        const listen = (event) => {
          const key = nameOf(event);
          if (["Shift", "Control", "Alt", "Meta"].includes(key)) return;
          event.preventDefault();
          event.stopPropagation();
          removeEventListener("keydown", listen, true);
          const taken = Object.keys(this.keys).find((a) => this.keys[a] === key && a !== action);
          if (key === "Escape" || key === "Tab") said.textContent = "";
          else if (/^[1-9]$/.test(key)) said.textContent = "The keys 1 to 9 mark images.";
          else if (taken) said.textContent = `This key is that of: ${ACTIONS[taken][1]}.`;
          else {
            this.keys[action] = key;
            this.save();
            this.fillTable(dialog);
            dialog.querySelectorAll("tbody button")[Object.keys(ACTIONS).indexOf(action)].focus();
          }
        };
        addEventListener("keydown", listen, true);
      });
      cell.append(button);
      row.append(name, cell);
      return row;
    });
    dialog.querySelector("#keys-table").replaceChildren(...rows);
  }
}
