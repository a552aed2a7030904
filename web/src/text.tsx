// An answer's words as they come: Markdown, drawn block by block, and what became of it.

import { memo } from "preact/compat";
import { useLayoutEffect, useRef } from "preact/hooks";
import { type Cut, cut } from "./blocks";
import { dress, label } from "./dress";
import { type Key, language, t } from "./i18n";
import { render } from "./markdown";
import type { Draft, Progress } from "./turns";

const NOTES: Partial<Record<Progress, Key>> = { stopped: "stopped", cut: "cut", filtered: "filtered", failed: "failed" };

const NOTHING: Cut = { settled: [], open: "" };

/** An answer's words. Finished blocks keep their DOM; only the open one is drawn again. */
export function Text({ draft }: { draft: Draft }) {
  const done = useRef({ draft, cut: NOTHING });
  if (done.current.draft !== draft) done.current = { draft, cut: NOTHING };
  const progress = draft.progress.value;
  const { settled, open } = (done.current.cut = cut(done.current.cut, draft.text.value));
  const note = NOTES[progress];
  return (
    <div class={progress === "writing" ? "text writing" : "text"}>
      {settled.map((source, index) => (
        <Block key={index} source={source} />
      ))}
      {open.trim() && <Block key="open" source={open} growing={progress === "writing"} />}
      {progress === "writing" && !draft.text.value && <p class="note">{t("thinking")}</p>}
      {note && <p class="note">{t(note)}</p>}
    </div>
  );
}

const Block = memo(function Block({ source, growing = false }: { source: string; growing?: boolean }) {
  const place = useRef<HTMLDivElement>(null);
  // Before the next paint, so that nobody sees it undressed.
  useLayoutEffect(() => {
    place.current!.innerHTML = render(source);
    dress(place.current!, growing);
  }, [source, growing]);
  useLayoutEffect(() => label(place.current!), [language.value]);
  return <div class="block" ref={place} />;
});
