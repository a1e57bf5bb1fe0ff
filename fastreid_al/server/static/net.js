// Requests to the server, and three ways in which they fail.

/** The server or its database does not answer: try again later. */
export class Away extends Error {}
/** The personal link is not valid any more. */
export class Locked extends Error {}
/** The server refuses the request: trying again does not help. */
export class Refused extends Error {}

const PATIENCE = 30000;

async function ask(path, options) {
  const { signal, ...rest } = options;
  const own = new AbortController();
  const stop = () => own.abort();
  const timer = setTimeout(stop, PATIENCE);
  signal?.addEventListener("abort", stop);
  let response;
  let found;
  try {
    response = await fetch(path, { ...rest, signal: own.signal, cache: "no-store" });
    found = await response.json().catch(() => null);
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new Away("the server does not answer");
  } finally {
    clearTimeout(timer);
    signal?.removeEventListener("abort", stop);
  }
  if (signal?.aborted) throw new DOMException("stopped", "AbortError");
  if (response.ok && found !== null) return found;
  const text = found?.error ?? `the server answers with status ${response.status}`;
  if (response.status === 401) throw new Locked(text);
  const later = response.status >= 500 || [408, 425, 429].includes(response.status);
  throw later || response.ok ? new Away(text) : new Refused(text);
}

export const get = (path, signal) => ask(path, { signal });

export const post = (path, body) =>
  ask(path, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
  });

/** Send something while the page is being closed. */
export function send(path, body) {
  navigator.sendBeacon(path, new Blob([JSON.stringify(body)], { type: "application/json" }));
}

/** A name that nobody else chooses. `crypto.randomUUID` exists on https pages only. */
export function token() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

export const imageUrl = (number, image, height) =>
  `/image/${number}?h=${height}&v=${image?.version ?? ""}`;
