// In:  a question to the server. Out: its answer as a signal, what to show until then, and what if there is none.

import { type Signal, useSignal } from "@preact/signals";
import type { ComponentChildren } from "preact";
import { useEffect } from "preact/hooks";
import { ApiError } from "../api";
import { t } from "../i18n";
import { isMissing } from "./api";
import { w } from "./words";

export type Loaded<T> = { got: T } | { missing: true } | { problem: string } | null;

/** Ask once, when the component appears; `ask` of the result asks again. */
export function useLoaded<T>(question: () => Promise<T>): { state: Signal<Loaded<T>>; ask: () => Promise<void> } {
  const state = useSignal<Loaded<T>>(null);
  const ask = async () => {
    try {
      state.value = { got: await question() };
    } catch (error) {
      state.value = isMissing(error) ? { missing: true } : { problem: sentence(error) };
    }
  };
  useEffect(() => void ask(), []);
  return { state, ask };
}

interface Show<T> {
  of: { state: Signal<Loaded<T>>; ask: () => Promise<void> };
  children: (got: T) => ComponentChildren;
}

/** What was loaded, or a word about why it is not there. */
export function Show<T>({ of, children }: Show<T>) {
  const loaded = of.state.value;
  if (!loaded) return <p class="note" role="status">{w("working")}</p>;
  if ("missing" in loaded) return <p class="note">{w("unavailable")}</p>;
  if ("got" in loaded) return <>{children(loaded.got)}</>;
  return (
    <div class="problem" role="alert">
      <p>{loaded.problem}</p>
      <button type="button" class="quiet" onClick={() => void of.ask()}>{w("tryAgain")}</button>
    </div>
  );
}

export function sentence(error: unknown): string {
  if (error instanceof ApiError) return error.message;
  return error instanceof TypeError ? t("unreachable") : String(error);
}
