// Zoom of one picture: wheel, pinch, drag, double click, and buttons.

const MOST = 8;

export class Zoom {
  constructor(frame, buttons) {
    this.frame = frame;
    this.picture = frame.querySelector("img");
    this.pointers = new Map();
    frame.addEventListener("wheel", (event) => this.onWheel(event), { passive: false });
    frame.addEventListener("pointerdown", (event) => this.onDown(event));
    frame.addEventListener("pointermove", (event) => this.onMove(event));
    for (const name of ["pointerup", "pointercancel", "lostpointercapture"]) {
      frame.addEventListener(name, (event) => this.pointers.delete(event.pointerId));
    }
    frame.addEventListener("dblclick", (event) => {
      if (this.scale > 1) this.reset();
      else this.by(2.5, event.clientX, event.clientY);
    });
    for (const button of buttons.querySelectorAll("[data-zoom]")) {
      button.addEventListener("click", () => this.by(button.dataset.zoom === "in" ? 1.5 : 1 / 1.5));
    }
    this.reset();
  }

  reset() {
    this.scale = 1;
    this.x = 0;
    this.y = 0;
    this.apply();
  }

  /** Zoom by a factor; the point at (x, y) of the window stays where it is. */
  by(factor, x, y) {
    const box = this.frame.getBoundingClientRect();
    const dx = (x ?? box.left + box.width / 2) - box.left - box.width / 2;
    const dy = (y ?? box.top + box.height / 2) - box.top - box.height / 2;
    const scale = Math.min(Math.max(this.scale * factor, 1), MOST);
    this.x = dx - ((dx - this.x) * scale) / this.scale;
    this.y = dy - ((dy - this.y) * scale) / this.scale;
    this.scale = scale;
    this.apply();
  }

  apply() {
    const box = this.frame.getBoundingClientRect();
    const room = (size) => (size * (this.scale - 1)) / 2;
    this.x = Math.min(Math.max(this.x, -room(box.width)), room(box.width));
    this.y = Math.min(Math.max(this.y, -room(box.height)), room(box.height));
    const plain = this.scale === 1;
    this.picture.style.transform = plain
      ? ""
      : `translate(${this.x}px, ${this.y}px) scale(${this.scale})`;
    this.frame.classList.toggle("zoomed", !plain);
  }

  onWheel(event) {
    // At its normal size, wheeling down scrolls the page.
    if (event.deltaY > 0 && this.scale === 1) return;
    event.preventDefault();
    this.by(Math.exp(-event.deltaY * (event.deltaMode ? 0.05 : 0.0015)), event.clientX, event.clientY);
  }

  onDown(event) {
    this.pointers.set(event.pointerId, event);
    if (this.scale > 1 || this.pointers.size > 1) this.frame.setPointerCapture(event.pointerId);
  }

  onMove(event) {
    const before = this.pointers.get(event.pointerId);
    if (!before) return;
    if (this.pointers.size === 2) {
      const other = [...this.pointers].find(([id]) => id !== event.pointerId)[1];
      const apart = (p) => Math.hypot(p.clientX - other.clientX, p.clientY - other.clientY);
      const middle = [(event.clientX + other.clientX) / 2, (event.clientY + other.clientY) / 2];
      // What lies between the fingers follows them.
      this.x += (event.clientX - before.clientX) / 2;
      this.y += (event.clientY - before.clientY) / 2;
      if (apart(before) > 0) this.by(apart(event) / apart(before), ...middle);
    } else if (this.scale > 1) {
      this.x += event.clientX - before.clientX;
      this.y += event.clientY - before.clientY;
      this.apply();
    }
    this.pointers.set(event.pointerId, event);
  }
}
