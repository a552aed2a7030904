// In:  pieces of text as they come. Out: signals that grow by them, at most once per frame, however fast they come.

import { type Signal, batch } from "@preact/signals";

export class Pen {
  private waiting = new Map<Signal<string>, string>();
  private frame = 0;

  write(text: Signal<string>, piece: string): void {
    this.waiting.set(text, (this.waiting.get(text) ?? "") + piece);
    if (!this.frame) this.frame = requestAnimationFrame(() => this.flush());
  }

  flush(): void {
    cancelAnimationFrame(this.frame);
    this.frame = 0;
    batch(() => {
      for (const [text, piece] of this.waiting) text.value += piece;
    });
    this.waiting.clear();
  }
}
