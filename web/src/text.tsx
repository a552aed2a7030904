// An answer's words as they come: Markdown, drawn block by block, and what became of it.

import { memo } from "preact/compat";
import { useRef } from "preact/hooks";
import { type Cut, cut } from "./blocks";
import { t } from "./i18n";
import { render } from "./markdown";
import type { Draft } from "./turns";

/** An answer's words. Finished blocks keep their DOM; only the open one is drawn again. */
export function Text({ draft }: { draft: Draft }) {
  const done = useRef<Cut>({ settled: [], open: "" });
  const progress = draft.progress.value;
  done.current = cut(done.current, draft.text.value);
  const { settled, open } = done.current;
  return (
    <div class={progress === "writing" ? "text writing" : "text"}>
      {settled.map((source, index) => (
        <Block key={index} source={source} />
      ))}
      {open.trim() && <Block key="open" source={open} />}
      {progress === "writing" && !draft.text.value && <p class="note">{t("thinking")}</p>}
      {progress === "stopped" && <p class="note">{t("stopped")}</p>}
      {progress === "cut" && <p class="note">{t("cut")}</p>}
    </div>
  );
}

const Block = memo(function Block({ source }: { source: string }) {
  return <div class="block" dangerouslySetInnerHTML={{ __html: render(source) }} />;
});
