// In:  what somebody looks for. Out: the list of conversations that the server keeps, as signals.
// Left out: what is said in them (talk.ts), how the list looks (sidebar.tsx).

import { signal } from "@preact/signals";
import * as api from "./api";
import { tell } from "./problem";

export const conversations = signal<api.Summary[]>([]);
export const more = signal(false);
export const search = signal("");

let asking: AbortController | null = null;

/** Ask for the newest page. A newer question makes an older one, and its answer, void. */
export async function refresh(): Promise<void> {
  asking?.abort();
  const mine = (asking = new AbortController());
  try {
    const page = await api.conversations(search.value.trim(), "", mine.signal);
    if (asking !== mine) return;
    conversations.value = page.conversations;
    more.value = page.more;
  } catch (error) {
    if (!mine.signal.aborted) tell(error);
  }
}

export async function older(): Promise<void> {
  const last = conversations.value.at(-1);
  if (!last) return;
  try {
    const page = await api.conversations(search.value.trim(), last.updated);
    conversations.value = [...conversations.value, ...page.conversations];
    more.value = page.more;
  } catch (error) {
    tell(error);
  }
}

export async function rename(id: string, title: string): Promise<boolean> {
  const words = title.trim();
  if (!words) return false;
  try {
    await api.revise(id, { title: words });
    conversations.value = conversations.value.map((one) => (one.id === id ? { ...one, title: words } : one));
    return true;
  } catch (error) {
    tell(error);
    return false;
  }
}

/** Every conversation of whoever is asking, page by page. */
export async function* all(): AsyncGenerator<api.Summary> {
  for (let before = "", further = true; further; ) {
    const page = await api.conversations("", before);
    yield* page.conversations;
    before = page.conversations.at(-1)?.updated ?? "";
    further = page.more;
  }
}
