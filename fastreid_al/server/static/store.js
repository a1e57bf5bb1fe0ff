// What the browser keeps for this page. Without storage, as in some private windows, it is kept
// until the page is closed.

const memory = new Map();

export function load(name, otherwise) {
  let text = memory.get(name);
  try {
    text = localStorage.getItem(name) ?? text;
  } catch {
    // There is no storage.
  }
  try {
    return text === undefined || text === null ? otherwise : JSON.parse(text);
  } catch {
    return otherwise;
  }
}

export function keep(name, value) {
  const text = JSON.stringify(value);
  memory.set(name, text);
  try {
    localStorage.setItem(name, text);
  } catch {
    // There is no storage, or it is full.
  }
}
