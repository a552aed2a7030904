// In:  what people choose. Out: the same as signals that outlive the tab; what is served; how the page looks.
// Left out: the panel where they choose (tuning.tsx).

import { effect, signal } from "@preact/signals";
import type { Info, ModelInfo, Options } from "./api";
import { recall, remember } from "./memory";

export interface Settings {
  model: string;
  against: string;
  temperature: number;
  top_p: number;
  max_tokens: number;
  system: string;
  summarise: boolean | null; // null: as the server has it
}

export type Theme = "system" | "light" | "dark";

export const settings = signal<Settings>({
  model: "", against: "", temperature: 0.8, top_p: 0.95, max_tokens: 0, system: "", summarise: null,
  ...recall<Partial<Settings>>("settings", {}),
});
export const mode = signal<"chat" | "compare">(recall("mode", "chat"));
export const theme = signal<Theme>(recall("theme", "system"));
export const models = signal<ModelInfo[]>([]);
/** Things to try, of the run that is served; none for a model of nobody's run. */
export const starters = signal<string[]>([]);
const summarise = signal(false);
let answered: () => void;
/** Over once the server has said what it serves, or could not: nobody is asked before it is known who is there. */
export const served = new Promise<void>((resolve) => (answered = resolve));
/** A pseudonym for votes, made up once per browser. */
export const rater = recall<string>("rater", "") || crypto.randomUUID();

remember("rater", rater);
/** Whether somebody picked the model; who did not gets the first one served, whichever that is next time. */
const picked = signal(recall("picked", Boolean(settings.value.model)));

effect(() => remember("picked", picked.value));
effect(() => remember("settings", picked.value ? settings.value : { ...settings.value, model: "" }));
effect(() => remember("mode", mode.value));
effect(() => remember("theme", theme.value));
effect(() => {
  if (theme.value === "system") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme.value;
});

export function change(part: Partial<Settings>): void {
  settings.value = { ...settings.value, ...part };
}

export function pick(model: string): void {
  picked.value = true;
  change({ model });
}

/** Nobody will say what is served. */
export function unserved(): void {
  answered();
}

/** Take over what the server serves; a remembered model that is gone gives way to the first one. */
export function serve(info: Info): void {
  models.value = info.models;
  starters.value = info.starters;
  summarise.value = info.summarise;
  const names = info.models.map((model) => model.id);
  const { model, against } = settings.value;
  picked.value &&= names.includes(model);
  change({
    model: picked.value ? model : (names[0] ?? ""),
    against: names.includes(against) ? against : "",
  });
  answered();
}

export function options(): Options {
  const { temperature, top_p, max_tokens } = settings.value;
  return { temperature, top_p, ...(max_tokens ? { max_tokens } : {}) };
}

/** Whether the model writes a note on turns that no longer fit; if not, they are left out. */
export function summarises(): boolean {
  return settings.value.summarise ?? summarise.value;
}
