// Whether an answer is good by itself: two thumbs, and room for a word about why.

import { useSignal } from "@preact/signals";
import { useRef } from "preact/hooks";
import type { Thumb } from "./api";
import { IconButton } from "./controls";
import { t } from "./i18n";
import { DownSign, UpSign } from "./marks";
import { judge } from "./state";
import type { Node } from "./turns";

/** The two buttons; pressed, one says what was thought of the answer. The other one changes it. */
export function Thumbs({ node, onPress }: { node: Node; onPress: () => void }) {
  const said = node.judged.value?.thumb;
  const press = (thumb: Thumb) => {
    if (thumb !== said) void judge(node, { thumb, reason: "" });
    onPress();
  };
  return (
    <span class="thumbs" role="group">
      <IconButton label={t("good")} pressed={said === "up"} onPress={() => press("up")}><UpSign /></IconButton>
      <IconButton label={t("bad")} pressed={said === "down"} onPress={() => press("down")}><DownSign /></IconButton>
    </span>
  );
}

/** Why; Escape, or a sent reason, closes it. */
export function Why({ node, onDone }: { node: Node; onDone: () => void }) {
  const judged = node.judged.value;
  const words = useSignal(judged?.reason ?? "");
  const form = useRef<HTMLFormElement>(null);
  if (!judged) return null;
  const close = () => {
    form.current?.parentElement?.querySelector<HTMLElement>("[aria-pressed=true]")?.focus(); // where it was opened
    onDone();
  };
  const send = async () => {
    if (!words.value.trim() || (await judge(node, { ...judged, reason: words.value.trim() }))) close();
  };
  const key = (event: KeyboardEvent) => {
    if (event.key !== "Escape") return;
    event.stopPropagation(); // it closes this box, and stops nothing
    close();
  };
  return (
    <form class="why" ref={form} onSubmit={(event) => (event.preventDefault(), void send())} onKeyDown={key}>
      <p class="note" role="status">{t("thanksThumb")}</p>
      <input
        type="text" aria-label={t("why")} placeholder={t("why")} maxLength={2000} value={words.value}
        onInput={(event) => (words.value = event.currentTarget.value)}
      />
      <button type="submit" class="quiet firm">{t("whySend")}</button>
    </form>
  );
}
