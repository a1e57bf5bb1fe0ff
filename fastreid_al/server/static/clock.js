// Seconds in which somebody looked at a question. While the page is hidden, and from 20 seconds
// after the last input on, nobody does.

const IDLE_AFTER = 20000;

export class ActiveClock {
  constructor() {
    this.lastInput = performance.now();
    // Opening the page is an act too.
    this.lastAct = this.lastInput;
    for (const name of ["pointerdown", "pointermove", "keydown", "wheel"]) {
      addEventListener(name, () => (this.lastAct = performance.now()), { passive: true, capture: true });
    }
    this.restart();
    for (const name of ["pointerdown", "pointermove", "keydown", "wheel", "scroll", "touchstart"]) {
      addEventListener(name, () => this.input(), { passive: true, capture: true });
    }
    document.addEventListener("visibilitychange", () => this.count(!document.hidden));
  }

  /** Begin with a new question. */
  restart() {
    this.active = 0;
    this.idle = 0;
    this.since = performance.now();
    // Whoever has just answered looks at the next question.
    this.lastInput = this.since;
  }

  /** Whole seconds since somebody used the page. */
  unused() {
    return Math.max(0, Math.floor((performance.now() - this.lastAct) / 1000));
  }

  input() {
    this.count(document.hidden);
    this.lastInput = performance.now();
  }

  /** Add the time since the last call. */
  count(hidden = document.hidden) {
    const now = performance.now();
    const span = now - this.since;
    const looked = hidden ? 0 : Math.min(Math.max(this.lastInput + IDLE_AFTER - this.since, 0), span);
    this.active += looked;
    this.idle += span - looked;
    this.since = now;
  }

  seconds() {
    this.count();
    return { active_seconds: this.active / 1000, idle_seconds: this.idle / 1000 };
  }
}
