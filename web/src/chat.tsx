// The conversation: turns, an answer as it is written, the box to write in.

import { useSignal } from "@preact/signals";
import { useEffect, useLayoutEffect, useRef } from "preact/hooks";
import { ComparisonView } from "./compare";
import { SUGGESTIONS, language, t } from "./i18n";
import { Furnace, SendSign, StopSign } from "./marks";
import { again, busy, draft, mode, send, starters, stop, turns, undecided } from "./state";
import { Text } from "./text";
import type { Draft, Turn } from "./turns";

/** The log. It follows the text down while the reader is at its end, and stays put while they read further up. */
export function Conversation() {
  const place = useRef<HTMLElement>(null);
  const inner = useRef<HTMLDivElement>(null);
  useEffect(() => {
    const scroller = place.current!;
    let atEnd = true;
    const look = () => {
      atEnd = scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight < 60;
    };
    const grown = new ResizeObserver(() => {
      if (atEnd) scroller.scrollTop = scroller.scrollHeight;
    });
    scroller.addEventListener("scroll", look, { passive: true });
    grown.observe(inner.current!);
    return () => {
      scroller.removeEventListener("scroll", look);
      grown.disconnect();
    };
  }, []);
  const last = turns.value.at(-1);
  return (
    <main ref={place} tabIndex={-1}>
      <div ref={inner} class="column" role="log" aria-label={t("conversation")} aria-busy={busy.value}>
        {turns.value.length === 0 && <Welcome />}
        {turns.value.map((turn) => (
          <TurnView key={turn.key} turn={turn} last={turn === last} />
        ))}
      </div>
    </main>
  );
}

function Welcome() {
  const comparing = mode.value === "compare";
  return (
    <section class="welcome">
      <Furnace lit />
      <h1>{t(comparing ? "greetingCompare" : "greeting")}</h1>
      <p>{t(comparing ? "greetingCompareMore" : "greetingMore")}</p>
      <div class="suggestions">
        {(starters.value.length ? starters.value : SUGGESTIONS[language.value]).map((text) => (
          <button type="button" key={text} onClick={() => void send(text)}>
            {text}
          </button>
        ))}
      </div>
    </section>
  );
}

function TurnView({ turn, last }: { turn: Turn; last: boolean }) {
  const { reply } = turn;
  return (
    <section class="turn">
      <div class="prompt">
        <span class="unseen">{t("you")}</span>
        <p>{turn.prompt}</p>
      </div>
      {last && reply.leftOut.value && <p class="note">{t("leftOut")}</p>}
      {reply.kind === "comparison" ? (
        <ComparisonView comparison={reply} last={last} />
      ) : (
        <article class="answer" aria-label={t("answer")} aria-busy={reply.progress.value === "writing"}>
          <Furnace lit={reply.progress.value === "writing"} />
          <div class="said">
            <Text draft={reply} />
            {reply.progress.value !== "writing" && <AnswerTools draft={reply} last={last} />}
          </div>
        </article>
      )}
    </section>
  );
}

function AnswerTools({ draft, last }: { draft: Draft; last: boolean }) {
  const copied = useSignal(false);
  const copy = async () => {
    await navigator.clipboard.writeText(draft.text.value);
    copied.value = true;
    setTimeout(() => (copied.value = false), 1500);
  };
  return (
    <div class="tools">
      <button type="button" class="quiet" onClick={() => void copy()}>
        {t(copied.value ? "copied" : "copy")}
      </button>
      {last && (
        <button type="button" class="quiet" disabled={busy.value} onClick={() => void again()}>
          {t("again")}
        </button>
      )}
    </div>
  );
}

/** The box: Enter sends, but never the Enter that ends a word in an input method. */
export function Composer() {
  const box = useRef<HTMLTextAreaElement>(null);
  useEffect(() => {
    box.current!.style.height = "auto";
    box.current!.style.height = `${box.current!.scrollHeight}px`;
  }, [draft.value]);
  // Before the next paint: a key pressed as soon as the box can be seen to be free belongs to the box.
  useLayoutEffect(() => {
    const touch = !matchMedia("(hover: hover)").matches; // focus would open the keyboard over what was just written
    if (!busy.value && !undecided.value && !touch) box.current!.focus({ preventScroll: true });
  }, [busy.value, undecided.value]);
  const key = (event: KeyboardEvent) => {
    const composing = event.isComposing || event.keyCode === 229; // 229: Safari's Enter that ends a composition
    if (event.key !== "Enter" || event.shiftKey || composing) return;
    event.preventDefault();
    void send(draft.value);
  };
  return (
    <form class="composer" onSubmit={(event) => (event.preventDefault(), void send(draft.value))}>
      <div class="box">
        <label class="unseen" for="draft">{t("ask")}</label>
        <textarea
          id="draft" ref={box} rows={1} placeholder={t("askHint")} value={draft.value} onKeyDown={key}
          onInput={(event) => (draft.value = event.currentTarget.value)} aria-describedby="keys"
        />
        {busy.value ? (
          <button type="button" class="seal" aria-label={t("stop")} title={t("stop")} onClick={stop}><StopSign /></button>
        ) : (
          <button type="submit" class="seal" aria-label={t("send")} title={t("send")} disabled={!draft.value.trim()}>
            <SendSign />
          </button>
        )}
      </div>
      <p id="keys" class="keys">{t("keys")}</p>
    </form>
  );
}
