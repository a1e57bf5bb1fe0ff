// Answers on their way to the server. They are kept in the browser until the server has written
// them, and sent in order. An answer has a token, so sending it twice writes it once.

import { Away, Locked, post } from "./net.js";
import { keep, load } from "./store.js";

const LONGEST_PAUSE = 10000;

export class Outbox {
  /**
   * @param {string} person Whose answers they are.
   * @param {object} on `sent(item, reply)`, `refused(item, error)`, `changed(error)`.
   */
  constructor(person, on) {
    this.name = `fastreid_al.outbox.${person}`;
    this.on = on;
    this.sending = null;
    this.wake = null;
    this.idle = Promise.resolve();
    this.failed = null;
    // A page that was closed before it could send them.
    if (this.items.length) this.start();
  }

  get items() {
    const found = load(this.name, []);
    return Array.isArray(found) ? found : [];
  }

  add(path, body) {
    keep(this.name, [...this.items, { path, body }]);
    this.on.changed(this.failed);
    this.start();
  }

  /**
   * Take back what was added last, unless it may have arrived already.
   * @param {(token: string) => boolean} isOwn Whether this page added it: the pages of a person
   *     share what waits.
   */
  takeBack(isOwn) {
    const items = this.items;
    const last = items.at(-1);
    const name = last?.body.token;
    if (name === undefined || name === this.sending || !isOwn(name)) return null;
    keep(this.name, items.slice(0, -1));
    this.on.changed(this.failed);
    return last;
  }

  /** Send at once what waits, such as when the network is back. */
  hurry() {
    this.wake?.();
  }

  start() {
    if (this.running) return;
    this.running = true;
    this.idle = this.run().finally(() => {
      this.running = false;
    });
  }

  async run() {
    let pause = 500;
    for (let items = this.items; items.length; items = this.items) {
      const item = items[0];
      try {
        this.sending = item.body.token ?? null;
        const reply = await post(item.path, item.body);
        this.sending = null;
        this.remove(item);
        this.failed = null;
        pause = 500;
        this.on.sent(item, reply);
      } catch (error) {
        if (error instanceof Away || error instanceof Locked) {
          // It may have arrived although the reply was lost: `sending` stays set, so that it is not
          // taken back here.
          this.failed = error;
          this.on.changed(error);
          await new Promise((resolve) => {
            this.wake = resolve;
            setTimeout(resolve, pause);
          });
          pause = Math.min(2 * pause, LONGEST_PAUSE);
          continue;
        }
        this.sending = null;
        this.remove(item);
        this.on.refused(item, error);
      }
      this.on.changed(this.failed);
    }
  }

  remove(item) {
    const same = (other) =>
      other.path === item.path && JSON.stringify(other.body) === JSON.stringify(item.body);
    const items = this.items;
    const place = items.findIndex(same);
    if (place >= 0) keep(this.name, [...items.slice(0, place), ...items.slice(place + 1)]);
  }
}
