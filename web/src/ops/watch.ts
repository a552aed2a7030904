// In:  a run's name. Out: the run and the rows of its stages as signals, new every two seconds while it runs.
// Left out: what is drawn of them (runs.tsx).

import { type Signal, batch, signal } from "@preact/signals";
import { type Row, type Run, type Stage, metrics, run as fetchRun } from "./api";

const RUNNING_MS = 2000;
const STILL_MS = 15000;

/** A run that is looked at. */
export class Watch {
  readonly run: Signal<Run | null> = signal(null);
  readonly rows: Signal<Record<string, readonly Row[]>> = signal({});
  readonly problem: Signal<unknown> = signal(null);
  private after: Record<string, string> = {};
  private settled = new Set<string>(); // stages of which everything was fetched after they had ended
  private timer = 0;
  private ended = false;

  constructor(readonly name: string) {
    document.addEventListener("visibilitychange", this.wake);
    void this.look();
  }

  end(): void {
    this.ended = true;
    clearTimeout(this.timer);
    document.removeEventListener("visibilitychange", this.wake);
  }

  /** Nobody looks at a page in the background; whoever comes back sees what is now. */
  private wake = (): void => {
    clearTimeout(this.timer);
    if (!document.hidden) void this.look();
  };

  private async look(): Promise<void> {
    try {
      const found = await fetchRun(this.name);
      for (const stage of found.stages) if (stage.curves && !this.ended) await this.follow(stage);
      batch(() => {
        this.run.value = found;
        this.problem.value = null;
      });
    } catch (error) {
      this.problem.value = error;
    }
    if (this.ended || document.hidden) return;
    clearTimeout(this.timer); // somebody came back while this was under way
    this.timer = setTimeout(() => void this.look(), this.run.value?.state === "running" ? RUNNING_MS : STILL_MS);
  }

  /** Fetch what is new of a stage's rows; one that has ended writes nothing more unless it is made again. */
  private async follow(stage: Stage): Promise<void> {
    const version = `${stage.name} ${stage.started} ${stage.state}`;
    if (this.settled.has(version)) return;
    let more = true;
    while (more && !this.ended) {
      const part = await metrics(this.name, stage.name, this.after[stage.name] ?? "");
      this.after[stage.name] = part.after;
      more = part.more;
      const before = part.anew ? [] : (this.rows.value[stage.name] ?? []);
      if (part.rows.length || part.anew) {
        this.rows.value = { ...this.rows.value, [stage.name]: [...before, ...part.rows] };
      }
    }
    if (stage.state !== "running") this.settled.add(version);
  }
}
