// In:  what went wrong. Out: one sentence for the person at the page, as a signal.

import { signal } from "@preact/signals";
import { ApiError } from "./api";
import { t } from "./i18n";

export const problem = signal<string | null>(null);

export function tell(error: unknown): void {
  problem.value = sentence(error);
}

function sentence(error: unknown): string {
  if (error instanceof ApiError) return error.message;
  if (error instanceof TypeError) return t("unreachable"); // fetch's way to say "no connection"
  return String(error);
}
